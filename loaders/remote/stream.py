"""`StreamDataset`: shards read as a stream, without a disk.

How a stream differs from `Dataset` and `RemoteDataset`:

- Length: nothing is indexed or counted; `RemoteConfig.epoch_samples` sets an epoch's length.
- Order: shuffled shards pass through a shuffle buffer. The order depends on the number of
  processes, mixes less, and differs from that of other datasets.
- Classes: without an index the class list is unknown; `classes` gives it.
- Coverage: each rank reads its own whole shards, so in one epoch some samples may repeat and others
  may be missing.
- Resume: a resumed run starts another shuffle, so in that epoch samples may repeat or be missing.

Within one pass over the shards, a fault neither loses nor repeats a sample: reading continues at
the byte where it broke.
"""

import collections
import hashlib
import io
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

import numpy as np

from ...kernels.errors import InvalidInput
from ...kernels.reading import Encoded
from ..config import LoaderConfig
from ..order import SHARDS_PER_BLOCK, ShuffleBlock, order
from ..quarantine import BadSample, Quarantine
from ..shards.build_index import ImageChoice, index_image
from ..shards.dataset import Dataset, EmptyDataset
from ..shards.index import SAMPLE_DTYPE, ShardIndex, readable, split_name
from ..shards.labels import LabelSource, NoLabel, class_number, target_of
from ..shards.names import is_image, is_remote, redact_url
from ..shards.reader import ReadMemory
from ..tables.table import ShardTable
from .config import RemoteConfig
from .store import RemoteShard, RemoteStore
from .tar_stream import stream_members

KEPT_BATCHES = 6
"""Delivered batches whose samples are kept, because a device may not have finished them."""


class StreamDataset(Dataset):
    """The most recent samples of an endless stream. A sample's index is its id.

    `batches` reads the stream. `samples[indices]` and `read(index)` reach the samples of the last
    batches.
    """

    def __init__(
        self,
        urls: Sequence[str],
        config: RemoteConfig,
        *,
        labels: LabelSource | None = None,
        classes: Sequence[str] | None = None,
        fields: tuple[str, ...] = (),
    ) -> None:
        """Raises InvalidInput for `labels` without `classes`."""
        if labels is not None and classes is None:
            raise InvalidInput(
                "`classes` must be given for a stream with `labels`, because a stream is not "
                "indexed and its class list is unknown. Pass the list, or read through the cache "
                "with --remote.mode cache"
            )
        self.urls = list(urls)
        self.labels = None if labels is None else str(labels)
        self.classes = None if classes is None else tuple(classes)
        self.fields = fields
        self._source = labels
        self._numbers = {name: number for number, name in enumerate(self.classes or ())}
        self.remote = config
        self.store = RemoteStore(config)
        self.shards = ShardTable([])
        self.shard_sizes = self.shards.sizes
        self.bad = []
        self.samples: Any = _RecentSamples()
        self._reader: _ReaderThread | None = None
        self._interrupted = False
        self._quarantine: Quarantine | None = None

    def __len__(self) -> int:
        """Samples in an epoch, over all processes."""
        return self.remote.epoch_samples or 0

    def sample_ids(self, indices: np.ndarray, *, shard_in_id: bool) -> np.ndarray:
        """The ids (N,) int64 of samples of the last batches, which are their indices."""
        return indices

    @property
    def default_block(self) -> ShuffleBlock:  # type: ignore[override]
        """Without a meaning for a stream."""
        return SHARDS_PER_BLOCK

    def report_to(self, quarantine: Quarantine) -> None:
        """As `Dataset.report_to`; records samples with a bad header, which the stream skips."""
        self._quarantine = quarantine

    def batches(
        self,
        config: LoaderConfig,
        *,
        epoch: int,
        consumed: int,
        rank: int,
        world_size: int,
        count: int,
    ) -> Iterator[np.ndarray]:
        """The next `count` batches of this rank's stream: indices (config.batch_size,) int64.

        Raises InvalidInput where the rank has no shard, and as `RemoteStore.blocks`.
        """
        self.cancel_reads()
        mine = self.urls[rank::world_size]
        if not mine:
            raise InvalidInput(
                f"a stream gives whole shards to each process: {len(self.urls)} shards are too few "
                f"for {world_size} processes. Split the shards, or read through the cache with "
                "--remote.mode cache"
            )
        self.samples.room = (config.prefetch + KEPT_BATCHES) * config.batch_size
        # A position within an epoch gets its own shuffle: restoring the order would mean reading
        # again everything before it.
        random = Random(f"{config.seed} {epoch} {consumed} {rank}")
        reader = self._reader = _ReaderThread(
            self._passes(mine, config, epoch, random), 2 * config.batch_size
        )
        if self._interrupted:  # perhaps before the new reader replaced the old one
            reader.stop.set()
        for _ in range(count):
            yield np.array(
                [self.samples.add(reader.next()) for _ in range(config.batch_size)], np.int64
            )

    def substitutes(self, index: int) -> Iterator[int]:
        """The sample itself, then the samples before it in the stream, the nearest first."""
        known = list(self.samples.entries)
        place = known.index(index)
        return iter(known[place::-1])

    def locate(self, index: int) -> tuple[ShardIndex, int]:
        """A shard that holds only this sample, and 0, its number there."""
        return self.samples.entries[int(index)][0], 0

    def read(self, index: int) -> bytes:
        """The encoded bytes of a sample in the last batches."""
        return self.samples.entries[int(index)][1]

    def read_stored(self, indices: Sequence[int], memory: ReadMemory) -> Sequence[Encoded]:
        """As `Dataset.read_stored`; the samples are in memory."""
        return [self.read(index) for index in indices]

    def read_fields(self, index: int) -> list[bytes | None]:
        """The members `fields` of a sample in the last batches."""
        return self.samples.entries[int(index)][2]

    @property
    def _origin(self) -> str:
        return f"a stream of {len(self.urls)} shards"

    def __getstate__(self) -> dict[str, Any]:
        """Without the reading thread and its samples, which a copy begins anew."""
        return {
            **vars(self),
            "store": None,
            "samples": _RecentSamples(),
            "_reader": None,
            "_interrupted": False,
            "_quarantine": None,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.store = RemoteStore(self.remote)

    def cancel_reads(self) -> None:
        """Stop the reading thread; called when an iterator closes."""
        reader = self._reader
        self._reader = None
        if reader is not None:
            reader.close()

    def interrupt(self) -> None:
        """As `Dataset.interrupt`."""
        self._interrupted = True
        reader = self._reader
        if reader is not None:
            reader.stop.set()

    def close(self) -> None:
        """Stop the reading thread."""
        self.cancel_reads()
        self._interrupted = False

    @property
    def fingerprint(self) -> str:
        """A hash of the shards' names and the epoch's length; the samples are unknown."""
        text = "\n".join([*map(redact_url, self.urls), str(self.remote.epoch_samples)])
        return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()

    def _passes(
        self, urls: Sequence[str], config: LoaderConfig, epoch: int, random: Random
    ) -> Callable[[threading.Event], Iterator["Entry"]]:
        """Endless passes over the shards, in other orders, through webdataset's buffer."""

        def passes(stop: threading.Event) -> Iterator[Entry]:
            """Read samples until `stop` is set."""
            from webdataset import filters

            while not stop.is_set():
                numbers = order(
                    [1] * len(urls),
                    seed=random.getrandbits(63),
                    epoch=epoch,
                    shuffle=config.shuffle,
                )
                entries = (
                    entry for n in numbers.tolist() for entry in self._samples(urls[n], stop)
                )
                if config.shuffle:
                    buffer = self.remote.shuffle_buffer
                    entries = filters.shuffle(buffer, initial=buffer // 4, rng=random)(entries)
                empty = True
                for entry in entries:
                    empty = False
                    yield entry
                if empty:
                    raise EmptyDataset(
                        f"no usable image in {len(urls)} shards ({redact_url(urls[0])} first); "
                        "quarantine.json names the reasons"
                    )

        return passes

    def _open(self, url: str, stop: threading.Event) -> io.BufferedIOBase:
        if not is_remote(url):
            return open(url, "rb")
        return io.BufferedReader(
            _ShardFile(self.store, self.store.look_up(url, stop, confirm=True), stop), 1 << 20
        )

    def _samples(self, url: str, stop: threading.Event) -> Iterator["Entry"]:
        """The usable samples of a shard; what cannot be used is noted.

        Neighbouring members with one key are a sample, as in webdataset.
        """
        if not is_remote(url) and not os.path.isfile(url):
            self._reject(url, "", "not a regular file")
            return
        with self._open(url, stop) as file:
            group = _Group("")
            for number, member in enumerate(stream_members(file, self._wants)):
                if not member.name:
                    self._reject(url, "", str(member.problem))
                    continue
                key, suffix = split_name(member.name)
                if key != group.key:
                    yield from self._entry(url, group)
                    group = _Group(key)
                if suffix in self.fields and member.problem is None:
                    group.others[suffix] = member.data
                if is_image(suffix):
                    group.choice.add(key, suffix, member.name, number, member.problem)
                    if group.choice.images.get(key) == number:
                        group.name, group.image = member.name, member.data
                elif suffix == self._label_suffix and member.problem is None:
                    group.label = member.data
            yield from self._entry(url, group)

    @property
    def _label_suffix(self) -> str:
        return "cls" if self._source is None else self._source.kind

    def _wants(self, name: str) -> bool:
        """Whether a member's bytes are needed: an image, a label or a field."""
        suffix = split_name(name)[1]
        return is_image(suffix) or suffix == self._label_suffix or suffix in self.fields

    def _entry(self, url: str, group: "_Group") -> Iterator["Entry"]:
        """The group's image with the facts of its header; empty where it has no usable one."""
        for name, reason in group.choice.rejected:
            self._reject(url, readable(name), reason)
        hidden = not group.key or group.key.endswith("/")
        if group.image is None:
            if not hidden and not group.choice.rejected:
                self._reject(url, readable(group.key), "no image member")
            return
        target = target_of(group.label or b"") if self._source is None else -1
        facts = index_image(url, group.name, group.image, target)
        for bad in facts.bad:
            self._note(bad)
        if len(facts.samples):
            if self._source is not None:
                facts.samples["target"] = self._class_of(self._source, url, group)
            yield facts, group.image, [group.others.get(field) for field in self.fields]

    def _reject(self, url: str, key: str, reason: str) -> None:
        self._note(BadSample(shard=url, key=key, reason=reason, found="index"))

    def _class_of(self, source: LabelSource, url: str, group: "_Group") -> int:
        """The number of a sample's class. Raises InvalidInput where it has none in the list."""
        key, shard = readable(group.key), redact_url(url)
        label = source.read(group.key, lambda: group.label)
        if isinstance(label, NoLabel):
            raise InvalidInput(
                f"{key} in {shard} has no label by labels={str(source)!r}: {label}. Add the "
                "label, or leave the sample out of the shards"
            )
        number = class_number(label, self._numbers)
        if number < 0:
            raise InvalidInput(
                f"{key} in {shard} has the label {label!r} by labels={str(source)!r}, which is not "
                f"in the list of {len(self._numbers)} classes. Pass training's class list as "
                "`classes`, or leave the sample out of the shards"
            )
        return number

    def _note(self, bad: BadSample) -> None:
        if self._quarantine is not None:
            self._quarantine.note(bad)


class _Group:
    """The members of one sample so far."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.choice = ImageChoice()
        self.name = ""
        self.image: bytes | None = None
        self.label: bytes | None = None
        self.others: dict[str, bytes] = {}


Entry = tuple[ShardIndex, bytes, list[bytes | None]]
"""A sample: the index of a shard that holds only this sample, its encoded bytes and its fields."""


class _RecentSamples:
    """The stream's most recent samples by id, indexed like `Dataset.samples`."""

    def __init__(self) -> None:
        self.room = 1
        self.entries: collections.OrderedDict[int, Entry] = collections.OrderedDict()

    def add(self, entry: Entry) -> int:
        """Add a sample, drop the oldest beyond `room`, and return the sample's index."""
        index = int(entry[0].samples["sample_id"][0])
        self.entries[index] = entry
        self.entries.move_to_end(index)
        while len(self.entries) > self.room:
            self.entries.popitem(last=False)
        return index

    def __getitem__(self, which: Any) -> Any:
        if isinstance(which, str):
            return _Column(self, which)
        if np.ndim(which) == 0:
            return self.entries[int(which)][0].samples[0]
        rows = [self.entries[index][0].samples for index in np.asarray(which).tolist()]
        return np.concatenate(rows) if rows else np.empty(0, SAMPLE_DTYPE)


class _Column:
    """One field of the recent samples."""

    def __init__(self, samples: _RecentSamples, name: str) -> None:
        self._samples = samples
        self._name = name

    def __getitem__(self, which: Any) -> Any:
        return self._samples[which][self._name]


class _ReaderThread:
    """A thread that reads up to `ahead` samples before the batches need them."""

    def __init__(self, source: Callable[[threading.Event], Iterator[Entry]], ahead: int) -> None:
        self.stop = threading.Event()
        """Cancels reading once it is set; `close` must still be called."""
        self._ready: queue.Queue[Any] = queue.Queue(ahead)
        self._thread = threading.Thread(
            target=self._run, args=(source,), name="remote-stream", daemon=True
        )
        self._thread.start()

    def next(self) -> Entry:
        """The next sample; raises the error that ended reading."""
        entry = self._ready.get()
        if isinstance(entry, BaseException):
            raise entry
        return entry

    def close(self) -> None:
        """Stop the thread and wait for its end."""
        self.stop.set()
        while self._thread.is_alive():
            try:
                self._ready.get(timeout=0.05)  # the thread may be waiting for room in the queue
            except queue.Empty:
                continue
        self._thread.join()

    def _run(self, source: Callable[[threading.Event], Iterator[Entry]]) -> None:
        try:
            for entry in source(self.stop):
                self._ready.put(entry)
                if self.stop.is_set():
                    return
        except BaseException as error:  # `next` raises it in the consumer's thread
            self._ready.put(error)


class _ShardFile(io.RawIOBase):
    """A remote shard as a file object that is read once, from start to end."""

    def __init__(self, store: RemoteStore, shard: RemoteShard, stop: threading.Event) -> None:
        self._blocks = store.blocks(shard, 0, stop)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer from the next block and return the byte count; 0 at the end."""
        while not self._rest:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._rest = memoryview(block)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def close(self) -> None:
        """End the requests or the command."""
        self._blocks.close()  # type: ignore[attr-defined]
        super().close()

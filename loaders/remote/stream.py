"""Shards read as a stream by the webdataset package, for machines without the disk to keep any.

What it does not promise, where `Dataset` and `RemoteDataset` do: nothing is indexed, so nobody has
counted the samples and an epoch is as many as `RemoteConfig.epoch_samples` says. The order is that
of shuffled shards through a shuffle buffer: it depends on the number of processes, mixes less, and
is not the other loaders' order. A rank reads whole shards of its own, so that some samples may come
twice in an epoch and others not at all. A run that resumes begins with another shuffle: in that
epoch, samples may come again or not at all. Within a pass a fault neither loses nor repeats a
sample: the stream goes on at the byte where it broke.
"""

import collections
import hashlib
import io
import queue
import tarfile
import threading
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

import numpy as np

from ...kernels.errors import InvalidInput
from ..config import LoaderConfig
from ..order import order
from ..quarantine import BadSample, Quarantine
from ..shards.build_index import index_image
from ..shards.dataset import Dataset
from ..shards.index import SAMPLE_DTYPE, ShardIndex, split_name
from ..shards.names import IMAGE_SUFFIXES, is_remote, redact_url
from .config import RemoteConfig
from .store import RemoteShard, RemoteStore

KEPT_BATCHES = 6
"""Batches whose samples stay at hand beyond those in the making: delivered ones that a device has
yet to finish."""


class StreamDataset(Dataset):
    """The last samples of an endless stream, which `batches` draws on; an index is the sample's id.

    For loaders that ask for samples by `samples[indices]` and `read(index)`. ValueError where a
    rank has no shard.
    """

    def __init__(self, urls: Sequence[str], config: RemoteConfig) -> None:
        self.urls, self.remote = list(urls), config
        self.store = RemoteStore(config)
        self.shards, self.shard_sizes, self.bad = [], [], []
        self.samples: Any = _Window()
        self._reader: _Reader | None = None
        self._interrupted = False
        self._quarantine: Quarantine | None = None

    def __len__(self) -> int:
        """Samples that count as an epoch."""
        return self.remote.epoch_samples or 0

    def report_to(self, quarantine: Quarantine) -> None:
        """As `Dataset.report_to`: here those whose header is bad, which are left out of the stream."""
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
        """The next `count` batches (config.batch_size,) of this rank's stream, waiting for it.

        FileNotFoundError, RemoteError as `RemoteStore.blocks`.
        """
        self.cancel_reads()
        mine = self.urls[rank::world_size]
        if not mine:
            raise InvalidInput(
                f"{len(self.urls)} shards are too few for {world_size} processes: a stream gives whole shards to each. "
                "Cut them smaller, or read through the cache with --remote.mode cache"
            )
        self.samples.room = (config.prefetch + KEPT_BATCHES) * config.batch_size
        # a position in mid-epoch gets a shuffle of its own: what came before is not read again for
        # the order's sake
        random = Random(f"{config.seed} {epoch} {consumed} {rank}")
        reader = self._reader = _Reader(
            self._passes(mine, config, epoch, random), 2 * config.batch_size
        )
        if self._interrupted:  # before the new reader took the old one's place
            reader.stop.set()
        for _ in range(count):
            yield np.array(
                [self.samples.add(reader.next()) for _ in range(config.batch_size)], np.int64
            )

    def substitutes(self, index: int) -> Iterator[int]:
        """The sample itself, then those before it in the stream, the nearest first."""
        known = list(self.samples.entries)
        place = known.index(index)
        return iter(known[place::-1])

    def locate(self, index: int) -> tuple[ShardIndex, int]:
        """The sample as the only one of its shard, and 0."""
        return self.samples.entries[int(index)][0], 0

    def read(self, index: int) -> bytes:
        """The encoded bytes of a sample of the last batches."""
        return self.samples.entries[int(index)][1]

    def cancel_reads(self) -> None:
        """End the thread that reads."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def interrupt(self) -> None:
        """As `Dataset.interrupt`."""
        self._interrupted = True
        reader = self._reader
        if reader is not None:
            reader.stop.set()

    def close(self) -> None:
        """End the thread that reads."""
        self.cancel_reads()
        self._interrupted = False

    @property
    def fingerprint(self) -> str:  # type: ignore[override]
        """A hash of the shards' names and the length of an epoch, since their samples are not
        known."""
        text = "\n".join([*self.urls, str(self.remote.epoch_samples)])
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def _passes(
        self, urls: Sequence[str], config: LoaderConfig, epoch: int, random: Random
    ) -> Callable[[threading.Event], Iterator["Entry"]]:
        """Pass after pass over the shards, each in an order of its own, by webdataset's stages."""

        def passes(stop: threading.Event) -> Iterator[Entry]:
            from webdataset import filters, tariterators

            while not stop.is_set():
                numbers = order(
                    [1] * len(urls),
                    seed=random.getrandbits(63),
                    epoch=epoch,
                    shuffle=config.shuffle,
                )
                opened = (
                    {"url": urls[n], "stream": self._open(urls[n], stop)} for n in numbers.tolist()
                )
                files = tariterators.tar_file_expander(opened, handler=self._shard_damaged)
                groups = tariterators.group_by_keys(files, keys=split_name, handler=_first_counts)
                entries = (entry for group in groups for entry in self._entry(group))
                if config.shuffle:
                    buffer = self.remote.shuffle_buffer
                    entries = filters.shuffle(buffer, initial=buffer // 4, rng=random)(entries)
                empty = True
                for entry in entries:
                    empty = False
                    yield entry
                if empty:
                    raise InvalidInput(
                        f"no usable image in {len(urls)} shards ({redact_url(urls[0])} first)"
                    )

        return passes

    def _open(self, url: str, stop: threading.Event) -> io.BufferedIOBase:
        if not is_remote(url):
            return open(url, "rb")
        return io.BufferedReader(
            _Stream(self.store, self.store.look_up(url, stop, sure=True), stop), 1 << 20
        )

    def _shard_damaged(self, error: Exception) -> bool:
        """webdataset's handler: goes on with the next shard after one that is no archive, or not a
        whole one."""
        url = error.args[-1]  # webdataset puts it there when the whole of the shard is given up
        if isinstance(error, tarfile.TarError) and url in self.urls:
            self._note(
                BadSample(shard=url, key="", reason="shard damaged from here on", found="index")
            )
            return True
        error.args = error.args[:1]
        raise error

    def _entry(self, group: dict[str, Any]) -> Iterator["Entry"]:
        """The group's first image, judged by its header; nothing where there is none that can be
        used."""
        url, key = group["__url__"], group["__key__"]
        suffix = next(
            (name for name in group if "." + name.rpartition(".")[2] in IMAGE_SUFFIXES), None
        )
        if suffix is None:
            self._note(BadSample(shard=url, key=key, reason="no image member", found="index"))
            return
        label = group.get("cls", b"").strip()
        target = int(label) if label.lstrip(b"-").isdigit() else -1
        facts = index_image(url, f"{key}.{suffix}", group[suffix], target)
        for bad in facts.bad:
            self._note(bad)
        if len(facts.samples):
            yield facts, group[suffix]

    def _note(self, bad: BadSample) -> None:
        if self._quarantine is not None:
            self._quarantine.note(bad)


def _first_counts(error: Exception) -> bool:
    """webdataset's handler of a member whose key and suffix another one had: it is passed over."""
    return True


Entry = tuple[ShardIndex, bytes]
"""What is known of a sample, as the index of a shard of one, and its bytes."""


class _Window:
    """The facts of the stream's last samples: what `Dataset.samples` is to the loaders, by sample
    ids."""

    def __init__(self) -> None:
        self.room = 1
        self.entries: collections.OrderedDict[int, Entry] = collections.OrderedDict()

    def add(self, entry: Entry) -> int:
        """Take a sample in, and the oldest out; returns its index."""
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
    """One field of the window's samples."""

    def __init__(self, window: _Window, name: str) -> None:
        self._window, self._name = window, name

    def __getitem__(self, which: Any) -> Any:
        return self._window[which][self._name]


class _Reader:
    """The thread that reads ahead of the batches."""

    def __init__(self, source: Callable[[threading.Event], Iterator[Entry]], ahead: int) -> None:
        self.stop = threading.Event()
        """Set it to end the reading; `close` is still to be called."""
        self._ready: queue.Queue[Any] = queue.Queue(ahead)
        self._thread = threading.Thread(
            target=self._run, args=(source,), name="remote-stream", daemon=True
        )
        self._thread.start()

    def next(self) -> Entry:
        """The next sample; raises what the reading of it raised."""
        entry = self._ready.get()
        if isinstance(entry, BaseException):
            raise entry
        return entry

    def close(self) -> None:
        """End the thread."""
        self.stop.set()
        while self._thread.is_alive():
            try:
                self._ready.get(timeout=0.05)  # it may wait for room
            except queue.Empty:
                continue
        self._thread.join()

    def _run(self, source: Callable[[threading.Event], Iterator[Entry]]) -> None:
        try:
            for entry in source(self.stop):
                self._ready.put(entry)
                if self.stop.is_set():
                    return
        except BaseException as error:  # handed to the consumer, who raises it
            self._ready.put(error)


class _Stream(io.RawIOBase):
    """A remote shard as a file that is read once from its beginning."""

    def __init__(self, store: RemoteStore, shard: RemoteShard, stop: threading.Event) -> None:
        self._blocks = store.blocks(shard, 0, stop)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as what is here goes."""
        while not self._rest:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._rest = memoryview(block)
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count

    def close(self) -> None:
        """Let go of the connection or the command."""
        self._blocks.close()  # type: ignore[attr-defined]
        super().close()

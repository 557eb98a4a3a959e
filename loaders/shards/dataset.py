"""A dataset: the usable samples of all shards, numbered 0..n-1, shard after shard."""

import bisect
import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ...kernels.errors import InvalidInput
from ...kernels.reading import Encoded
from ..config import LoaderConfig
from ..order import ALL, SHARDS_PER_BLOCK, EpochOrder, ShuffleBlock, batch_positions
from ..quarantine import BadSample, Quarantine
from ..system.storage import on_network
from ..tables.sample_ids import with_shard
from ..tables.table import ShardTable
from .index import ShardIndex
from .labels import LabelSource
from .names import redact_url
from .reader import ReadMemory, ShardReader

_LOOKED_AT = 64
"""Shards, evenly spread, whose file systems decide on `default_block`."""
_RELEASED = 1024
"""Samples after which a table's pages are released: the system may map 64 KB for each."""
_SORTED = 1 << 22
"""Samples up to which a block is shuffled by sorting: 24 bytes each while it is made."""


class EmptyDataset(InvalidInput):
    """The shards hold no usable sample."""

    shards = 0
    """How many shards there are."""
    bad: Sequence[BadSample] = ()
    """What the index excluded."""


class Dataset:
    """The indexed samples of a list of shards; subclasses read other kinds of shard.

    `samples` is (n,) SAMPLE_DTYPE, read-only where it is mapped; `shard_sizes` (shards,) int64 the
    usable samples of each shard; `bad` the samples that the index excluded. Raises EmptyDataset
    where there is no usable sample, InvalidInput where a sample has no label or one outside the
    class list.
    """

    samples: np.ndarray
    shard_sizes: np.ndarray
    bad: Sequence[BadSample]
    records: np.ndarray | None = None
    """(n,) bool: the samples that are stored as records of coefficients, which `read_record` reads.
    None where none is."""

    def __init__(
        self,
        shards: ShardTable | Iterable[ShardIndex],
        *,
        labels: LabelSource | None = None,
        classes: Sequence[str] | None = None,
        fields: tuple[str, ...] = (),
    ) -> None:
        """`labels`, `classes`, `fields`: as for `open_dataset`; the shards are indexed with these
        labels and fields, and a table has these classes."""
        table = shards if isinstance(shards, ShardTable) else ShardTable(shards, labels, classes)
        self.shards = table
        self.opened_with: dict[str, Any] | None = None
        """Arguments with which `open_dataset` makes the same dataset in another process."""
        self.labels: str | None = None if labels is None else str(labels)
        """The option `labels` by which the dataset was opened."""
        self.classes: tuple[str, ...] | None = table.classes
        """The class list: `target` is a position in it. None without labels."""
        self.fields = fields
        """Suffixes of the members that batches bring along."""
        self.reader = ShardReader()
        self._view_table()
        if not len(self.samples):
            reasons = sorted({entry.reason for entry in self.bad})
            empty = EmptyDataset(
                f"no usable image in {len(table)} shards ({redact_url(table.path(0))} first): "
                f"{len(self.bad)} quarantined ({', '.join(reasons) or 'the shards are empty'}); "
                "`maskco-fast index --shards …` lists them"
            )
            empty.shards, empty.bad = len(table), self.bad
            raise empty

    def _view_table(self) -> None:
        """Take over the table's columns."""
        table = self.shards
        self.samples, self.shard_sizes, self.bad = table.samples, table.sizes, table.bad
        self._ends: list[int] = table.ends.tolist()  # which `bisect` searches fastest

    def __getstate__(self) -> dict[str, Any]:
        """Without the table's columns: a copy of a mapped table maps them again."""
        columns = ("samples", "shard_sizes", "bad", "_ends")
        return {name: value for name, value in vars(self).items() if name not in columns}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._view_table()

    def __len__(self) -> int:
        return len(self.samples)

    def sample_ids(self, indices: np.ndarray, *, shard_in_id: bool) -> np.ndarray:
        """The ids (N,) int64 of samples `indices` (N,), which seed their plans.

        `shard_in_id`: take in the shards' names; see `sample_ids`.
        """
        ids = self.samples[indices]["sample_id"]
        if not shard_in_id:
            return ids
        return with_shard(ids, self.shards.codes[self._shard_numbers(indices)])

    @property
    def keys_repeat(self) -> bool:
        """Whether keys repeat between shards; see `sample_ids.keys_repeat`."""
        return self.shards.keys_repeat

    @functools.cached_property
    def default_block(self) -> ShuffleBlock:
        """The option `shuffle_block` where it is not given: "all" for shards of this machine's
        disks, `SHARDS_PER_BLOCK` where reading from many shards at once has a cost: on a server or
        a network's file system. Few shards need no choice, and keep the order of that number.
        """
        few = len(self.shards) <= SHARDS_PER_BLOCK and len(self) <= _SORTED
        return SHARDS_PER_BLOCK if few or self._is_distant() else ALL

    def _is_distant(self) -> bool:
        """Whether the shards are on a server or a network's file system."""
        step = max(len(self.shards) // _LOOKED_AT, 1)
        return on_network(self.shards.path(n) for n in range(0, len(self.shards), step))

    def _shard_numbers(self, indices: np.ndarray) -> np.ndarray:
        """The number of the shard of each sample."""
        return np.searchsorted(self.shards.ends, indices, side="right")

    def _place(self, index: int) -> tuple[int, int]:
        """The number of a sample's shard, and the sample's number within it."""
        shard = bisect.bisect_right(self._ends, index)
        return shard, int(index) - (self._ends[shard - 1] if shard else 0)

    def locate(self, index: int) -> tuple[ShardIndex, int]:
        """The shard of sample `index`, and the sample's number within that shard."""
        shard, number = self._place(index)
        return self.shards[shard], number

    def read(self, index: int) -> bytes:
        """Read the encoded bytes of sample `index`, from any thread."""
        file, sample = self.shards.file(*self._place(index)), self.samples[index]
        return self.reader.read(file, int(sample["offset"]), int(sample["size"]))

    def read_record(self, index: int) -> bytes:
        """Read the record of sample `index`, one of `records`, from any thread."""
        raise NotImplementedError

    def read_stored(self, indices: Sequence[int], memory: ReadMemory) -> Sequence[Encoded]:
        """Read samples as they are stored, several at once, from any thread; valid until the next
        use of `memory`.

        As by `read`, except that a sample of `records` is a record and not the JPEG made of it.
        """
        files = [self.shards.file(*self._place(index)) for index in indices]
        samples = self.samples[np.asarray(indices)]
        offsets, sizes = samples["offset"], samples["size"]
        parts: list[Encoded] = [*self.reader.read_parts(files, offsets, sizes, memory)]
        for number, size in enumerate(sizes.tolist()):
            if len(parts[number]) < size:  # raises the reason, unless it has passed
                parts[number] = self.reader.read(files[number], int(offsets[number]), size)
        return parts

    def read_fields(self, index: int) -> list[bytes | None]:
        """Read the members `fields` of sample `index`, from any thread; None for each it lacks."""
        shard, number = self.locate(index)
        if shard.fields is not None:
            return [
                None if offset < 0 else self.reader.read(shard.file(number), offset, size)
                for offset, size in shard.fields.places[number].tolist()
            ]
        beside = os.path.join(shard.path, shard.exact_key(number))
        return [_read_beside(f"{beside}.{field}") for field in self.fields]

    def __repr__(self) -> str:
        labels = f", {len(self.classes)} classes by {self.labels}" if self.classes else ""
        fields = f", fields {', '.join(self.fields)}" if self.fields else ""
        return f"{type(self).__name__}({len(self)} samples, {self._origin}{labels}{fields})"

    @property
    def _origin(self) -> str:
        return f"{len(self.shards)} shards"

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
        """Yield a rank's next `count` batches after the first `consumed` samples of an epoch.

        A batch is an array of sample indices, (config.batch_size,) int64.
        """
        order = self._order(config, epoch)
        for batch in range(count):
            if batch % max(_RELEASED // config.batch_size, 1) == 0:
                self.shards.release()
            place = batch_positions(batch, consumed, config.batch_size, rank, world_size)
            yield order.take(place.start, place.stop)

    def _order(self, config: LoaderConfig, epoch: int) -> EpochOrder:
        return EpochOrder(
            self.shard_sizes,
            seed=config.seed,
            epoch=epoch,
            shuffle=config.shuffle,
            block=config.block or self.default_block,
        )

    def substitutes(self, index: int) -> Iterator[int]:
        """Yield the sample itself, then its substitutes, the nearest following sample first."""
        for step in range(len(self)):
            yield (index + step) % len(self)

    def report_to(self, quarantine: Quarantine) -> None:
        """Set where bad samples are recorded that are found after opening; an index finds all."""

    def cancel_reads(self) -> None:
        """Cancel outstanding reads; called when an iterator closes. Local reads do not wait."""

    def interrupt(self) -> None:
        """Until `close`, raise ReadEnded instead of waiting for a server. From any thread."""

    def close(self) -> None:
        """Close the files; they are reopened by the next read."""
        self.reader.close()

    @property
    def fingerprint(self) -> str:
        """Hash of the samples' keys and order, 16 hex digits; equal where sample numbers agree."""
        return self.shards.fingerprint


def _read_beside(path: str) -> bytes | None:
    """The bytes of a file in a folder of images; None where there is none."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, IsADirectoryError):
        return None

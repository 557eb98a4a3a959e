"""A dataset: the usable samples of all shards, numbered 0..n-1, shard after shard."""

import bisect
import functools
import hashlib
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ...kernels.errors import InvalidInput
from ..config import LoaderConfig
from ..order import batch_positions, order
from ..quarantine import BadSample, Quarantine
from .index import ShardIndex
from .labels import LabelSource, assign_classes
from .names import redact_url
from .reader import ShardReader


class EmptyDataset(InvalidInput):
    """The shards hold no usable sample."""

    shards = 0
    """How many shards there are."""
    bad: Sequence[BadSample] = ()
    """What the index excluded."""


class Dataset:
    """The indexed samples of a list of shards; subclasses read other kinds of shard.

    `samples` is (n,) SAMPLE_DTYPE, `shard_sizes` the usable samples of each shard, `bad` the
    samples that the index excluded. Raises EmptyDataset where there is no usable sample,
    InvalidInput where a sample has no label or one outside the class list.
    """

    records: np.ndarray | None = None
    """(n,) bool: the samples that are stored as records of coefficients, which `read_record` reads.
    None where none is."""

    def __init__(
        self,
        shards: Iterable[ShardIndex],
        *,
        labels: LabelSource | None = None,
        classes: Sequence[str] | None = None,
        fields: tuple[str, ...] = (),
    ) -> None:
        """`labels`, `classes`, `fields`: as for `open_dataset`; the shards are indexed with these
        labels and fields."""
        self.shards = list(shards)
        self.opened_with: dict[str, Any] | None = None
        """Arguments with which `open_dataset` makes the same dataset in another process."""
        self.labels: str | None = None if labels is None else str(labels)
        """The option `labels` by which the dataset was opened."""
        self.classes: tuple[str, ...] | None = None
        """The class list: `target` is a position in it. None without labels."""
        self.fields = fields
        """Suffixes of the members that batches bring along."""
        self.shard_sizes = [len(shard.samples) for shard in self.shards]
        self._ends = np.cumsum(self.shard_sizes).tolist()
        self.bad = [entry for shard in self.shards for entry in shard.bad]
        self.reader = ShardReader()
        if not sum(self.shard_sizes):
            reasons = sorted({entry.reason for entry in self.bad})
            empty = EmptyDataset(
                f"no usable image in {len(self.shards)} shards ("
                f"{redact_url(self.shards[0].path)} first): "
                f"{len(self.bad)} quarantined ({', '.join(reasons) or 'the shards are empty'}); "
                "`maskco-fast index --shards …` lists them"
            )
            empty.shards, empty.bad = len(self.shards), self.bad
            raise empty
        if labels is not None:
            self.shards, self.classes = assign_classes(self.shards, labels, classes)
        self.samples = np.concatenate([shard.samples for shard in self.shards])
        repeated = len(self.samples) - len(np.unique(self.samples["sample_id"]))
        if repeated:
            warnings.warn(
                f"{repeated} of {len(self.samples)} samples share their key with another sample "
                "and get the same plan; give each sample of all shards its own key to avoid it",
                stacklevel=3,
            )

    def __len__(self) -> int:
        return len(self.samples)

    def locate(self, index: int) -> tuple[ShardIndex, int]:
        """The shard of sample `index`, and the sample's number within that shard."""
        shard = bisect.bisect_right(self._ends, index)
        return self.shards[shard], int(index) - self._ends[shard] + self.shard_sizes[shard]

    def read(self, index: int) -> bytes:
        """Read the encoded bytes of sample `index`, from any thread."""
        shard, number = self.locate(index)
        sample = self.samples[index]
        return self.reader.read(shard.file(number), int(sample["offset"]), int(sample["size"]))

    def read_record(self, index: int) -> bytes:
        """Read the record of sample `index`, one of `records`, from any thread."""
        raise NotImplementedError

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
        positions = order(
            self.shard_sizes,
            seed=config.seed,
            epoch=epoch,
            shuffle=config.shuffle,
            block=config.block,
        )
        for batch in range(count):
            yield positions[
                batch_positions(batch, consumed, config.batch_size, rank, world_size)
            ].copy()

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

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the samples and their order, 16 hex digits; equal where sample numbers agree."""
        return hashlib.blake2b(self.samples["sample_id"].tobytes(), digest_size=8).hexdigest()


def _read_beside(path: str) -> bytes | None:
    """The bytes of a file in a folder of images; None where there is none."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, IsADirectoryError):
        return None

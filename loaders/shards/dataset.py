"""All usable samples of all shards under one numbering: 0..n-1, shard after shard."""

import bisect
import functools
import hashlib
import warnings
from collections.abc import Iterable, Iterator

import numpy as np

from ...kernels.errors import InvalidInput
from ..config import LoaderConfig
from ..order import batch_positions, order
from ..quarantine import Quarantine
from .index import ShardIndex
from .reader import ShardReader


class EmptyDataset(InvalidInput):
    """Not one usable sample in the shards given."""


class Dataset:
    """The indexed samples of a list of shards.

    `samples` (n,) SAMPLE_DTYPE; `shard_sizes` usable samples of each shard. EmptyDataset where
    there is none.
    """

    def __init__(self, shards: Iterable[ShardIndex]) -> None:
        self.shards = list(shards)
        self.shard_sizes = [len(shard.samples) for shard in self.shards]
        self._ends = np.cumsum(self.shard_sizes).tolist()
        self.bad = [entry for shard in self.shards for entry in shard.bad]
        self.reader = ShardReader()
        if not sum(self.shard_sizes):
            reasons = sorted({entry.reason for entry in self.bad})
            raise EmptyDataset(
                f"no usable image in {len(self.shards)} shards ({self.shards[0].path} first): "
                f"{len(self.bad)} quarantined ({', '.join(reasons) or 'the shards are empty'}); "
                "`maskco-fast index --shards …` lists them"
            )
        self.samples = np.concatenate([shard.samples for shard in self.shards])
        repeated = len(self.samples) - len(np.unique(self.samples["sample_id"]))
        if repeated:
            warnings.warn(
                f"{repeated} of {len(self.samples)} samples share their key with another; those pairs get equal plans. "
                "Number the keys through all shards to avoid it",
                stacklevel=3,
            )

    def __len__(self) -> int:
        return len(self.samples)

    def locate(self, index: int) -> tuple[ShardIndex, int]:
        """The shard that holds sample `index`, and its number among that shard's usable samples."""
        shard = bisect.bisect_right(self._ends, index)
        return self.shards[shard], int(index) - self._ends[shard] + self.shard_sizes[shard]

    def read(self, index: int) -> bytes:
        """The encoded bytes of sample `index`."""
        shard, number = self.locate(index)
        sample = self.samples[index]
        return self.reader.read(shard.file(number), int(sample["offset"]), int(sample["size"]))

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
        """A rank's next `count` batches after `consumed` samples of an epoch: indices
        (config.batch_size,) int64."""
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
        """The sample itself, then those that take its place where it does not decode, the next one
        first."""
        for step in range(len(self)):
            yield (index + step) % len(self)

    def report_to(self, quarantine: Quarantine) -> None:
        """Where samples are recorded that are found to be bad later than when the dataset was
        opened."""

    def cancel_reads(self) -> None:
        """The batches are not wanted any more: until others are, reading waits for no server."""

    def interrupt(self) -> None:
        """Until `close`, no reading waits for a server: what is not here raises ReadEnded. Any
        thread's."""

    def close(self) -> None:
        """Let go of the open files; they are opened anew when they are wanted."""
        self.reader.close()

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the samples and their order; 16 hex digits. Equal where positions mean the same
        samples."""
        return hashlib.blake2b(self.samples["sample_id"].tobytes(), digest_size=8).hexdigest()

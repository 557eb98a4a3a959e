"""The order in which an epoch visits the samples: pure functions of integers.

The order is global: it depends on the shards, the seed and the epoch, not on the ranks. Each rank
reads its slice of every global batch, so a run that resumes with another world size continues in
the same order. The samples that do not fill the last global batch are dropped, and all ranks get
the same number of batches; or they are kept, and each rank gets its slice of what there is, which
may be a short batch or none.

No part of the order depends on the part before it: `EpochOrder` computes a block of shards at a
time, or with `ALL` each position by itself, so that a billion samples need no more memory than a
million and a resumed run starts at once.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from ..kernels.errors import InvalidInput

SHARDS_PER_BLOCK = 16
"""Shards shuffled together where that many must be read at the same time: remote ones. With
Conceptual Captions' 10 000 images per shard: 160 000 images."""
ALL: Literal["all"] = "all"
"""The option `shuffle_block` that shuffles all shards together."""

ShuffleBlock = int | Literal["all"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SHARDS, _SAMPLES, _ROUNDS = 0, 1, 2
"""Purposes of the random streams: the order of the shards, of the samples in a block, and the
rounds of `_Permutation`."""
_MIXING_BATCHES = 32
"""Batches of an epoch, evenly spread, on which `mixing` counts shards."""


def mix(z: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser of (n,) uint64, as in `kernels.plan`: equal on every NumPy version."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _keys(numbers: np.ndarray, seed: int, epoch: int, purpose: int) -> np.ndarray:
    """(n,) uint64 random keys of `numbers` (n,) int64: sorting by them shuffles."""
    with np.errstate(over="ignore"):
        start = mix(np.array([seed & (2**64 - 1)], np.uint64) + _GOLDEN)
        start = mix(start + np.uint64(epoch & (2**64 - 1)) + _GOLDEN)
        start = mix(start + np.uint64(purpose) + _GOLDEN)
        return mix(start + (numbers.astype(np.uint64) + np.uint64(1)) * _GOLDEN)


class EpochOrder:
    """The global order of an epoch: a permutation of the samples, of which parts are computed.

    Samples are numbered shard after shard. The shards are shuffled and taken `block` at a time, and
    the samples of each block are shuffled together: a reader needs at most `block` shards at once.
    With at most `block` shards the order is uniform. With `block` "all" it is uniform for any
    number of shards, and takes no memory; it is another order than that of a large number.

    `block_ends` (blocks,) int64 are the positions behind the last sample of each block: no shard
    has samples in two blocks. Without `shuffle` the order is that of the numbers.
    """

    def __init__(
        self,
        shard_sizes: Sequence[int] | np.ndarray,
        *,
        seed: int,
        epoch: int,
        shuffle: bool = True,
        block: ShuffleBlock = SHARDS_PER_BLOCK,
    ) -> None:
        """`shard_sizes`: samples of each shard. Raises InvalidInput for a `block` below 1."""
        check_block(block, "block")
        self.shard_sizes = np.asarray(shard_sizes, np.int64)
        self._starts = np.cumsum(self.shard_sizes) - self.shard_sizes
        self._samples = int(self.shard_sizes.sum())
        self._seed, self._epoch, self._shuffle = seed, epoch, shuffle
        self._permutation: _Permutation | None = None
        shards = len(self.shard_sizes)
        self._block = shards or 1
        if block != ALL:
            self._block = block
        elif shuffle:
            self._permutation = _Permutation(self._samples, seed, epoch)
        self._shards = np.arange(shards)
        if shuffle and block != ALL:
            self._shards = np.argsort(_keys(self._shards, seed, epoch, _SHARDS), kind="stable")
        firsts = range(0, shards, self._block)
        sizes = self.shard_sizes[self._shards]
        self.block_ends = np.cumsum(np.add.reduceat(sizes, firsts) if shards else sizes)
        self._kept: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))
        """Number and samples of the block that was computed last."""

    def __len__(self) -> int:
        return self._samples

    def take(self, begin: int, end: int) -> np.ndarray:
        """The samples (m,) int64 at positions `begin` to `end`, exclusive, as far as there are."""
        end = min(end, self._samples)
        parts = [np.empty(0, np.int64)]
        while begin < end:
            block = int(np.searchsorted(self.block_ends, begin, side="right"))
            here = min(end, int(self.block_ends[block]))
            parts.append(self.select(block, np.arange(begin, here)))
            begin = here
        return np.concatenate(parts)

    def select(self, block: int, positions: np.ndarray) -> np.ndarray:
        """The samples (m,) int64 at `positions` (m,) int64, all within block number `block`."""
        if self._permutation is not None:
            return self._permutation(positions)
        if not self._shuffle:
            return positions
        start = int(self.block_ends[block - 1]) if block else 0
        return self._samples_of(block)[positions - start]

    def shards_of(self, number: int) -> np.ndarray:
        """The shards (m,) int64 of block `number`."""
        return self._shards[number * self._block : (number + 1) * self._block]

    def _samples_of(self, number: int) -> np.ndarray:
        """The samples of a block in order; the last block asked for is kept."""
        if self._kept[0] != number:
            members = self.shards_of(number)
            ranges = zip(self._starts[members].tolist(), self.shard_sizes[members].tolist())
            samples = np.concatenate([np.arange(start, start + size) for start, size in ranges])
            keys = _keys(samples, self._seed, self._epoch, _SAMPLES)
            self._kept = (number, samples[np.argsort(keys, kind="stable")])
        return self._kept[1]


class _Permutation:
    """A pseudo-random permutation of 0..n-1 that is computed for each position by itself.

    A Feistel network over the cells of a grid of about √n rows and columns: in turn each row index
    is shifted by a hash of the column index, and the other way round. The few cells beyond n are
    sent through again until they fall below n, which keeps the rest a permutation.
    """

    ROUNDS = 6

    def __init__(self, n: int, seed: int, epoch: int) -> None:
        rows = math.isqrt(max(n - 1, 0)) + 1
        self._n = np.uint64(n)
        self._sides = np.uint64(rows), np.uint64(max(-(-n // rows), 1))
        self._keys = _keys(np.arange(self.ROUNDS), seed, epoch, _ROUNDS)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """(m,) int64 in [0, n) of `positions` (m,) int64 in [0, n)."""
        values = self._network(positions.astype(np.uint64))
        while len(outside := np.flatnonzero(values >= self._n)):
            values[outside] = self._network(values[outside])
        return values.astype(np.int64)

    def _network(self, values: np.ndarray) -> np.ndarray:
        rows, columns = self._sides
        row = values // columns
        column = values - row * columns
        for key in self._keys.reshape(-1, 2):
            row = _shifted(row, mix(column + key[0]), rows)
            column = _shifted(column, mix(row + key[1]), columns)
        return row * columns + column


def _shifted(values: np.ndarray, hashes: np.ndarray, count: np.uint64) -> np.ndarray:
    """Values in [0, count) plus hashes, modulo `count`, below 2**32: all (m,) uint64."""
    # The upper half of a hash times `count` is a number below `count`, without a division.
    values = values + ((hashes >> np.uint64(32)) * count >> np.uint64(32))
    return np.minimum(values, values - count)  # the difference wraps round where it is negative


def check_block(block: ShuffleBlock, name: str) -> None:
    """Raise InvalidInput unless `block` is "all" or a number of at least 1; `name`: the option."""
    if block != ALL and (not isinstance(block, int) or block < 1):
        raise InvalidInput(f"`{name}` must be at least 1 shard, or 'all', got {block!r}")


def order(
    shard_sizes: Sequence[int] | np.ndarray,
    *,
    seed: int,
    epoch: int,
    shuffle: bool = True,
    block: ShuffleBlock = SHARDS_PER_BLOCK,
) -> np.ndarray:
    """The whole of `EpochOrder`, (n,) int64."""
    epoch_order = EpochOrder(shard_sizes, seed=seed, epoch=epoch, shuffle=shuffle, block=block)
    return epoch_order.take(0, len(epoch_order))


def batch_count(
    samples: int, batch_size: int, world_size: int, *, rank: int = 0, drop_last: bool = True
) -> int:
    """Batches of a rank from `samples` samples.

    With `drop_last` an incomplete global batch is dropped, and all ranks have equally many batches.
    Without it, the first ranks have one more than the others if samples are left for them.
    """
    whole, rest = divmod(samples, batch_size * world_size)
    return whole + int(not drop_last and rest > rank * batch_size)


def batch_positions(
    batch: int, consumed: int, batch_size: int, rank: int, world_size: int
) -> slice:
    """The positions in the global order of a rank's batch.

    `batch` counts from 0 after the first `consumed` samples of the epoch. The slice of a short last
    batch reaches past the end of the order.
    """
    start = consumed + (batch * world_size + rank) * batch_size
    return slice(start, start + batch_size)


def rank_positions(
    begin: int, end: int, consumed: int, batch_size: int, rank: int, world_size: int
) -> np.ndarray:
    """The positions (m,) int64 from `begin` to `end` of a rank's batches; see `batch_positions`."""

    def before(position: int) -> int:
        """The rank's samples before a position of the order."""
        batches, rest = divmod(max(position - consumed - rank * batch_size, 0), stride)
        return batches * batch_size + min(rest, batch_size)

    stride = world_size * batch_size
    batches, rest = np.divmod(np.arange(before(begin), before(end)), batch_size)
    return consumed + rank * batch_size + batches * stride + rest


def mixing(order: EpochOrder, batch_size: int) -> float:
    """How well an order mixes shards: distinct shards per batch, relative to a uniform shuffle.

    1 is a uniform shuffle's value. Counted on some whole batches, evenly spread over the epoch.
    """
    batches = len(order) // batch_size
    if not batches:
        raise InvalidInput(
            f"the order must hold at least one batch of {batch_size} samples, got {len(order)}"
        )
    ends = np.cumsum(order.shard_sizes)
    chosen = np.unique(np.linspace(0, batches - 1, _MIXING_BATCHES).astype(np.int64))
    parts = [order.take(batch * batch_size, (batch + 1) * batch_size) for batch in chosen.tolist()]
    seen = np.mean([len(np.unique(np.searchsorted(ends, part, side="right"))) for part in parts])
    uniform = np.sum(1 - (1 - order.shard_sizes / len(order)) ** batch_size)
    return float(seen / uniform)

"""The order in which an epoch visits the samples: pure functions of integers.

The order is global: it depends on the shards, the seed and the epoch, not on the ranks. Each rank
reads its slice of every global batch, so a run that resumes with another world size continues in
the same order. The samples that do not fill the last global batch are dropped, and all ranks get
the same number of batches; or they are kept, and each rank gets its slice of what there is, which
may be a short batch or none.
"""

from collections.abc import Sequence

import numpy as np

from ..kernels.errors import InvalidInput

SHARDS_PER_BLOCK = 16
"""Shards shuffled together. With Conceptual Captions' 10 000 images per shard: 160 000 images."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SHARDS, _SAMPLES = 0, 1
"""Purposes of the random streams: the order of the shards, and of the samples in a block."""


def _mix(z: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser, as in `kernels.plan`: equal on every NumPy version."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _keys(n: int, seed: int, epoch: int, purpose: int) -> np.ndarray:
    """(n,) uint64 random keys: sorting by them shuffles."""
    with np.errstate(over="ignore"):
        start = _mix(np.array([seed & (2**64 - 1)], np.uint64) + _GOLDEN)
        start = _mix(start + np.uint64(epoch & (2**64 - 1)) + _GOLDEN)
        start = _mix(start + np.uint64(purpose) + _GOLDEN)
        return _mix(start + (np.arange(n, dtype=np.uint64) + np.uint64(1)) * _GOLDEN)


def order(
    shard_sizes: Sequence[int],
    *,
    seed: int,
    epoch: int,
    shuffle: bool = True,
    block: int = SHARDS_PER_BLOCK,
) -> np.ndarray:
    """The global order of an epoch: a permutation (n,) int64 of the samples.

    Samples are numbered shard after shard; `shard_sizes` are the samples of each. The shards are
    shuffled and taken `block` at a time, and the samples of each block are shuffled together: a
    reader needs at most `block` shards at once. With at most `block` shards the order is uniform.
    Raises InvalidInput for a `block` below 1.
    """
    if block < 1:
        raise InvalidInput(f"`block` must be at least 1 shard, got {block}")
    sizes = np.asarray(shard_sizes, np.int64)
    if not shuffle:
        return np.arange(sizes.sum(), dtype=np.int64)
    starts = np.cumsum(sizes) - sizes
    shards = np.argsort(_keys(len(sizes), seed, epoch, _SHARDS), kind="stable")
    keys = _keys(int(sizes.sum()), seed, epoch, _SAMPLES)
    parts = []
    for first in range(0, len(shards), block):
        members = shards[first : first + block]
        samples = np.concatenate([np.arange(starts[s], starts[s] + sizes[s]) for s in members])
        parts.append(samples[np.argsort(keys[samples], kind="stable")])
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


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


def mixing(positions: np.ndarray, shard_sizes: Sequence[int], batch_size: int) -> float:
    """How well an order mixes shards: distinct shards per batch, relative to a uniform shuffle.

    1 is a uniform shuffle's value. `positions` (n,) is an order, of which whole batches count.
    """
    sizes = np.asarray(shard_sizes, np.float64)
    total = sizes.sum()
    batches = len(positions) // batch_size
    if not batches:
        raise InvalidInput(
            f"`positions` must hold at least one batch of {batch_size} samples, got "
            f"{len(positions)}"
        )
    shard_of = np.repeat(np.arange(len(sizes)), sizes.astype(np.int64))
    shard_of = shard_of[positions[: batches * batch_size]].reshape(batches, batch_size)
    seen = np.mean([len(np.unique(batch)) for batch in shard_of])
    uniform = np.sum(1 - (1 - sizes / total) ** batch_size)
    return float(seen / uniform)

"""In which order an epoch visits the samples: pure functions of numbers.

The order is global: it depends on the shards, the seed and the epoch, not on the ranks. A rank
reads its slice of every global batch, so that all ranks get exactly the same number of batches, and
a run that resumes with another world size goes on in the same order.
"""

from collections.abc import Sequence

import numpy as np

from ..kernels.errors import InvalidInput

SHARDS_PER_BLOCK = 16
"""How many shards are shuffled together: at Conceptual Captions' 10 000 images a shard, 160 000
images."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser, as in the plan: the same on every NumPy version."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _keys(n: int, seed: int, epoch: int, purpose: int) -> np.ndarray:
    """(n,) uint64: sorting by them shuffles."""
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
    """The epoch's global order: a permutation (n,) int64 of the samples, which are numbered shard
    after shard.

    Shards are shuffled, taken `block` at a time, and the samples of each such block shuffled among
    each other: a reader needs only `block` shards at hand at a time. With at most `block` shards
    the order is uniform. ValueError for a `block` below 1.
    """
    if block < 1:
        raise InvalidInput(f"block is {block}; at least one shard must be read at a time")
    sizes = np.asarray(shard_sizes, np.int64)
    if not shuffle:
        return np.arange(sizes.sum(), dtype=np.int64)
    starts = np.cumsum(sizes) - sizes
    shards = np.argsort(_keys(len(sizes), seed, epoch, 0), kind="stable")
    keys = _keys(int(sizes.sum()), seed, epoch, 1)
    parts = []
    for first in range(0, len(shards), block):
        members = shards[first : first + block]
        samples = np.concatenate([np.arange(starts[s], starts[s] + sizes[s]) for s in members])
        parts.append(samples[np.argsort(keys[samples], kind="stable")])
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def batch_count(samples: int, batch_size: int, world_size: int) -> int:
    """Batches that every rank gets of `samples`; what does not fill a global batch waits for
    another epoch's order."""
    return samples // (batch_size * world_size)


def batch_positions(
    batch: int, consumed: int, batch_size: int, rank: int, world_size: int
) -> slice:
    """Where in the global order a rank's batch lies: number `batch` after the `consumed` samples of
    the epoch."""
    start = consumed + (batch * world_size + rank) * batch_size
    return slice(start, start + batch_size)


def mixing(positions: np.ndarray, shard_sizes: Sequence[int], batch_size: int) -> float:
    """How well an order mixes shards: distinct shards a batch over what a uniform shuffle gives, so
    about 1 at best.

    `positions` (n,) is an order; whole batches of it are counted.
    """
    sizes = np.asarray(shard_sizes, np.float64)
    total = sizes.sum()
    batches = len(positions) // batch_size
    if not batches:
        raise InvalidInput(f"an order of {len(positions)} samples holds no batch of {batch_size}")
    shard_of = np.repeat(np.arange(len(sizes)), sizes.astype(np.int64))[
        positions[: batches * batch_size]
    ]
    seen = np.mean([len(np.unique(batch)) for batch in shard_of.reshape(batches, batch_size)])
    uniform = np.sum(1 - (1 - sizes / total) ** batch_size)
    return float(seen / uniform)

"""Sample ids: the numbers that seed the samples' plans, equal for every loader and machine.

A sample's id is the hash of its key (`sample_id`). Data sets that number anew in every shard have
the same keys in all shards, and such samples would get equal plans. So, by `keys_repeat`, the ids
of all samples of such a data set take in their shards' names as well (`with_shard`).
"""

import hashlib
import re
from collections.abc import Iterable, Sequence

import numpy as np

from ..order import mix
from ..shards.names import redact_url

SKETCH = 64
"""Ids of a shard that are compared with those of the other shards: the smallest ones. Ids are
hashes, so these are a random choice of keys, and the same one in every shard that has them."""


def sample_id(key: str) -> int:
    """The 63-bit hash of a sample's key that seeds its plan, equal on every machine and loader."""
    return _hash(key) >> 1


def sketch(ids: np.ndarray) -> np.ndarray:
    """The `SKETCH` smallest of a shard's ids (n,) int64, each once, ascending."""
    ids = np.unique(ids) if len(ids) <= 2 * SKETCH else np.partition(ids, 2 * SKETCH)[: 2 * SKETCH]
    return np.unique(ids)[:SKETCH]


def keys_repeat(sketches: Iterable[np.ndarray]) -> bool:
    """Whether keys repeat between shards, of each of which `sketch` is given.

    The rule: two shards have an id in common among their smallest `SKETCH`. Shards that share a
    quarter of their keys do with a probability above 99.99 %; a single key that occurs twice in a
    large data set usually is not found, and its two samples share a plan.
    """
    ids = np.concatenate([np.empty(0, np.int64), *sketches])
    return len(np.unique(ids)) < len(ids)


def shard_codes(paths: Sequence[str]) -> np.ndarray:
    """(shards,) uint64: the part of its samples' ids that a shard's name makes.

    The name is the address's last part, without what redacting hides, so that moving or copying the
    shards to a server or into a .beton file keeps it; of shards of one name the second counts as
    "NAME#2", in the order of `paths`.
    """
    seen: dict[str, int] = {}
    codes = np.empty(len(paths), np.uint64)
    for number, path in enumerate(paths):
        name = re.split(r"[/\\]", redact_url(path).rstrip("/\\"))[-1]
        seen[name] = seen.get(name, 0) + 1
        codes[number] = _hash(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return codes


def with_shard(ids: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """(n,) int64 ids of samples whose keys have `ids` (n,) int64, in shards of `codes` (n,)."""
    return (mix(ids.astype(np.uint64) + codes) >> np.uint64(1)).astype(np.int64)


def _hash(text: str) -> int:
    data = text.encode("utf-8", "surrogateescape")  # a tar's names may be in any encoding
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")

"""The samples that cannot be used: which, where and why; counted, written down and bounded."""

import collections
import dataclasses
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass

from ..kernels.errors import InvalidInput, MaskCoError
from .system.files import write_json


class TooManyBadSamples(MaskCoError, RuntimeError):
    """More samples failed to decode than the run tolerates."""


@dataclass(frozen=True, kw_only=True)
class BadSample:
    """One sample that is not used."""

    shard: str
    key: str
    """The member's name without its suffix, or "" for the shard as a whole."""
    reason: str
    """Short enough to count by."""
    found: str
    """"index" where the header told, "decode" where decoding failed."""


class Quarantine:
    """Collects bad samples from any thread. A loader replaces them, so that no batch is short.

    `max_share` bounds the samples that fail in decoding, as a share of those asked for: a healthy
    crawl has few, and a loader that replaced most of a shard would train on copies. The bound
    applies from the 50th failure on.
    """

    PATIENCE = 50

    def __init__(self, found_at_index: Iterable[BadSample] = (), *, max_share: float = 0.1) -> None:
        if not 0 < max_share <= 1:
            raise InvalidInput(
                f"max_bad_share is {max_share}; it wants 0 < share <= 1 of the samples"
            )
        self.max_share = max_share
        self.entries = list(found_at_index)
        self._failed: dict[int, str] = {}
        self._noted: set[BadSample] = set()
        self._lock = threading.Lock()
        self._asked = 0

    def add(self, index: int, sample: BadSample, usable: int) -> None:
        """Record that sample `index` of `usable` failed to decode; TooManyBadSamples beyond
        `max_share` of those."""
        with self._lock:
            if index in self._failed:
                return
            self._failed[index] = sample.reason
            self.entries.append(sample)
            failed = len(self._failed)
        if failed == usable or (failed >= self.PATIENCE and failed > self.max_share * usable):
            raise self.too_many(usable)

    def note(self, sample: BadSample) -> None:
        """Record one, once, that is left out before anybody asks for it."""
        with self._lock:
            if sample not in self._noted:
                self._noted.add(sample)
                self.entries.append(sample)

    def too_many(self, usable: int) -> TooManyBadSamples:
        """The error that says how many of `usable` samples failed to decode, and names the last."""
        last = next(entry for entry in reversed(self.entries) if entry.found == "decode")
        return TooManyBadSamples(
            f"{len(self._failed)} of {usable} samples do not decode, more than the {self.max_share:.0%} that "
            f"max_bad_share allows; the last was {last.key} in {last.shard}: {last.reason}. "
            "See quarantine.json for the others; if the shards are as they should be, raise max_bad_share"
        )

    def __contains__(self, index: int) -> bool:
        """Whether sample `index` is known not to decode."""
        return index in self._failed

    def __len__(self) -> int:
        return len(self.entries)

    def by_reason(self) -> dict[str, int]:
        """How many samples each reason took, most first."""
        counts = collections.Counter(entry.reason for entry in self.entries)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def report(self) -> dict:
        """What `write` writes: the total, the counts by reason, and every sample with its shard,
        key and reason."""
        with self._lock:
            entries = sorted(self.entries, key=lambda entry: (entry.shard, entry.key))
        return {
            "quarantined": len(entries),
            "by_reason": self.by_reason(),
            "samples": [dataclasses.asdict(entry) for entry in entries],
        }

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the report as JSON."""
        write_json(path, self.report())

"""The quarantine: bad samples with shard, key and reason, and a bound on their share."""

import collections
import copy
import itertools
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..kernels.errors import InvalidInput, MaskCoError
from .shards.names import redact_url
from .system.files import write_json
from .system.text import printable


class TooManyBadSamples(MaskCoError, RuntimeError):
    """More samples failed to decode than `max_bad_share` tolerates."""


@dataclass(frozen=True, kw_only=True)
class BadSample:
    """A sample that is not used, or not whole."""

    shard: str
    """The shard's address, which may hold secrets: see `Quarantine.report`."""
    key: str
    """The member's name without its suffix, or "" for the shard as a whole."""
    reason: str
    """A few words, equal for equal causes: `Quarantine.by_reason` counts by them."""
    found: str
    """"index" (found while indexing), "decode" (decoding failed), or "field" (the sample is used,
    and a damaged field of it is None)."""


@dataclass(frozen=True, kw_only=True)
class News:
    """What the quarantine of another process has found; see `Quarantine.news`."""

    entries: tuple[BadSample, ...] = ()
    failed: tuple[int, ...] = ()
    """Numbers of samples that failed to decode."""
    decoded: int = 0
    """Samples that decoded."""


class Quarantine:
    """Collects bad samples from any thread and ends a run in which too many fail to decode.

    The rule: tried samples are those that decoded plus those that failed. The run ends at a failure
    after which at least `MIN_FAILURES` (50) samples have failed and they are more than `max_share`
    of the samples tried so far. Fewer failures never end it, so that a small dataset with a few bad
    files still trains; but it ends when every sample of the dataset has failed.

    All epochs of a loader count together. A failed sample counts once and is never tried again;
    its substitute counts as tried. Samples excluded by the index do not count. Without a bound, a
    loader would replace most of a damaged shard and train on copies of a few images.
    """

    MIN_FAILURES = 50

    def __init__(self, found_at_index: Sequence[BadSample] = (), *, max_share: float = 0.1) -> None:
        """`found_at_index`: read where it lies whenever it is needed. `max_share` in (0, 1]."""
        if not 0 < max_share <= 1:
            raise InvalidInput(
                f"`max_bad_share` must be in (0, 1], got {max_share}: the largest share of the "
                "tried samples that may fail to decode"
            )
        self.max_share = max_share
        self._excluded = found_at_index
        self._found: list[BadSample] = []
        self._failed: set[int] = set()
        self._noted: set[BadSample] = set()
        self._decoded = 0
        self._sent_entries = 0
        self._sent_decoded = 0
        self._unsent_failures: list[int] = []
        """What `news` has said, and what it has yet to say."""
        self._lock = threading.Lock()

    @property
    def entries(self) -> list[BadSample]:
        """What the index excluded, then what was found later."""
        return [*self._excluded, *self._found]

    @property
    def tried(self) -> int:
        """Samples tried so far: decoded (again in each epoch) or failed."""
        return self._decoded + len(self._failed)

    def count_decoded(self, samples: int = 1) -> None:
        """Count samples that decoded."""
        with self._lock:
            self._decoded += samples

    def add(self, index: int, sample: BadSample, usable: int) -> None:
        """Record that sample `index` of a dataset of `usable` samples failed to decode.

        Raises TooManyBadSamples by the rule above.
        """
        with self._lock:
            if index in self._failed:
                return
            self._failed.add(index)
            self._unsent_failures.append(index)
            self._found.append(sample)
            failed = len(self._failed)
            too_many = failed >= self.MIN_FAILURES and failed > self.max_share * self.tried
        if too_many or failed == usable:
            raise self.too_many()

    def note(self, sample: BadSample) -> None:
        """Record, once, a sample that is excluded before a loader tries it."""
        with self._lock:
            if sample not in self._noted:
                self._noted.add(sample)
                self._found.append(sample)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the lock."""
        with self._lock:
            return {name: copy.copy(value) for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def news(self) -> "News":
        """What was found since the last call, for another process's `absorb`."""
        with self._lock:
            entries, decoded = len(self._found), self._decoded
            news = News(
                entries=tuple(self._found[self._sent_entries :]),
                failed=tuple(self._unsent_failures),
                decoded=decoded - self._sent_decoded,
            )
            self._sent_entries, self._sent_decoded = entries, decoded
            self._unsent_failures.clear()
        return news

    def absorb(self, news: "News") -> None:
        """Take over what the quarantine of another process has found."""
        with self._lock:
            self._found += [entry for entry in news.entries if entry not in self._found]
            self._failed.update(news.failed)
            self._decoded += news.decoded

    def too_many(self) -> TooManyBadSamples:
        """The error that ends the run: counts, the last failure and what to do."""
        with self._lock:
            failed, tried = len(self._failed), self.tried
            last = next(entry for entry in reversed(self._found) if entry.found == "decode")
        return TooManyBadSamples(
            f"{failed} of {tried} samples tried do not decode; max_bad_share allows "
            f"{self.max_share:.0%}. The last was {last.key} in {redact_url(last.shard)}: "
            f"{last.reason}. See "
            "quarantine.json for the others. Replace the damaged shards, or raise max_bad_share"
        )

    def __contains__(self, index: int) -> bool:
        """Whether sample `index` failed to decode."""
        return index in self._failed

    def __len__(self) -> int:
        return len(self._excluded) + len(self._found)

    def by_reason(self) -> dict[str, int]:
        """Number of samples by reason, most frequent first."""
        counts = collections.Counter(
            entry.reason for entry in itertools.chain(self._excluded, self._found)
        )
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def report(self) -> dict:
        """The contents of quarantine.json: total, counts by reason, and each sample's entry.

        Addresses are without secrets, and texts without what a terminal would obey.
        """
        with self._lock:
            entries = sorted(self.entries, key=lambda entry: (entry.shard, entry.key))
        return {
            "quarantined": len(entries),
            "by_reason": self.by_reason(),
            "samples": [
                {
                    "shard": printable(redact_url(entry.shard)),
                    "key": printable(entry.key),
                    "reason": entry.reason,
                    "found": entry.found,
                }
                for entry in entries
            ],
        }

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the report as JSON."""
        write_json(path, self.report())

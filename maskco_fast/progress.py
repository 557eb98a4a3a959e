"""The progress lines of long work: how much is done, at what rate, and the time left."""

import sys
import time

from maskco_fast.errors import say

TERMINAL_SECONDS, LOG_SECONDS = 0.5, 10.0
"""Least time between two lines: on a terminal, and in a log file."""


class ProgressLines:
    """A `loaders.system.progress.Progress` that prints lines to stderr; one object for all stages
    of a command."""

    def __init__(self) -> None:
        self._began: dict[str, tuple[float, int]] = {}
        self._printed = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Print "written 300/1000, 0:12 left", unless a line was printed a moment ago."""
        now = time.monotonic()
        stage = what.partition(",")[
            0
        ]  # "shards indexed, 812 samples": what follows the comma changes
        began, first = self._began.setdefault(stage, (now, done - 1))
        if now - self._printed < (TERMINAL_SECONDS if sys.stderr.isatty() else LOG_SECONDS):
            return
        self._printed = now
        rate = (done - first) / max(now - began, 1e-9)
        left = f", {duration((total - done) / rate)} left" if done < total and now > began else ""
        say(f"{done}/{total} {what}{left}")


def duration(seconds: float) -> str:
    """ "0:42 min" or "3:05:10 h"."""
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes // 60}:{minutes % 60:02}:{rest:02} h"
        if minutes >= 60
        else f"{minutes}:{rest:02} min"
    )

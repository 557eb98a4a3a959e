"""Progress lines of a long task: the items done, their total and the time left."""

import sys
import time

from maskco_fast.errors import say

TERMINAL_SECONDS = 0.5
LOG_SECONDS = 10.0
"""Least time between two progress lines, on a terminal and in a log file."""


class ProgressLines:
    """Prints progress lines to stderr; a `loaders.system.progress.Progress`.

    One object serves all stages of a command.
    """

    def __init__(self) -> None:
        self._began: dict[str, tuple[float, int]] = {}
        self._printed = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Print "300/1000 images written, 0:12 min left"; at most one line an interval."""
        now = time.monotonic()
        # A stage is named by the text before the comma: in "shards indexed, 812 samples" the rest
        # changes from call to call.
        stage = what.partition(",")[0]
        began, first = self._began.setdefault(stage, (now, done - 1))
        if now - self._printed < (TERMINAL_SECONDS if sys.stderr.isatty() else LOG_SECONDS):
            return
        self._printed = now
        rate = (done - first) / max(now - began, 1e-9)
        left = f", {duration((total - done) / rate)} left" if done < total and now > began else ""
        say(f"{done}/{total} {what}{left}")


def duration(seconds: float) -> str:
    """Format seconds as "0:42 min" or "3:05:10 h"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02} min"
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02} h"

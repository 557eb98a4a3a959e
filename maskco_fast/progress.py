"""Progress of a long task, the items done, their total and the time left: a bar on a terminal,
lines elsewhere."""

import contextlib
import shutil
import sys
import time

from maskco_fast.errors import CLEAR_LINE, draws_bars, say
from maskco_fast.loaders.shards.names import redact_text
from maskco_fast.loaders.system.text import printable

TERMINAL_SECONDS = 0.5
LOG_SECONDS = 10.0
"""Least time between two progress lines, on a terminal and in a log file."""
BAR_WIDTH = 24
"""Length of the bar, characters."""


class ProgressLines:
    """Prints progress to stderr, as a bar where that is a terminal and as lines elsewhere; a
    `loaders.system.progress.Progress`.

    One object serves all stages of a command.
    """

    def __init__(self) -> None:
        self._began: dict[str, tuple[float, int]] = {}
        self._printed = time.monotonic()
        self._drawn = ""  # the stage whose bar is on the terminal, not at its end

    def __call__(self, what: str, done: int, total: int) -> None:
        """Print "300/1000 images written, 0:12 min left"; at most once an interval.

        A bar that is drawn is drawn full at the end too, and stays.
        """
        now = time.monotonic()
        # A stage is named by the text before the comma: in "shards indexed, 812 samples" the rest
        # changes from call to call.
        stage = what.partition(",")[0]
        began, first = self._began.setdefault(stage, (now, done - 1))
        bars = draws_bars()
        ends_bar = bars and done >= total and stage == self._drawn
        interval = TERMINAL_SECONDS if sys.stderr.isatty() else LOG_SECONDS
        if now - self._printed < interval and not ends_bar:
            return
        self._printed = now
        rate = (done - first) / max(now - began, 1e-9)
        left = f", {duration((total - done) / rate)} left" if done < total and now > began else ""
        text = f"{done}/{total} {what}{left}"
        if bars:
            self._drawn = "" if done >= total else stage
            draw_bar(done / max(total, 1), text, ends=done >= total)
        else:
            say(text)


def draw_bar(share: float, text: str, *, ends: bool) -> None:
    """Draw a bar over the terminal's line; `share` of it is full. `ends`: leave it there.

    The cursor stays at the start of the line, so that whatever is printed next replaces the bar.
    """
    full = round(BAR_WIDTH * min(max(share, 0.0), 1.0))
    line = f"{'█' * full}{'░' * (BAR_WIDTH - full)} {printable(redact_text(text))}"
    fits = line[: shutil.get_terminal_size().columns - 1]
    with contextlib.suppress(OSError):  # nobody reads any more: the terminal is closed
        sys.stderr.write(f"{CLEAR_LINE}{fits}" + ("\n" if ends else "\r"))
        sys.stderr.flush()


def duration(seconds: float) -> str:
    """Format seconds as "0:42 min" or "3:05:10 h"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02} min"
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02} h"

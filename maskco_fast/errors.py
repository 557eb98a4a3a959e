"""User errors on the command line: printed as one line; anything else keeps its traceback."""

import contextlib
import os
import select
import sys
import warnings
from collections.abc import Callable

from maskco_fast.kernels.errors import MaskCoError
from maskco_fast.loaders.shards.names import redact_text
from maskco_fast.loaders.system.text import printable

SUCCESS = 0
FAILURE = 1
WRONG_OPTIONS = 2
"""Exit codes of every command."""


def say(text: str) -> None:
    """Print a line to the user, on stderr.

    Names from a crawl cannot command the terminal, and addresses lose their secrets. A run goes on
    if nobody reads its lines any more, as when the terminal is closed. On a terminal the line
    replaces a progress bar.
    """
    clear = CLEAR_LINE if draws_bars() else ""
    safe = "\n".join(map(printable, redact_text(text).split("\n")))
    with contextlib.suppress(OSError):
        print(f"{clear}maskco-fast: {safe}", file=sys.stderr, flush=True)


CLEAR_LINE = "\r\x1b[K"
"""Moves a terminal's cursor to the start of the line and clears that."""


def draws_bars() -> bool:
    """Whether stderr is a terminal on which a line can be drawn over."""
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def report_user_errors(command: Callable[[], int]) -> int:
    """Run a command and return its exit code; print user errors as one line on stderr.

    A `MaskCoError` or an `OSError` (a missing file, a full disk) returns `FAILURE`, and so does a
    closed standard output, without a line. Warnings become lines too.
    """
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
        try:
            return command()
        except (MaskCoError, OSError) as error:
            if isinstance(error, BrokenPipeError) and _output_is_closed():
                return FAILURE
            say(f"{_rank()}error: {error}")
            return FAILURE


def _output_is_closed() -> bool:
    """Whether nobody reads standard output any more, as after `| head`; it then leads nowhere."""
    try:
        descriptor = sys.stdout.fileno()
        poll = select.poll()
    except (AttributeError, OSError):  # no file, or Windows
        return False
    poll.register(descriptor, select.POLLOUT)
    if not any(state & select.POLLERR for _, state in poll.poll(0)):
        return False
    # What is left in the buffer is written at the end of the process.
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return True


def _rank() -> str:
    """The prefix that names this process; empty in a run of one process."""
    return f"rank {os.environ['RANK']}: " if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""

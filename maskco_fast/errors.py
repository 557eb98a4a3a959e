"""User errors on the command line: printed as one line; anything else keeps its traceback."""

import os
import sys
import warnings
from collections.abc import Callable

from maskco_fast.kernels.errors import MaskCoError

SUCCESS = 0
FAILURE = 1
WRONG_OPTIONS = 2
"""Exit codes of every command."""


def say(text: str) -> None:
    """Print a line to the user, on stderr."""
    print(f"maskco-fast: {text}", file=sys.stderr, flush=True)


def report_user_errors(command: Callable[[], int]) -> int:
    """Run a command and return its exit code; print user errors as one line on stderr.

    A `MaskCoError` or an `OSError` (a missing file, a full disk) returns `FAILURE`. Warnings become
    lines too.
    """
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
        try:
            return command()
        except (MaskCoError, OSError) as error:
            say(f"{_rank()}error: {error}")
            return FAILURE


def _rank() -> str:
    """The prefix that names this process; empty in a run of one process."""
    return f"rank {os.environ['RANK']}: " if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""

"""User errors on the command line: printed as one line; anything else keeps its traceback."""

import os
import sys
import warnings
from collections.abc import Callable

from maskco_fast.kernels.errors import MaskCoError

SUCCESS, FAILURE = 0, 1
"""Exit codes of every command; 2 means that the options are wrong."""


def say(text: str) -> None:
    """Print a line to the user, on stderr."""
    print(f"maskco-fast: {text}", file=sys.stderr, flush=True)


def report_user_errors(command: Callable[[], int]) -> int:
    """Run a command and return its exit code; a `MaskCoError` or an `OSError` becomes a line on
    stderr and `FAILURE`.

    Warnings become lines too.
    """
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
        try:
            return command()
        except (MaskCoError, OSError) as error:
            say(f"{_rank()}error: {error}")
            return FAILURE


def _rank() -> str:
    """Names the process in a run of several."""
    return f"rank {os.environ['RANK']}: " if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""

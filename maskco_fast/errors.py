"""Which errors are the user's to mend: those are told in a line, all others keep their traceback."""

import os
import sys
import warnings
from collections.abc import Callable

from maskco_fast.loaders import TooManyBadSamples
from maskco_fast.training.checkpoint import CheckpointError
from maskco_fast.training.distributed import PeerLost
from maskco_fast.training.run_lock import RunFolderInUse
from maskco_fast.training.trainer import NonFiniteLoss

NAMED = (CheckpointError, NonFiniteLoss, PeerLost, RunFolderInUse, TooManyBadSamples, ImportError, OSError, ValueError)
"""ImportErrors and ValueErrors only where this package raises them."""

SUCCESS, FAILURE = 0, 1
"""Exit codes of every command; 2 is for options that do not fit."""


def say(text: str) -> None:
    """A line to the user, on stderr."""
    print(f"maskco-fast: {text}", file=sys.stderr, flush=True)


def named_errors(command: Callable[[], int]) -> int:
    """Run a command; bad input (shards, samples, settings, checkpoints, a full disk) becomes a line and `FAILURE`.

    Warnings become lines too.
    """
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
        try:
            return command()
        except NAMED as error:
            if isinstance(error, ImportError | ValueError) and not _is_ours(error):
                raise  # others' speak of the program, not of the input: their traceback is wanted
            say(f"{_rank()}error: {error}")
            return FAILURE


def _rank() -> str:
    """Which of several processes speaks."""
    return f"rank {os.environ['RANK']}: " if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""


def _is_ours(error: BaseException) -> bool:
    """Whether this package raised the error."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    module = frame.tb_frame.f_globals.get("__name__", "") if frame is not None else ""
    return module.partition(".")[0] == __name__.partition(".")[0]

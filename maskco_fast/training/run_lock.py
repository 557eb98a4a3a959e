"""One run folder, one job: a lock that the operating system drops when its process ends, however it
ends."""

import contextlib
import errno
import fcntl
import os
import pathlib
import socket
import time
import warnings
from collections.abc import Iterator

from maskco_fast.kernels.errors import MaskCoError

PATIENCE = 10.0
"""Seconds that a job waits for one that is just ending, such as its own former start that was
killed."""

_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


class RunFolderInUse(MaskCoError, RuntimeError):
    """Another job writes into the run folder."""


@contextlib.contextmanager
def lock_run_folder(folder: pathlib.Path, *, patience: float = PATIENCE) -> Iterator[None]:
    """Hold `folder`, which is made where it is absent; `lock` in it tells by whom.

    RunFolderInUse names the other holder if it has not let go within `patience` seconds. A file
    system without locks gets a warning.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lock"
    with path.open("a+") as file:
        deadline = time.monotonic() + patience
        while not _locked(file.fileno(), path):
            if time.monotonic() > deadline:
                file.seek(0)
                holder = file.read().strip() or "another job"
                raise RunFolderInUse(
                    f"{folder} is in use by {holder}: end that job, or name another --run-dir"
                )
            time.sleep(0.1)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def _locked(descriptor: int, path: pathlib.Path) -> bool:
    """Whether the lock is ours now. It belongs to the open file: closing that, or dying, gives it
    back."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        warnings.warn(
            f"{path}: no locks on this file system ({error}); take care that one job uses it",
            stacklevel=3,
        )
    return True

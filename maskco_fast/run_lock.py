"""The lock of a run folder, which keeps two jobs from writing into it.

The operating system releases the lock when its process ends, even after SIGKILL.
"""

import contextlib
import errno
import os
import pathlib
import socket
import stat
import time
import warnings
from collections.abc import Iterator
from typing import TextIO

from maskco_fast.kernels.errors import InvalidInput, MaskCoError
from maskco_fast.loaders.system.portable import try_lock

PATIENCE = 10.0
"""Seconds to wait for a holder that is about to end, such as a killed earlier start of this job."""

_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""Errors of file systems without locks."""


class RunFolderInUse(MaskCoError, RuntimeError):
    """Another job holds the run folder's lock."""


@contextlib.contextmanager
def lock_run_folder(folder: pathlib.Path, *, patience: float = PATIENCE) -> Iterator[None]:
    """Hold the lock of `folder`; makes the folder if it does not exist.

    The file `lock` in it names the holder. Raises RunFolderInUse, with the holder's name, if the
    lock is not free within `patience` seconds. On a file system without locks, warns and continues.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lock"
    with _open_lock(path) as file:
        deadline = time.monotonic() + patience
        while not _try_lock(file.fileno(), path):
            if time.monotonic() > deadline:
                file.seek(0)
                holder = file.read().strip() or "another job"
                raise RunFolderInUse(
                    f"{folder} is in use by {holder}. End that job, or name another --run-dir."
                )
            time.sleep(0.1)
        file.seek(0)
        file.truncate()
        file.write(f"{_CONTENT}{os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def _open_lock(path: pathlib.Path) -> TextIO:
    """Open the lock file, created if needed. Raises InvalidInput where it is another file."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    reason = "a link"
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EMLINK, errno.ENXIO):
            raise
    else:
        facts = os.fstat(descriptor)
        begin = b"?"
        if stat.S_ISREG(facts.st_mode) and facts.st_nlink == 1:
            begin = os.read(descriptor, len(_CONTENT))
        if begin in (b"", _CONTENT.encode()):
            return os.fdopen(descriptor, "r+")
        reason = "another program's"
        os.close(descriptor)
    raise InvalidInput(
        f"{path} must be the lock of a run, which would be written into, and is {reason}: remove "
        "it, or name another --run-dir."
    )


_CONTENT = "process "
"""The first word of a lock file."""


def _try_lock(descriptor: int, path: pathlib.Path) -> bool:
    """Take the lock if it is free; returns whether this process may go on.

    The lock belongs to the open file description: closing the file or ending the process frees it.
    """
    try:
        return try_lock(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        warnings.warn(
            f"{path}: this file system has no locks ({error}). "
            "Make sure that only one job uses the run folder.",
            stacklevel=3,
        )
    return True

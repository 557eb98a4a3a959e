"""Locks between processes, also of hosts that share a home folder: one compiles, others wait."""

import contextlib
import io
import logging
import pathlib
import time

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

_log = logging.getLogger(__name__)

PATIENCE = 600.0
"""Longest wait for another process, seconds; then the lock is taken for that of a dead host."""
_POLL = 0.05


def lock_file(path: pathlib.Path, patience: float = PATIENCE) -> io.BufferedWriter | None:
    """Lock the file at `path`, created if needed, until the result is closed.

    Waits while another process holds the lock; the system releases it where that process is killed.
    None where the file system has no locks, where the file cannot be written, or after `patience`
    seconds: the caller then does the work again, which is safe.
    """
    if fcntl is None:
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError:
        return None
    deadline = time.monotonic() + patience
    waited = False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if time.monotonic() > deadline:
                break
        except OSError:  # no locks here, as on some network file systems
            break
        if not waited:
            waited = True
            _log.info("waiting for another process, which compiles %s", path.name.partition("-")[0])
        time.sleep(_POLL)
    with contextlib.suppress(OSError):
        file.close()
    return None

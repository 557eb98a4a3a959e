"""What Linux and macOS offer and other systems do not, with the nearest thing that they have."""

import os
import signal
import subprocess
import tempfile
import threading

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_SEEKING = threading.Lock()
"""Held while the place of a file is moved, where the system cannot read at an offset."""


def read_at_offset(file: int, size: int, offset: int) -> bytes:
    """`os.pread`: up to `size` bytes at `offset` of an open file, from any thread."""
    if hasattr(os, "pread"):
        return os.pread(file, size, offset)
    with _SEEKING:
        os.lseek(file, offset, os.SEEK_SET)
        return os.read(file, size)


def write_at_offset(file: int, data: bytes | memoryview, offset: int) -> int:
    """`os.pwrite`: write to `offset` of an open file; returns the bytes written."""
    if hasattr(os, "pwrite"):
        return os.pwrite(file, data, offset)
    with _SEEKING:
        os.lseek(file, offset, os.SEEK_SET)
        return os.write(file, data)


def sync_data(file: int) -> None:
    """`os.fdatasync`, or `os.fsync` where there is none."""
    getattr(os, "fdatasync", os.fsync)(file)


def try_lock(file: int, *, shared: bool = False) -> bool:
    """Lock an open file until it is closed; False where another lock excludes it.

    Without `flock` there are no locks, and the answer is True: Windows keeps an open file from
    being removed, but two jobs may write into one folder.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock(file: int) -> None:
    """Wait for the exclusive lock of an open file, held until it is closed; see `try_lock`."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX)


def shared_memory(name: str) -> int:
    """Descriptor of a file without a name, in memory where the system can, for child processes."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def kill_group(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process that was started in a session of its own, and those that it started."""
    if hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


def known_signals(*names: str) -> tuple[signal.Signals, ...]:
    """Those of the signals that this system has, by name."""
    return tuple(getattr(signal, name) for name in names if hasattr(signal, name))

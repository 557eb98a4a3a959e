"""Write files atomically: under a temporary name, synced, then renamed into place."""

import contextlib
import errno
import json
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator
from typing import IO, Any

TEMPORARY_SUFFIX = ".maskco-tmp"
"""Suffix of unfinished files. A crash may leave one behind; nothing reads it."""


@contextlib.contextmanager
def name_full_disk(path: str | os.PathLike[str]) -> Iterator[None]:
    """Context of writing `path`: an OSError without a file's name gets it, and the free space."""
    try:
        yield
    except OSError as error:
        if (
            error.errno not in (errno.ENOSPC, getattr(errno, "EDQUOT", None))
            or error.filename is not None
        ):
            raise
        raise type(error)(
            error.errno, f"{error.strerror}, {bytes_text(free_bytes(path))} free", os.fspath(path)
        ) from error


def free_bytes(path: str | os.PathLike[str]) -> int:
    """Free bytes of the disk on which `path` is, or is to be written; 0 where there is none."""
    try:
        return shutil.disk_usage(pathlib.Path(path).parent).free
    except OSError:
        return 0


def bytes_text(count: int) -> str:
    """A number of bytes as "1.23 GB" or "45.6 MB"."""
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"


@contextlib.contextmanager
def staged(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Context of a temporary path beside `path`; on exit it is synced and renamed to `path`.

    Creates the folder. If the block raises, the temporary file is removed and `path` is unchanged.
    Readers see the old file or the new one, never a part.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    try:
        with name_full_disk(path):
            yield temporary
            publish(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def write_atomically(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """As `staged`, with the temporary file open; `mode` is "wb", or "w" for UTF-8 text."""
    encoding = None if "b" in mode else "utf-8"
    with staged(path) as temporary, open(temporary, mode, encoding=encoding) as file:
        yield file


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, atomically; other types than JSON's are written as `str`."""
    with write_atomically(path, "w") as file:
        file.write(json.dumps(value, indent=1, default=str) + "\n")


def publish(temporary: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Sync the finished file `temporary` and rename it to `path`, replacing a file there.

    Both must be in the same file system.
    """
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    try:
        folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    except PermissionError:  # Windows opens no folders
        return
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot sync a folder
            os.fsync(folder)
    finally:
        os.close(folder)

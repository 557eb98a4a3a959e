"""Files that are whole or absent: written under a temporary name, synced, then renamed into place."""

import contextlib
import json
import os
import pathlib
import secrets
from collections.abc import Iterator
from typing import IO, Any

TEMPORARY_SUFFIX = ".maskco-tmp"
"""Ends the name of every file in the making; a crash may leave one behind, and nothing reads it."""


@contextlib.contextmanager
def staged(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A temporary path beside `path`, to be written by name; when the block ends, it is synced and
    renamed to `path`.

    The folder is made where it does not exist. When the block raises, the temporary file is removed
    and `path` stays as it was. Readers see the old file or the new one, never a part.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    try:
        yield temporary
        publish(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def write_atomically(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """An open file that becomes `path` when the block ends, as `staged` says. `mode`: "wb", or "w"
    for UTF-8 text."""
    encoding = None if "b" in mode else "utf-8"
    with staged(path) as temporary, open(temporary, mode, encoding=encoding) as file:
        yield file


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, atomically; what JSON has no form for is written as its
    `str`."""
    with write_atomically(path, "w") as file:
        file.write(json.dumps(value, indent=1, default=str) + "\n")


def publish(temporary: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Sync the finished file `temporary` and rename it to `path`, in the same file system,
    replacing what was there."""
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot sync a folder
            os.fsync(folder)
    finally:
        os.close(folder)

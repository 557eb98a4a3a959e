"""A real file system of a few bytes, to fill up."""

import contextlib
import pathlib
import subprocess
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def small_disk(folder: pathlib.Path, size: str) -> Iterator[pathlib.Path]:
    """Mount a tmpfs of this size, such as "1m", at `folder`; skips where that is not allowed."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        refused = subprocess.run(mount, capture_output=True).returncode
    except FileNotFoundError:
        refused = 1
    if refused:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield folder
    finally:  # lazily: an error's traceback may hold a file open
        subprocess.run(["umount", "--lazy", str(folder)], check=True)

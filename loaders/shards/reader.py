"""Read bytes at an offset of a shard, from any thread."""

import functools
import io
import os

OPEN_FILES = 128
"""Files that a `ShardReader` keeps open."""


def read_at(file: io.FileIO, path: str, offset: int, size: int) -> bytes:
    """`size` bytes at `offset` of an open file, from any thread; EOFError names `path` where it has
    become shorter."""
    data = os.pread(file.fileno(), size, offset)
    while len(data) < size:
        more = os.pread(file.fileno(), size - len(data), offset + len(data))
        if not more:
            raise EOFError(
                f"{path}: {len(data)} of {size} bytes at offset {offset}; the file has changed since it was "
                "indexed: run `maskco-fast index` again"
            )
        data += more
    return data


class ShardReader:
    """Reads bytes at an offset of a file, from any thread, keeping the most recently used files
    open.

    It reads rather than maps: a shard that shrinks under a mapping, or a network file system that
    fails, would kill the process, where a read raises.
    """

    def __init__(self) -> None:
        self._open = functools.lru_cache(maxsize=OPEN_FILES)(self._open_file)

    @staticmethod
    def _open_file(path: str) -> io.FileIO:
        return io.FileIO(path, "rb")  # closed when the cache and the last reader have let go of it

    def read(self, path: str, offset: int, size: int) -> bytes:
        """`size` bytes at `offset`; EOFError names the file where it has become shorter."""
        return read_at(self._open(path), path, offset, size)

    def close(self) -> None:
        """Let go of the open files."""
        self._open.cache_clear()

"""Read bytes at an offset of a shard, from any thread."""

import functools
import io

from ...kernels.errors import MaskCoError
from ..system.portable import read_at_offset

MAX_OPEN_FILES = 128
"""Files that a `ShardReader` keeps open, at most."""


def open_files() -> int:
    """`MAX_OPEN_FILES`, or a quarter of the files that this process may open if that is less."""
    try:
        import resource
    except ImportError:  # Windows
        return MAX_OPEN_FILES
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MAX_OPEN_FILES if limit < 0 else max(1, min(MAX_OPEN_FILES, limit // 4))


class ShardTruncated(MaskCoError, EOFError):
    """A shard has become shorter since it was indexed."""


def read_at(file: io.FileIO, path: str, offset: int, size: int) -> bytes:
    """Read `size` bytes at `offset` of an open file, from any thread.

    Raises ShardTruncated, naming `path`, where the file ends earlier.
    """
    data = read_at_offset(file.fileno(), size, offset)
    while len(data) < size:  # a signal or a network file system may cut a read short
        more = read_at_offset(file.fileno(), size - len(data), offset + len(data))
        if not more:
            raise ShardTruncated(
                f"{path}: {len(data)} of {size} bytes at offset {offset}. The file has changed "
                "since it was indexed: run `maskco-fast index` again"
            )
        data += more
    return data


class ShardReader:
    """Reads at offsets of files, from any thread; the most recently used files stay open.

    Files are read, not mapped: where a file shrinks or a network file system fails, a read raises
    and a mapping kills the process.
    """

    def __init__(self) -> None:
        self._open = functools.lru_cache(maxsize=open_files())(self._open_file)

    def __reduce__(self) -> tuple[type["ShardReader"], tuple[()]]:
        """A copy opens files of its own."""
        return ShardReader, ()

    @staticmethod
    def _open_file(path: str) -> io.FileIO:
        return io.FileIO(path, "rb")  # closes once the cache and the last reading thread drop it

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Read `size` bytes at `offset`; ShardTruncated where the file ends earlier."""
        return read_at(self._open(path), path, offset, size)

    def close(self) -> None:
        """Close the files; they are reopened by the next read."""
        self._open.cache_clear()

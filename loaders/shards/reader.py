"""Read bytes at an offset of a shard, from any thread."""

import functools
import io
import sys
from collections.abc import Sequence

import numpy as np

from ...kernels import reading
from ...kernels.errors import MaskCoError
from ..system.portable import read_at_offset

MAX_OPEN_FILES = 128
"""Files that a `ShardReader` keeps open, at most."""


def files_allowed() -> int:
    """A quarter of the files that this process may open, which leaves the others to the program:
    half of them for a `ShardReader`, half for the samples that threads read at the same time."""
    try:
        import resource
    except ImportError:  # Windows
        return MAX_OPEN_FILES
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if limit < 0 else max(1, limit // 4)


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


class ReadMemory:
    """Memory of one thread for what it reads, which is valid until the next use.

    Kept, because the first writes to fresh memory cost page faults.
    """

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def room(self, size: int) -> np.ndarray:
        """(at least `size`,) uint8."""
        if size > len(self._bytes):
            self._bytes = np.empty(size * 3 // 2, np.uint8)
        return self._bytes


class ShardReader:
    """Reads at offsets of files, from any thread; the most recently used files stay open.

    Files are read, not mapped: where a file shrinks or a network file system fails, a read raises
    and a mapping kills the process.
    """

    def __init__(self) -> None:
        self._open = functools.lru_cache(maxsize=max(1, min(MAX_OPEN_FILES, files_allowed() // 2)))(
            self._open_file
        )

    def __reduce__(self) -> tuple[type["ShardReader"], tuple[()]]:
        """A copy opens files of its own."""
        return ShardReader, ()

    @staticmethod
    def _open_file(path: str) -> io.FileIO:
        return io.FileIO(path, "rb")  # closes once the cache and the last reading thread drop it

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Read `size` bytes at `offset`; ShardTruncated where the file ends earlier."""
        return read_at(self._open(path), path, offset, size)

    def read_parts(
        self,
        paths: Sequence[str],
        offsets: np.ndarray,
        sizes: np.ndarray,
        memory: ReadMemory,
    ) -> list[np.ndarray]:
        """Read `sizes` (n,) bytes at `offsets` (n,) of files, in one call without the GIL: n uint8
        arrays in `memory`, one behind the other.

        They are shorter where a file ends or cannot be read, of which `read` raises the reason.
        """
        files = [self._open(path) for path in paths]  # kept open during the call
        descriptors = [file.fileno() for file in files]
        if not reading.AVAILABLE:
            places = zip(descriptors, sizes.tolist(), offsets.tolist())
            return [np.frombuffer(read_at_offset(*place), np.uint8) for place in places]
        sizes = sizes.astype(np.int64)
        got, room = np.empty_like(sizes), memory.room(int(sizes.sum()))
        reading.read_parts(
            np.array(descriptors, np.int64), offsets.astype(np.int64), sizes, room, got
        )
        begins = (sizes.cumsum() - sizes).tolist()
        return [room[begin : begin + size] for begin, size in zip(begins, got.tolist())]

    def close(self) -> None:
        """Close the files; they are reopened by the next read."""
        self._open.cache_clear()

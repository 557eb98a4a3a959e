"""Scan files: where the entropy-coded data of JPEGs can be entered, in a file for each shard.

Layout, little-endian: HEADER; a table with an entry (ENTRY_DTYPE) for each usable sample,
zeros for one that has not been scanned; then the checkpoints, in the order in which they were
found.

Each entry vouches for itself. Its checksum covers its fields and its checkpoints, and these are
used only for a JPEG of its length and CRC32C. Neither damage nor a second writer can therefore
change a pixel: a sample whose entry does not hold is decoded from its beginning, and scanned anew.
That is why a file is appended to in place, under a lock, without being synced or renamed.
"""

import hashlib
import os
import struct
import time
import zlib
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...kernels.jpeg.checkpoints import CHECKPOINT_DTYPE, PIXELS_BETWEEN
from ..shards.index import ShardIndex
from ..shards.index_cache import cache_file
from ..system.portable import try_lock, write_at_offset

FORMAT_VERSION = 1
"""Bump when the format or the meaning of a checkpoint changes; older files are made anew."""
SUFFIX = ".scan"
"""Suffix of the files; the stem is that of the shard's index."""

MAGIC = b"mf-scan\n"
HEADER = struct.Struct("<8sIIQ16sI20x")
"""Magic, version, pixels between checkpoints, samples, stamp, CRC32 of these."""
ENTRY_DTYPE = np.dtype(
    [
        ("begin", "<u8"),  # of its checkpoints in the file
        ("length", "<u8"),  # of the JPEG
        ("checkpoints", "<u4"),  # their number
        ("checksum", "<u4"),  # CRC32C of the JPEG
        ("stored", "<u4"),  # CRC32 of the sample's number, the fields above and the checkpoints
        ("padding", "<u4"),
    ]
)
_CHECKED = 24
"""Bytes of an entry's fields before `stored`."""
MOST_CHECKPOINTS = 1 << 18
"""More than a JPEG of the largest size taken has; a greater number is damage."""
STAMPED = 64
"""Samples at each end of a shard, by which a file of another state is recognised."""
PATIENCE = 0.5
"""Seconds that `append` waits for another process's lock."""


class Scanned(NamedTuple):
    """The checkpoints of a JPEG."""

    length: int
    """Bytes of the JPEG."""
    checksum: int
    """CRC32C of these."""
    rows: bytes
    """Of CHECKPOINT_DTYPE; empty for a JPEG that has none."""


class State(IntEnum):
    """What a process knows of a shard's scan file."""

    UNKNOWN = 0
    ABSENT = 1
    """There is none, or one of another state of the shard."""
    PRESENT = 2
    DAMAGED = 3
    """Its header is."""


class ScanFile:
    """The scan file of one shard, appended to by any process.

    Opens nothing until it is used.
    """

    def __init__(self, shard: ShardIndex, folder: Path) -> None:
        """`folder`: where the shard's index is kept."""
        self.path = str(scan_path(shard, folder))
        self._header = _header(shard)
        self._table_end = HEADER.size + len(shard.samples) * ENTRY_DTYPE.itemsize

    def state(self) -> State:
        """Look at the file's header."""
        try:
            with open(self.path, "rb") as file:
                found = file.read(HEADER.size)
        except OSError:
            return State.ABSENT
        if found == self._header:
            return State.PRESENT
        # An empty file has just been created.
        return State.ABSENT if not found or _is_header(found) else State.DAMAGED

    def append(self, found: Sequence[tuple[int, Scanned]], *, replace: bool) -> bool:
        """Store the checkpoints of usable samples, by number; whether that was possible.

        It is not where another process holds the file's lock for too long, or the file belongs to
        another state of the shard. `replace`: begin such a file anew, and a damaged one, instead.
        Raises OSError where the file cannot be written.
        """
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
        with open(descriptor, "r+b", buffering=0):
            if not _lock_soon(descriptor) or not self._prepare(descriptor, replace):
                return False
            begin = max(os.fstat(descriptor).st_size, self._table_end)
            # Checkpoints first, so that an entry seldom points at what is not there yet.
            _write(descriptor, b"".join(scanned.rows for _, scanned in found), begin)
            for number, (length, checksum, rows) in found:
                count = len(rows) // CHECKPOINT_DTYPE.itemsize
                entry = np.array([(begin, length, count, checksum, 0, 0)], ENTRY_DTYPE)
                entry["stored"] = entry_checksum(number, entry.tobytes(), rows)
                _write(descriptor, entry.tobytes(), entry_offset(number))
                begin += len(rows)
        return True

    def _prepare(self, descriptor: int, replace: bool) -> bool:
        """Write the header of an empty file or one to replace; whether the file is this shard's."""
        found = os.read(descriptor, HEADER.size)
        if found == self._header:
            return True
        if found and not replace:
            return False
        os.ftruncate(descriptor, 0)
        _write(descriptor, self._header, 0)
        os.ftruncate(descriptor, self._table_end)
        return True


def entry_offset(number: int) -> int:
    """Where the entry of usable sample `number` is in a file."""
    return HEADER.size + number * ENTRY_DTYPE.itemsize


def scan_path(shard: ShardIndex, folder: Path) -> Path:
    """The scan file of a shard; each .beton file made from the shard has another one."""
    beton = getattr(shard, "beton", None)
    index = cache_file(shard.path if beton is None else f"{beton}\n{shard.path}", folder)
    return index.with_suffix(SUFFIX)


def _header(shard: ShardIndex) -> bytes:
    """The header of the shard's scan file, with a stamp of what is where in the shard.

    The stamp is of some samples, since data sets may have 100 000 shards; every sample's bytes are
    compared by their checksum.
    """
    stamp = hashlib.blake2b(digest_size=16)
    # Neighbours: each page of a mapped table that is touched may be read from the disk.
    for samples in (shard.samples[:STAMPED], shard.samples[-STAMPED:]):
        for field in ("sample_id", "offset", "size"):
            stamp.update(np.ascontiguousarray(samples[field]).tobytes())
    if shard.remote is not None:
        stamp.update(shard.remote.digest.encode())  # of the bytes; a tag may change without them
    facts = (MAGIC, FORMAT_VERSION, PIXELS_BETWEEN, len(shard.samples), stamp.digest())
    checksum = zlib.crc32(HEADER.pack(*facts, 0))
    return HEADER.pack(*facts, checksum)


def _is_header(found: bytes) -> bool:
    """Whether the bytes are a sound header, of any version and shard."""
    if len(found) != HEADER.size:
        return False
    *facts, checksum = HEADER.unpack(found)
    return facts[0] == MAGIC and zlib.crc32(HEADER.pack(*facts, 0)) == checksum


def entry_checksum(number: int, entry: bytes | memoryview, rows: bytes | memoryview) -> int:
    """What the `entry` of usable sample `number`, with these checkpoints, holds as `stored`."""
    return zlib.crc32(rows, zlib.crc32(entry[:_CHECKED], number & 0xFFFFFFFF))


def _lock_soon(descriptor: int) -> bool:
    """Lock the file within `PATIENCE`, so that a stopped process never stops the others."""
    end = time.monotonic() + PATIENCE
    while not try_lock(descriptor):
        if time.monotonic() > end:
            return False
        time.sleep(0.002)
    return True


def _write(descriptor: int, data: bytes, offset: int) -> None:
    """Write all of `data` at `offset`."""
    while data:
        written = write_at_offset(descriptor, data, offset)
        data, offset = data[written:], offset + written

"""Checkpoints of a JPEG: where in the scan every 128th pixel of a row of MCUs begins.

The position of a Huffman code depends on all codes before it, and a DC coefficient on the block
before. Both are noted in a first pass over the file, every `PIXELS_BETWEEN` pixels. Later passes
start reading at the checkpoints: only the parts that a region touches, several at once.

Checkpoints hold for the very bytes that they were found in, so they are kept with the file's length
and `checksum`. From wrong ones the decoder yields wrong pixels, though it never reads or writes
outside its memory; whoever stores checkpoints must notice damage to them.
"""

from typing import NamedTuple

import numpy as np

from ..compiler.jit import jit
from ..headers import find_ordinary_scan
from .checksum import file_checksum
from .decode import DECODED, decode_plain, make_jpeg_scratch
from .scan import CHECKPOINT_FIELDS, PIXELS_BETWEEN

CHECKPOINT_DTYPE = np.dtype([("bit", "<u4"), ("predictors", "<i2", 3)])
"""A checkpoint, 10 bytes: the bit of the scan, without stuffed bytes, at which an MCU begins; the
DC coefficients of Y, Cb and Cr before it, quantised. By row of MCUs, in the scan's order."""


class Checkpoints(NamedTuple):
    """The checkpoints of the n files of a call. They may be damaged: any values are safe."""

    rows: np.ndarray
    """(m,) CHECKPOINT_DTYPE, contiguous: those of all files."""
    begins: np.ndarray
    """(n + 1,) int64: file i has `rows[begins[i] : begins[i + 1]]`; an empty range means none."""
    lengths: np.ndarray
    """(n,) int64: bytes of the files that they were found in."""
    checksums: np.ndarray
    """(n,) uint32: `checksum` of the files that they were found in."""


def checksum(data: bytes | np.ndarray) -> int:
    """CRC-32C of a file."""
    return int(file_checksum(_as_array(data)))


def find_checkpoints(data: bytes | np.ndarray) -> np.ndarray | None:
    """The checkpoints of a JPEG, (n,) CHECKPOINT_DTYPE; None where it cannot be read from them.

    These are the files that `decode.decode_region` does not take, and those with restart intervals.
    Any bytes are safe.
    """
    encoded = _as_array(data)
    height, width, scan = find_ordinary_scan(encoded)
    if not scan:
        return None
    found = np.empty(CHECKPOINT_FIELDS * most_checkpoints(height, width), np.int16)
    count = _find(encoded, height, width, make_jpeg_scratch(len(encoded), 0), found)
    return as_rows(found, count) if count else None


def most_checkpoints(height: int, width: int) -> int:
    """The most checkpoints of an image of these sides."""
    return -(-height // 8) * -(-width // PIXELS_BETWEEN)


def as_rows(found: np.ndarray, count: int) -> np.ndarray:
    """The first `count` checkpoints of the kernels' flat int16 as (count,) CHECKPOINT_DTYPE."""
    return found[: CHECKPOINT_FIELDS * count].copy().view(CHECKPOINT_DTYPE)


def as_fields(rows: np.ndarray) -> np.ndarray:
    """(n,) CHECKPOINT_DTYPE as the kernels' flat int16, (CHECKPOINT_FIELDS · n,), writable."""
    rows = np.ascontiguousarray(rows, CHECKPOINT_DTYPE)
    return (rows if rows.flags.writeable else rows.copy()).view(np.int16)


@jit()
def _find(data, height, width, scratch, found):
    """Find the checkpoints of `data` (bytes,) uint8; returns their number, 0 for none."""
    verdict, count = decode_plain(
        data,
        len(data),
        height,
        width,
        0,
        0,
        0,
        0,
        scratch,
        scratch.clean[:0],
        found,
    )
    return count if verdict == DECODED else 0


def _as_array(data: bytes | np.ndarray) -> np.ndarray:
    """The file as a read-only (n,) uint8 array on the same memory."""
    encoded = np.frombuffer(data, np.uint8)
    encoded.flags.writeable = False  # so that the kernels compile for one kind of array
    return encoded

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

from ..errors import InvalidInput
from ..headers import find_ordinary_scan
from .checksum import file_checksum
from .decode import decode_region, make_jpeg_scratch
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


class CheckpointTable(NamedTuple):
    """The `Checkpoints` of the n files of a call as the kernels take them, and the memory for new
    ones."""

    fields: np.ndarray
    """(CHECKPOINT_FIELDS · m,) int16: the checkpoints of all files."""
    begins: np.ndarray
    """(n + 1,) int64: those of file i are `begins[i]` to `begins[i + 1]`; any values are safe."""
    lengths: np.ndarray
    """(n,) int64: bytes of the files that they were found in."""
    checksums: np.ndarray
    """(n,) int64: CRC-32C of these files."""
    found: np.ndarray
    """int16: room for the checkpoints that are found in a call; empty where none are to be."""
    counts: np.ndarray
    """(n,) int64, zeros: receives how many were found in each file; they lie one file's behind the
    other's."""


def make_table(
    files: int, checkpoints: Checkpoints | None = None, find: np.ndarray | None = None
) -> CheckpointTable:
    """The kernels' table of a call's `files`, and of their `checkpoints` if there are any.

    `find` (files, 2): the images' sides, where checkpoints shall be found. Raises InvalidInput
    where a shape does not fit.
    """
    if checkpoints is None:
        checkpoints = Checkpoints(
            np.empty(0, CHECKPOINT_DTYPE),
            np.zeros(files + 1, np.int64),
            np.zeros(files, np.int64),
            np.zeros(files, np.uint32),
        )
    shapes = [one.shape for one in checkpoints[1:]]
    if shapes != [(files + 1,), (files,), (files,)]:
        raise InvalidInput(
            f"{files} files need `begins` ({files + 1},), `lengths` and `checksums` ({files},) "
            f"of checkpoints, got {shapes[0]}, {shapes[1]} and {shapes[2]}."
        )
    room = 0 if find is None else sum(most_checkpoints(*sides) for sides in find.tolist())
    return CheckpointTable(
        as_fields(checkpoints.rows),
        checkpoints.begins.astype(np.int64, copy=False),
        checkpoints.lengths.astype(np.int64, copy=False),
        checkpoints.checksums.astype(np.int64),
        np.empty(CHECKPOINT_FIELDS * room, np.int16),
        np.zeros(files, np.int64),
    )


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
    table = make_table(1, find=np.array([[height, width]]))
    scratch = make_jpeg_scratch(len(encoded), 0)
    no_region, no_pixels = (0, 0, 0, 0), scratch.clean[:0]
    size = len(encoded)
    decode_region(encoded, size, height, width, *no_region, scratch, no_pixels, table, 0)
    count = int(table.counts[0])
    return as_rows(table.found, count) if count else None


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


def _as_array(data: bytes | np.ndarray) -> np.ndarray:
    """The file as a read-only (n,) uint8 array on the same memory."""
    encoded = np.frombuffer(data, np.uint8)
    encoded.flags.writeable = False  # so that the kernels compile for one kind of array
    return encoded

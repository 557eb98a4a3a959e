"""The record: one JPEG's coefficients and segments. docs/coefficients.md specifies it.

A record is little-endian: header, quantisation tables, index, chunks, segments. A chunk holds up to
`CHUNK` MCUs of an MCU row: three bytes a block, then the blocks' payloads. Chunks do not depend on
one another, so that a crop reads those that it touches. The segments are the JPEG's own bytes
between its entropy-coded data, from which the file is made again, byte for byte.

This module has the header, the index and the checksum. `pack` makes records, `unpack` gives the
coefficients and the JPEG back.
"""

import numpy as np

from ..errors import MaskCoError
from ..jpeg.checksum import file_checksum

MAGIC = b"MFCO"
VERSION = 1
"""Bump when the layout changes."""
CHUNK = 32
"""MCUs of a chunk that the writer makes."""
MARGIN = 256
"""Bytes that follow the chunks at least: readers take whole vectors."""
MAX_RECORD = (1 << 32) - 1
"""Largest record: offsets take 32 bits."""
HEADER_DTYPE = np.dtype(
    [
        ("magic", "S4"),
        ("checksum", "<u4"),
        ("version", "<u2"),
        ("components", "u1"),
        ("chunk", "u1"),
        ("size", "<u4"),
        ("height", "<u2"),
        ("width", "<u2"),
        ("sampling", "u1", (4,)),
        ("data", "<u4"),
        ("segments", "<u4"),
        ("jpeg_size", "<u4"),
        ("colours", "u1"),
        ("reserved", "u1", (27,)),
    ]
)
CHECKED = 8
"""First byte that the checksum covers."""
HEADER_SIZE = HEADER_DTYPE.itemsize
assert HEADER_SIZE == 64
TABLE_BYTES = 128
"""A component's quantisation table, 64 uint16."""

ONLY_JPEG, GRAY, YCBCR = range(3)
"""`colours`: pixels are those of the JPEG that the record gives back; or they follow from the
coefficients as those of a gray or a YCbCr JPEG by libjpeg's default rules."""
ESCAPE = -128
"""DC change that stands for a DC of 16 bits in the payload."""


class BadRecord(MaskCoError):
    """A record is damaged. The message is a reason of a few words, equal for equal causes."""


def with_checksum(record: bytes) -> bytes:
    """The record with the checksum of its bytes."""
    found = _checksum(record)
    return record[: CHECKED - 4] + found.to_bytes(4, "little") + record[CHECKED:]


def _checksum(record: bytes) -> int:
    return int(file_checksum(np.frombuffer(record, np.uint8)[CHECKED:]))


def read_header(record: bytes) -> np.void:
    """The header of a record, a HEADER_DTYPE, whose checksum is right; BadRecord otherwise."""
    if len(record) < HEADER_SIZE + MARGIN:
        raise BadRecord("cut short")
    header = np.frombuffer(record, HEADER_DTYPE, 1)[0]
    if header["magic"] != MAGIC or header["version"] != VERSION:
        raise BadRecord("no record, or one of another version")
    if header["size"] != len(record):
        raise BadRecord("cut short")
    if header["checksum"] != _checksum(record):
        raise BadRecord("wrong checksum")
    return header


def count_chunks(down: int, across: int, chunk: int) -> int:
    """Chunks of up to `chunk` MCUs of an image of `down` by `across` MCUs."""
    return down * -(-across // chunk)


def read_index(record: bytes, header: np.void, down: int, across: int) -> np.ndarray:
    """The offsets of the chunks and their end, (n + 1,) uint32; BadRecord where they do not fit.

    `down`, `across`: MCUs of the image.
    """
    if not header["chunk"]:
        raise BadRecord("damaged")
    entries = count_chunks(down, across, int(header["chunk"])) + 1
    begin = HEADER_SIZE + TABLE_BYTES * int(header["components"])
    if header["data"] != begin + 4 * entries or header["data"] > header["segments"]:
        raise BadRecord("damaged")
    if header["segments"] + MARGIN > len(record):
        raise BadRecord("damaged")
    index = np.frombuffer(record, "<u4", entries, begin)
    ascending = (np.diff(index.astype(np.int64)) >= 0).all()
    if not ascending or index[0] != header["data"] or index[-1] != header["segments"]:
        raise BadRecord("damaged")
    return index

"""Index of a tar archive's members, read from its bytes in compiled code.

The walk finds where members lie and marks those whose names need `tarfile`, which reads every name
correctly but costs tens of microseconds a member. It stops at the first size that it cannot trust.
"""

import numpy as np

from .compiler.jit import inline_jit, jit

BLOCK = 512
"""Bytes of a tar block: headers are one block, data is padded to whole ones."""
HEADER, DATA, SIZE, EXTENDED = range(4)
"""Columns of `walk_tar`'s table: offset of the member's header; offset of its data; bytes of data;
offset of the extended header (PAX or GNU long name) that holds its name, or -1."""

COMPLETE, CUT, BAD_HEADER, WANTS_TARFILE = range(4)
"""How the walk ended: at the end-of-archive block; at the end of the bytes without one; at a header
with a wrong checksum or size; at a PAX header that overrides a size, from where `tarfile` must read
on."""

# Offsets in a header.
_SIZE_FIELD = 124
_CHECKSUM_FIELD = 148
_TYPE_FIELD = 156

# Member types, the byte at `_TYPE_FIELD`.
_OLD_REGULAR = 0x00
_REGULAR = 0x30  # '0'
_CONTIGUOUS = 0x37  # '7', a regular file by another name
_GNU_LONG_LINK = 0x4B  # 'K'
_GNU_LONG_NAME = 0x4C  # 'L'
_PAX_GLOBAL = 0x67  # 'g'
_PAX = 0x78  # 'x'


@inline_jit()
def _number(data, start, length):
    """Read an octal field, or GNU's base-256 form of large numbers; -1 where it is neither."""
    value = np.int64(0)
    if data[start] & 0x80:  # base 256
        for i in range(start + 1, start + length):
            value = (value << 8) | np.int64(data[i])
        return value
    for i in range(start, start + length):
        digit = data[i]
        if digit == 0x20 or digit == 0:  # padding before or after the digits
            if value > 0:
                break
            continue
        if digit < 0x30 or digit > 0x37:
            return np.int64(-1)
        value = (value << 3) | np.int64(digit - 0x30)
    return value


@inline_jit()
def _checksum_fits(data, header):
    """Whether a header's checksum is right: the sum of its bytes, those of the field as spaces."""
    total = np.int64(0)
    for i in range(header, header + BLOCK):
        total += data[i]
    for i in range(header + _CHECKSUM_FIELD, header + _CHECKSUM_FIELD + 8):
        total += 0x20 - np.int64(data[i])
    return total == _number(data, header + _CHECKSUM_FIELD, 8)


@inline_jit()
def _contains(data, start, stop, word):
    """Whether the bytes `word` occur in `data[start:stop]`."""
    for i in range(start, stop - len(word) + 1):
        found = True
        for j in range(len(word)):
            if data[i + j] != word[j]:
                found = False
                break
        if found:
            return True
    return False


_PAX_PATH = np.frombuffer(b" path=", np.uint8)
_PAX_SIZE = np.frombuffer(b" size=", np.uint8)


@jit(allocates=True)
def walk_tar(data):
    """List the regular files of the archive `data` (bytes,) uint8: (table, how the walk ended).

    `table` (members, 4) int64: columns HEADER, DATA, SIZE and EXTENDED. The last member of a cut
    archive keeps its full size, and so ends beyond `len(data)`.
    """
    table = np.empty((1024, 4), np.int64)
    count, offset, extended = 0, np.int64(0), np.int64(-1)
    while True:
        # The end: of the bytes, or of the archive, marked by a block of zeros.
        if offset + BLOCK > len(data):
            return table[:count], CUT
        if (
            data[offset] == 0
            and data[offset + _TYPE_FIELD] == 0
            and not data[offset : offset + BLOCK].any()
        ):
            return table[:count], COMPLETE
        # A header.
        size = _number(data, offset + _SIZE_FIELD, 12)
        if size < 0 or not _checksum_fits(data, offset):
            return table[:count], BAD_HEADER
        kind = data[offset + _TYPE_FIELD]
        payload = offset + BLOCK
        if kind == _PAX:
            stop = min(payload + size, len(data))
            if _contains(data, payload, stop, _PAX_SIZE):
                return table[:count], WANTS_TARFILE
            if extended < 0 and _contains(data, payload, stop, _PAX_PATH):
                extended = offset
        elif kind == _GNU_LONG_NAME:
            if extended < 0:
                extended = offset
        # A member, unless it is a header that affects neither names nor places.
        elif kind != _GNU_LONG_LINK and kind != _PAX_GLOBAL:
            if kind in (_REGULAR, _OLD_REGULAR, _CONTIGUOUS):
                if count == len(table):  # double the table
                    grown = np.empty((2 * count, 4), np.int64)
                    grown[:count] = table
                    table = grown
                table[count, HEADER], table[count, DATA] = offset, payload
                table[count, SIZE], table[count, EXTENDED] = size, extended
                count += 1
            extended = np.int64(-1)
        # The next header, after the data's padding.
        offset = payload + (size + BLOCK - 1) // BLOCK * BLOCK

"""Where the members of a tar archive lie, read from its bytes without a Python step a member.

`tarfile` gets every name right but costs tens of microseconds a member. This walk covers the plain
case and says which members need `tarfile` for their name; an archive whose sizes it cannot trust is
refused as a whole.
"""

import numpy as np

from .compiler.jit import inline_jit, jit

BLOCK = 512
HEADER, DATA, SIZE, EXTENDED = range(4)
"""Columns of `walk_tar`'s table: offset of the member's header; of its data; bytes of data; and the
offset of the extended header (PAX, GNU long name) that `tarfile` must read for the name, or -1."""

COMPLETE, CUT, BAD_HEADER, WANTS_TARFILE = range(4)
"""How the walk ended: at the end-of-archive block; at the last byte or beyond it without one; at a
block whose checksum is wrong; or at a PAX header that overrides a size, where the offsets so far
are right and the rest needs `tarfile`."""

_SUM, _TYPE, _SIZE_FIELD = 148, 156, 124


@inline_jit()
def _number(data, start, length):
    """An octal field, or GNU's base-256 form for large numbers; -1 where it is neither."""
    value = np.int64(0)
    if data[start] & 0x80:
        for i in range(start + 1, start + length):
            value = (value << 8) | np.int64(data[i])
        return value
    for i in range(start, start + length):
        digit = data[i]
        if digit == 0x20 or digit == 0:
            if value > 0:
                break
            continue
        if digit < 0x30 or digit > 0x37:
            return np.int64(-1)
        value = (value << 3) | np.int64(digit - 0x30)
    return value


@inline_jit()
def _checksum_fits(data, header):
    total = np.int64(0)
    for i in range(header, header + BLOCK):
        total += data[i]
    for i in range(header + _SUM, header + _SUM + 8):
        total += 0x20 - np.int64(data[i])
    return total == _number(data, header + _SUM, 8)


@inline_jit()
def _contains(data, start, stop, word):
    for i in range(start, stop - len(word) + 1):
        found = True
        for j in range(len(word)):
            if data[i + j] != word[j]:
                found = False
                break
        if found:
            return True
    return False


_PATH = np.frombuffer(b" path=", np.uint8)
_OVERRIDES_SIZE = np.frombuffer(b" size=", np.uint8)


@jit(allocates=True)
def walk_tar(data):
    """Regular members of the archive `data` (bytes,) uint8: a table (members, 4) int64 and how the
    walk ended.

    The last member of a cut archive is in the table with its full size, which then ends beyond
    `len(data)`.
    """
    table = np.empty((1024, 4), np.int64)
    count, offset, extended = 0, np.int64(0), np.int64(-1)
    while True:
        if offset + BLOCK > len(data):
            return table[:count], CUT
        if (
            data[offset] == 0
            and data[offset + _TYPE] == 0
            and not data[offset : offset + BLOCK].any()
        ):
            return table[:count], COMPLETE
        size = _number(data, offset + _SIZE_FIELD, 12)
        if size < 0 or not _checksum_fits(data, offset):
            return table[:count], BAD_HEADER
        kind = data[offset + _TYPE]
        payload = offset + BLOCK
        if kind == 0x78:  # 'x', PAX
            stop = min(payload + size, len(data))
            if _contains(data, payload, stop, _OVERRIDES_SIZE):
                return table[:count], WANTS_TARFILE
            if extended < 0 and _contains(data, payload, stop, _PATH):
                extended = offset
        elif kind == 0x4C:  # 'L', GNU long name
            if extended < 0:
                extended = offset
        elif kind != 0x4B and kind != 0x67:  # 'K' and 'g' say nothing about where a member lies
            if kind == 0x30 or kind == 0 or kind == 0x37:
                if count == len(table):
                    grown = np.empty((2 * count, 4), np.int64)
                    grown[:count] = table
                    table = grown
                table[count, HEADER], table[count, DATA] = offset, payload
                table[count, SIZE], table[count, EXTENDED] = size, extended
                count += 1
            extended = np.int64(-1)
        offset = payload + (size + BLOCK - 1) // BLOCK * BLOCK

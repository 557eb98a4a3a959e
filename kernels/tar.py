"""Index of a tar archive's members, read from its bytes in compiled code.

The walk is total: whatever the bytes are, it ends, and each part of the archive is a member, a
header that describes one, padding, or a damaged part that it reports. After damage it goes on at
the next header. Sizes are checked before they are used, so that no sum can overflow.
"""

import numpy as np

from .compiler.jit import inline_jit, jit

BLOCK = 512
"""Bytes of a tar block: headers are one block, data is padded to whole ones."""
HEADER, DATA, SIZE, EXTENDED, KIND = range(5)
"""Columns of `walk_tar`'s table: offset of the member's header; offset of its data; bytes of data,
or `BAD_SIZE`; offset of the first of the extended headers (PAX, GNU long names) that describe it,
or -1; its type, a byte."""
BAD_SIZE = -1
"""The size of a member whose header gives none that is possible."""

# Member types, the byte at `_TYPE_FIELD`.
OLD_REGULAR = 0x00
REGULAR = 0x30  # '0'
HARD_LINK = 0x31  # '1'
SYMBOLIC_LINK = 0x32  # '2'
DIRECTORY = 0x35  # '5'
CONTIGUOUS = 0x37  # '7', a regular file by another name
GNU_LONG_LINK = 0x4B  # 'K'
GNU_LONG_NAME = 0x4C  # 'L'
GNU_SPARSE = 0x53  # 'S'
PAX = 0x78  # 'x'
SOLARIS_PAX = 0x58  # 'X', with the same records
FIFO = 0x36  # '6', the last of the types without data
_PAX_GLOBAL = 0x67  # 'g'

# Offsets in a header.
_SIZE_FIELD = 124
_CHECKSUM_FIELD = 148
_TYPE_FIELD = 156
_MAGIC_FIELD = 257
_SPARSE_CONTINUES = 482
"""GNU's sparse header: whether a block with more of the file's map follows."""
_SPARSE_BLOCK_CONTINUES = 504

_LARGEST = 1 << 62
_INVALID = -1


@inline_jit()
def _number(data, start, length):
    """Read an octal field, or GNU's base-256 form of large numbers; `_INVALID` if it is neither,
    or negative, or above 2^62."""
    value = np.int64(0)
    if data[start] & 0x80:  # base 256; the first byte's lowest bits are 0 in any possible size
        if data[start] != 0x80:
            return np.int64(_INVALID)
        for i in range(start + 1, start + length):
            if value > _LARGEST >> 8:
                return np.int64(_INVALID)
            value = (value << 8) | np.int64(data[i])
        return value
    begun = False
    for i in range(start, start + length):
        digit = data[i]
        if digit == 0x20 or digit == 0:  # padding before or after the digits
            if begun:
                break
            continue
        if digit < 0x30 or digit > 0x37:
            return np.int64(_INVALID)
        begun = True
        value = (value << 3) | np.int64(digit - 0x30)
    return value


@inline_jit()
def _is_header(data, at):
    """Whether the block at `at` is a header: its checksum is the sum of its bytes, those of the
    field as spaces. Old tars summed signed bytes."""
    if at + BLOCK > len(data):
        return False
    expected = _number(data, at + _CHECKSUM_FIELD, 8)
    if expected <= 0:
        return False
    total, negative = np.int64(0), np.int64(0)
    for i in range(at, at + BLOCK):
        total += data[i]
        negative += data[i] >> 7
    for i in range(at + _CHECKSUM_FIELD, at + _CHECKSUM_FIELD + 8):
        total += 0x20 - np.int64(data[i])
        negative -= data[i] >> 7
    return expected == total or expected == total - 256 * negative


@inline_jit()
def _is_zero(data, at):
    """Whether the block at `at` is of zeros, which ends an archive."""
    if data[at] != 0 or data[at + _TYPE_FIELD] != 0:
        return False
    for i in range(at, at + BLOCK):
        if data[i] != 0:
            return False
    return True


@inline_jit()
def _is_boundary(data, at):
    """Whether a member may end at `at`: a header or the end of the archive follows."""
    if at + BLOCK > len(data):
        return at <= len(data)
    return _is_header(data, at) or _is_zero(data, at)


@inline_jit()
def _next_header(data, start):
    """Offset of the first header from `start` on, `len(data)` without one.

    Where bytes are missing, headers no longer lie on whole blocks: those with a magic word are
    found anywhere.
    """
    for at in range(start, len(data) - BLOCK + 1):
        aligned = (at - start) % BLOCK == 0
        magic = at + _MAGIC_FIELD
        if not aligned and (
            data[magic] != 0x75  # 'ustar'
            or data[magic + 1] != 0x73
            or data[magic + 2] != 0x74
            or data[magic + 3] != 0x61
            or data[magic + 4] != 0x72
        ):
            continue
        if _is_header(data, at):
            return at
    return len(data)


@inline_jit()
def _pax_size(data, start, stop):
    """The record `size` of a PAX header, `_INVALID` without a valid one.

    A record is "LENGTH NAME=VALUE" and a newline. Reading stops at the first damaged one.
    """
    found = np.int64(_INVALID)
    at = start
    while at < stop:
        i, length = at, np.int64(0)
        while i < stop and 0x30 <= data[i] <= 0x39 and i < at + 10:
            length = length * 10 + np.int64(data[i] - 0x30)
            i += 1
        end = at + length - 1  # the newline
        if i == at or i >= stop or data[i] != 0x20 or end <= i or end >= stop or data[end] != 0x0A:
            break
        i += 1
        if (
            end - i > 5
            and data[i] == 0x73  # 'size='
            and data[i + 1] == 0x69
            and data[i + 2] == 0x7A
            and data[i + 3] == 0x65
            and data[i + 4] == 0x3D
        ):
            value = np.int64(0)
            for j in range(i + 5, end):
                if data[j] < 0x30 or data[j] > 0x39 or value > _LARGEST // 10:
                    value = np.int64(_INVALID)
                    break
                value = value * 10 + np.int64(data[j] - 0x30)
            found = value
        at = end + 1
    return found


@inline_jit()
def _after(payload, size):
    """Offset of the block after `size` bytes of data."""
    return payload + (size + BLOCK - 1) // BLOCK * BLOCK


@inline_jit()
def _size_of(data, header, payload, pax_size):
    """Bytes of a member's data, `BAD_SIZE` without a number.

    The header and a PAX record may contradict each other, and links may have the size of what they
    link to: of the sizes that are stated, the first that leads to another header counts.
    """
    size = _number(data, header + _SIZE_FIELD, 12)
    kind = data[header + _TYPE_FIELD]
    has_data = not HARD_LINK <= kind <= FIFO
    if has_data and (pax_size < 0 or pax_size == size):
        return size
    stated = (np.int64(0) if not has_data else pax_size, pax_size, size)
    for i in range(3):
        if 0 <= stated[i] <= len(data) - payload and _is_boundary(data, _after(payload, stated[i])):
            return stated[i]
    return max(pax_size, size) if has_data else np.int64(0)


@inline_jit(allocates=True)
def _doubled(table):
    """A table of twice the rows that begins with those of `table`."""
    grown = np.empty((2 * len(table), table.shape[1]), np.int64)
    # Assigning a slice would compile Numba's text of a wrong shape's error with it.
    for row in range(len(table)):
        for column in range(table.shape[1]):
            grown[row, column] = table[row, column]
    return grown


@jit(allocates=True)
def walk_tar(data):
    """List the members of the archive `data` (bytes,) uint8: (table, damage, whether it is whole).

    `table` (members, 5) int64: columns HEADER, DATA, SIZE, EXTENDED and KIND, for members of every
    type. The last member of a cut archive keeps its full size, and so ends beyond `len(data)`.
    `damage` (parts, 2) int64: begin and end of each part that is neither a header nor a member's
    data. Concatenated archives are read as one. An archive is whole if it ends with a block of
    zeros.
    """
    table = np.empty((1024, 5), np.int64)
    damage = np.empty((16, 2), np.int64)
    count, damaged = 0, 0
    offset, extended, pax_size = np.int64(0), np.int64(-1), np.int64(_INVALID)
    ended = False
    while offset + BLOCK <= len(data):
        if _is_zero(data, offset):
            ended = True
            offset += BLOCK
            continue
        is_header = _is_header(data, offset)
        payload, size = offset, np.int64(0)
        if is_header:
            kind = data[offset + _TYPE_FIELD]
            payload = offset + BLOCK
            if kind in (PAX, SOLARIS_PAX, _PAX_GLOBAL, GNU_LONG_NAME, GNU_LONG_LINK):
                size = _number(data, offset + _SIZE_FIELD, 12)
                if size < 0 or size > len(data) - payload:  # damaged: search on from here
                    size = np.int64(0)
                elif kind != _PAX_GLOBAL:
                    if extended < 0:
                        extended = offset
                    if kind in (PAX, SOLARIS_PAX):
                        pax_size = _pax_size(data, payload, payload + size)
                offset = _after(payload, size)
                continue
            if kind == GNU_SPARSE and data[offset + _SPARSE_CONTINUES]:
                while payload + BLOCK <= len(data):  # the rest of the file's map
                    payload += BLOCK
                    if not data[payload - BLOCK + _SPARSE_BLOCK_CONTINUES]:
                        break
            size = _size_of(data, offset, payload, pax_size)
            if count == len(table):  # double the table
                table = _doubled(table)
            table[count, HEADER], table[count, DATA] = offset, payload
            table[count, SIZE], table[count, EXTENDED] = size, extended
            table[count, KIND] = kind
            count += 1
            extended, pax_size = np.int64(-1), np.int64(_INVALID)
            if 0 <= size <= len(data) - payload:
                ended = False
                offset = _after(payload, size)
                continue
        # Damage, or a member beyond the end: search for the next header.
        found = _next_header(data, payload)
        if is_header:
            ended = False
            if found == len(data) and size > 0:  # the archive is cut within this member
                break
            table[count - 1, SIZE] = BAD_SIZE
        elif not ended or found < len(data):  # else what follows the archive is not part of it
            if damaged == len(damage):
                damage = _doubled(damage)
            damage[damaged, 0], damage[damaged, 1] = offset, found
            damaged += 1
        offset, extended, pax_size = found, np.int64(-1), np.int64(_INVALID)
    return table[:count], damage[:damaged], ended

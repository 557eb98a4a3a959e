"""Entropy-coded scans of a JPEG: to coefficients and, to the bit as libjpeg writes them, back.

`blocks` (n · 64,) int16 holds the coefficients of all components, a block after the other, in
zigzag order. `places` (c, 6) int64 has a row for each component of the scan, with the columns
below. `codes` are Huffman tables as in a file, `jpeg_file.CODE_SIZE` bytes each.

Reading follows T.81, F.2 and G.2; writing follows libjpeg's jchuff.c and jcphuff.c, whose choices
(how long a run of ended blocks may get) all common encoders share.
"""

import re

import numpy as np

from ..compiler.jit import inline_jit, jit
from ..jpeg.entropy import refill
from ..jpeg.markers import RST0
from .bits import leading_zeros
from .jpeg_file import CODE_SIZE, JpegFile, NotTranscodable, Scan

FIRST_BLOCK, ACROSS, H, V, DC_CODE, AC_CODE = range(6)
"""Columns of `places`: the component's first block, its blocks across, its blocks in an MCU across
and down, and the places of its tables."""
LOOKUP_BITS = 9
_LOOKUP = 1 << LOOKUP_BITS
_LIMIT, _SHIFT = _LOOKUP, _LOOKUP + 17
READ_SIZE = _LOOKUP + 2 * 17
"""int32 of a table for reading. `1 << LOOKUP_BITS` entries by the next bits, length << 8 | symbol,
0 where the code is longer; by length, one past the last code, left-aligned to 16 bits; by length,
what to add to a code for its symbol's place in the file's table."""
WRITE_SIZE = 256
"""int32 of a table for writing: length << 16 | code of each symbol, 0 for none."""
MARGIN = 16
"""Zeros behind the data of a scan, which the bit reader may take."""
BLOCK_ROOM = 512
"""Bytes that one block may take: 64 coefficients of 31 bits, or 1000 correction bits."""
MAX_RUN = 0x7FFF
"""Longest run of ended blocks."""
MAX_CORRECTIONS = 1000
"""libjpeg's buffer of correction bits: a run ends when another block's might not fit."""
_U = np.uint64
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")


@jit()
def build_read_table(code, table):
    """Build the table for reading of a file's `code`; returns whether it is a Huffman code."""
    table[:] = 0
    word, symbol = 0, 16
    for length in range(1, 17):
        count = np.int64(code[length - 1])
        if word + count > 1 << length or symbol + count > CODE_SIZE:
            return False
        table[_LIMIT + length] = (word + count) << (16 - length)
        table[_SHIFT + length] = symbol - word
        if length <= LOOKUP_BITS:
            for i in range(count):
                first = (word + i) << (LOOKUP_BITS - length)
                last = (word + i + 1) << (LOOKUP_BITS - length)
                table[first:last] = length << 8 | code[symbol + i]
        word = (word + count) << 1
        symbol += count
    return True


@jit()
def build_write_table(code, table):
    """Build the table for writing of a file's `code`."""
    table[:] = 0
    word, symbol = 0, 16
    for length in range(1, 17):
        for _ in range(code[length - 1]):
            table[code[symbol]] = length << 16 | word
            word += 1
            symbol += 1
        word <<= 1


@inline_jit(forceinline=True)
def _read_symbol(bits, code, table):
    """(symbol, its length) at the top of `bits`; a length of 0 where there is no such code."""
    entry = np.int64(table[np.int64(bits >> _U(64 - LOOKUP_BITS))])
    if entry:
        return entry & 255, entry >> 8
    word = np.int64(bits >> _U(48))
    for length in range(LOOKUP_BITS + 1, 17):
        if word < table[_LIMIT + length]:
            place = np.int64(table[_SHIFT + length]) + (word >> (16 - length))
            return np.int64(code[min(place, CODE_SIZE - 1)]), length
    return 0, 0


@inline_jit(forceinline=True)
def _value(bits, length, size):
    """The number of `size` bits behind the `length` first ones, extended by T.81's figure F.12."""
    if size == 0:
        return 0
    value = np.int64((bits << _U(length)) >> _U(64 - size))
    return value if value >> (size - 1) else value - (1 << size) + 1


@inline_jit()
def _refine(blocks, at, bits, count, low):
    """Read the correction bit of a coefficient that is not 0: (bits, count)."""
    value = np.int64(blocks[at])
    if bits >> _U(63) and abs(value) >> low & 1 == 0:
        blocks[at] = value + (1 << low) if value > 0 else value - (1 << low)
    return bits << _U(1), count - _U(1)


@jit(allocates=True)
def read_scan(
    clean, begins, blocks, places, codes, tables, first, last, high, low, interval, across, down
):
    """Read a scan into `blocks`; returns whether its data is sound and used up.

    `clean` uint8: the restart intervals without stuffed bytes and markers, MARGIN zeros at the end;
    interval i lies between `begins[i]` and `begins[i + 1]`. `tables` (8, READ_SIZE) int32. `first`,
    `last`, `high`, `low`: Ss, Se, Ah and Al. `across`, `down`: MCUs of the scan.
    """
    predictions = np.zeros(4, np.int64)
    bits, count, at = _U(0), _U(0), _U(begins[0])
    run = 0  # blocks that have ended, of a progressive scan
    number, left = 0, interval
    for mcu in range(across * down):
        if interval and left == 0:
            if run or np.int64(at) - np.int64(count >> _U(3)) != begins[number + 1]:
                return False
            number += 1
            if number + 1 >= len(begins):
                return False
            bits, count, at, left = _U(0), _U(0), _U(begins[number]), interval
            predictions[:] = 0
        left -= 1
        mcu_y, mcu_x = mcu // across, mcu % across
        for c in range(len(places)):
            h, v = places[c, H], places[c, V]
            dc, ac = places[c, DC_CODE], places[c, AC_CODE]
            for b in range(h * v):
                row = mcu_y * v + b // h
                place = places[c, FIRST_BLOCK] + row * places[c, ACROSS] + mcu_x * h + b % h
                to = 64 * place
                if np.int64(at) - np.int64(count >> _U(3)) > begins[number + 1]:
                    return False
                k = first
                # 1. DC: a difference, or a further bit.
                if first == 0:
                    bits, count, at = refill(clean, bits, count, at)
                    k = 1
                    if high:
                        blocks[to] |= np.int64(bits >> _U(63)) << low
                        bits, count = bits << _U(1), count - _U(1)
                    else:
                        size, length = _read_symbol(bits, codes[dc], tables[dc])
                        if length == 0 or size > 15:
                            return False
                        predictions[c] += _value(bits, length, size)
                        value = predictions[c] << low
                        if value < -32768 or value > 32767:
                            return False
                        blocks[to] = value
                        used = _U(length + size)
                        bits, count = bits << used, count - used
                # 2. AC: runs of zeros and values, or corrections of earlier ones.
                if high == 0:
                    if run:
                        run -= 1
                        continue
                    while k <= last:
                        bits, count, at = refill(clean, bits, count, at)
                        symbol, length = _read_symbol(bits, codes[ac], tables[ac])
                        if length == 0:
                            return False
                        zeros, size = symbol >> 4, symbol & 15
                        if size == 0 and zeros < 15:  # the block ends, and perhaps others
                            if low == 0 and first == 0 and zeros:
                                return False
                            run = (1 << zeros) - 1
                            if zeros:
                                run += np.int64((bits << _U(length)) >> _U(64 - zeros))
                            used = _U(length + zeros)
                            bits, count = bits << used, count - used
                            break
                        k += zeros
                        if k > last:
                            return False
                        value = _value(bits, length, size) << low
                        if value < -32768 or value > 32767:
                            return False
                        blocks[to + k] = value
                        used = _U(length + size)
                        bits, count = bits << used, count - used
                        k += 1
                    continue
                if first == 0:
                    continue
                while run == 0 and k <= last:
                    bits, count, at = refill(clean, bits, count, at)
                    symbol, length = _read_symbol(bits, codes[ac], tables[ac])
                    if length == 0 or symbol & 15 > 1:
                        return False
                    bits, count = bits << _U(length), count - _U(length)
                    zeros, value = symbol >> 4, 0
                    if symbol & 15:
                        value = (1 << low) if bits >> _U(63) else -(1 << low)
                        bits, count = bits << _U(1), count - _U(1)
                    elif zeros < 15:
                        run = 1 << zeros
                        if zeros:
                            run += np.int64(bits >> _U(64 - zeros))
                            bits, count = bits << _U(zeros), count - _U(zeros)
                        break
                    while k <= last:
                        if blocks[to + k]:
                            bits, count, at = refill(clean, bits, count, at)
                            bits, count = _refine(blocks, to + k, bits, count, low)
                        elif zeros:
                            zeros -= 1
                        else:
                            break
                        k += 1
                    if value and k > last:
                        return False
                    if value:
                        blocks[to + k] = value
                    k += 1
                if run:
                    while k <= last:
                        if blocks[to + k]:
                            bits, count, at = refill(clean, bits, count, at)
                            bits, count = _refine(blocks, to + k, bits, count, low)
                        k += 1
                    run -= 1
    return run == 0 and np.int64(at) - np.int64(count >> _U(3)) == begins[number + 1]


@inline_jit(forceinline=True)
def _put(out, at, bits, count, value, length):
    """Write the `length` low bits of `value`, up to 32: (at, bits, count). Up to 31 bits
    stay in `bits`."""
    bits = bits << _U(length) | _U(value) & ((_U(1) << _U(length)) - _U(1))
    count += length
    if count >= 32:
        count -= 32
        word = np.int64(bits >> _U(count))
        out[at] = word >> 24 & 255
        out[at + 1] = word >> 16 & 255
        out[at + 2] = word >> 8 & 255
        out[at + 3] = word & 255
        at += 4
    return at, bits, count


@inline_jit()
def _flush(out, at, bits, count):
    """Write the bits left, padded with ones to a whole byte; returns where they end."""
    padding = (8 - count) & 7
    bits = bits << _U(padding) | ((_U(1) << _U(padding)) - _U(1))
    count += padding
    while count:
        count -= 8
        out[at] = np.int64(bits >> _U(count)) & 255
        at += 1
    return at


@inline_jit(forceinline=True)
def _size_of(value):
    """Bits of a number's magnitude."""
    return 64 - leading_zeros(_U(abs(value)))


@inline_jit()
def _put_run(out, at, bits, count, run, corrections, pending, table):
    """Write a run of ended blocks and their correction bits: (at, bits, count, run of 0, 0)."""
    if run:
        size = _size_of(run) - 1
        entry = np.int64(table[size << 4])
        at, bits, count = _put(out, at, bits, count, entry & 0xFFFF, entry >> 16)
        at, bits, count = _put(out, at, bits, count, run, size)
        for i in range(pending):
            at, bits, count = _put(out, at, bits, count, np.int64(corrections[i]), 1)
    return at, bits, count, 0, 0


@jit(allocates=True)
def write_scan(
    blocks, places, tables, first, last, high, low, interval, across, down, corrections, out, ends
):
    """Write a scan of `blocks` into `out`: (bytes, intervals), or (-1, 0) where `out` or `ends` is
    too small or a code is missing.

    `tables` (8, WRITE_SIZE) int32. `corrections` (2 MAX_CORRECTIONS,) uint8: working memory. `out`
    uint8 receives the restart intervals without stuffed bytes and markers, each padded with ones to
    a whole byte; `ends` int64 where each ends. The other arguments as for `read_scan`.
    """
    predictions = np.zeros(4, np.int64)
    at, bits, count = 0, _U(0), 0
    run, pending, number, left = 0, 0, 0, interval
    for mcu in range(across * down):
        if interval and left == 0:
            at, bits, count, run, pending = _put_run(
                out, at, bits, count, run, corrections, pending, tables[places[0, AC_CODE]]
            )
            at = _flush(out, at, bits, count)
            bits, count = _U(0), 0
            if number + 1 >= len(ends):
                return -1, 0
            ends[number] = at
            number += 1
            left = interval
            predictions[:] = 0
        left -= 1
        mcu_y, mcu_x = mcu // across, mcu % across
        for c in range(len(places)):
            h, v = places[c, H], places[c, V]
            dc, ac = tables[places[c, DC_CODE]], tables[places[c, AC_CODE]]
            for b in range(h * v):
                row = mcu_y * v + b // h
                place = places[c, FIRST_BLOCK] + row * places[c, ACROSS] + mcu_x * h + b % h
                to = 64 * place
                if at + BLOCK_ROOM > len(out):
                    return -1, 0
                if first == 0:
                    value = np.int64(blocks[to]) >> low
                    if high:
                        at, bits, count = _put(out, at, bits, count, value & 1, 1)
                    else:
                        difference = value - predictions[c]
                        predictions[c] = value
                        size = _size_of(difference)
                        entry = np.int64(dc[size])
                        if entry == 0 or size > 15:
                            return -1, 0
                        difference -= difference < 0
                        word = (entry & 0xFFFF) << size | difference & ((1 << size) - 1)
                        at, bits, count = _put(out, at, bits, count, word, (entry >> 16) + size)
                    if last == 0:
                        continue
                begin = max(first, 1)
                zeros = 0
                if high == 0:
                    for k in range(begin, last + 1):
                        value = np.int64(blocks[to + k])
                        magnitude = abs(value) >> low
                        if magnitude == 0:
                            zeros += 1
                            continue
                        if run:
                            at, bits, count, run, pending = _put_run(
                                out, at, bits, count, run, corrections, 0, ac
                            )
                        while zeros > 15:
                            entry = np.int64(ac[0xF0])
                            if entry == 0:
                                return -1, 0
                            at, bits, count = _put(
                                out, at, bits, count, entry & 0xFFFF, entry >> 16
                            )
                            zeros -= 16
                        size = _size_of(magnitude)
                        entry = np.int64(ac[zeros << 4 | size & 15])
                        if entry == 0 or size > 15:
                            return -1, 0
                        code = magnitude if value > 0 else ~magnitude
                        word = (entry & 0xFFFF) << size | code & ((1 << size) - 1)
                        at, bits, count = _put(out, at, bits, count, word, (entry >> 16) + size)
                        zeros = 0
                    if zeros:
                        run += 1
                        if first == 0 or run == MAX_RUN:  # a sequential block ends by itself
                            at, bits, count, run, pending = _put_run(
                                out, at, bits, count, run, corrections, 0, ac
                            )
                    continue
                # Corrections of coefficients that are not 0 wait until the next new one's code.
                end = 0
                for k in range(begin, last + 1):
                    if abs(np.int64(blocks[to + k])) >> low == 1:
                        end = k
                waiting, base = 0, pending
                for k in range(begin, last + 1):
                    value = np.int64(blocks[to + k])
                    magnitude = abs(value) >> low
                    if magnitude == 0:
                        zeros += 1
                        continue
                    while zeros > 15 and k <= end:
                        at, bits, count, run, pending = _put_run(
                            out, at, bits, count, run, corrections, pending, ac
                        )
                        entry = np.int64(ac[0xF0])
                        if entry == 0:
                            return -1, 0
                        at, bits, count = _put(out, at, bits, count, entry & 0xFFFF, entry >> 16)
                        zeros -= 16
                        for i in range(waiting):
                            correction = np.int64(corrections[base + i])
                            at, bits, count = _put(out, at, bits, count, correction, 1)
                        waiting, base = 0, 0
                    if magnitude > 1:
                        corrections[base + waiting] = magnitude & 1
                        waiting += 1
                        continue
                    at, bits, count, run, pending = _put_run(
                        out, at, bits, count, run, corrections, pending, ac
                    )
                    entry = np.int64(ac[zeros << 4 | 1])
                    if entry == 0:
                        return -1, 0
                    at, bits, count = _put(out, at, bits, count, entry & 0xFFFF, entry >> 16)
                    at, bits, count = _put(out, at, bits, count, np.int64(value > 0), 1)
                    for i in range(waiting):
                        correction = np.int64(corrections[base + i])
                        at, bits, count = _put(out, at, bits, count, correction, 1)
                    waiting, base, zeros = 0, 0, 0
                if zeros or waiting:
                    run += 1
                    pending = base + waiting
                    if run == MAX_RUN or pending > MAX_CORRECTIONS - 63:
                        at, bits, count, run, pending = _put_run(
                            out, at, bits, count, run, corrections, pending, ac
                        )
    at, bits, count, run, pending = _put_run(
        out, at, bits, count, run, corrections, pending, tables[places[0, AC_CODE]]
    )
    at = _flush(out, at, bits, count)
    if number >= len(ends):
        return -1, 0
    ends[number] = at
    return at, number + 1


def read_coefficients(file: JpegFile, data: bytes) -> np.ndarray:
    """The coefficients of all components, (n, 64) int16 in zigzag order; NotTranscodable where a
    scan is damaged."""
    blocks = np.zeros((_first_blocks(file)[-1], 64), np.int16)
    tables = np.zeros((8, READ_SIZE), np.int32)
    for scan in file.scans:
        pieces = [
            piece.replace(b"\xff\x00", b"\xff")
            for piece in _RESTART.split(data[scan.begin : scan.end])
        ]
        begins = np.cumsum([0, *map(len, pieces)])
        clean = np.frombuffer(b"".join(pieces) + bytes(MARGIN), np.uint8)
        for number in {*scan.dc, *scan.ac}:
            if not build_read_table(scan.codes[number], tables[number]):
                raise NotTranscodable("damaged Huffman table")
        spectral = scan.first, scan.last, scan.high, scan.low
        places, down, across = scan_places(file, scan)
        if not read_scan(
            clean,
            begins,
            blocks.reshape(-1),
            places,
            scan.codes,
            tables,
            *spectral,
            scan.interval,
            across,
            down,
        ):
            raise NotTranscodable("damaged scan")
    return blocks


def write_scan_data(file: JpegFile, scan: Scan, blocks: np.ndarray, size: int) -> bytes | None:
    """The entropy-coded data of a scan, of `size` bytes at most; None where it cannot be made."""
    tables = np.zeros((8, WRITE_SIZE), np.int32)
    for number in {*scan.dc, *scan.ac}:
        build_write_table(scan.codes[number], tables[number])
    places, down, across = scan_places(file, scan)
    ends = np.zeros(1 + (across * down // scan.interval if scan.interval else 0), np.int64)
    out = np.empty(size + BLOCK_ROOM, np.uint8)
    length, intervals = write_scan(
        blocks.reshape(-1),
        places,
        tables,
        scan.first,
        scan.last,
        scan.high,
        scan.low,
        scan.interval,
        across,
        down,
        np.zeros(2 * MAX_CORRECTIONS, np.uint8),
        out,
        ends,
    )
    if length < 0:
        return None
    data = out[:length].tobytes()
    pieces = []
    for i in range(intervals):
        piece = data[ends[i - 1] if i else 0 : ends[i]].replace(b"\xff", b"\xff\x00")
        pieces += [piece, bytes((0xFF, RST0 + i % 8))]
    return b"".join(pieces[:-1])


def scan_places(file: JpegFile, scan: Scan) -> tuple[np.ndarray, int, int]:
    """(`places`, MCUs down, MCUs across) of a scan."""
    firsts = _first_blocks(file)
    places = np.zeros((len(scan.components), 6), np.int64)
    for row, c, dc, ac in zip(places, scan.components, scan.dc, scan.ac):
        h, v = file.sampling(c) if len(scan.components) > 1 else (1, 1)
        row[:] = firsts[c], file.blocks(c)[1], h, v, dc, ac
    if len(scan.components) > 1:
        return places, *file.mcus
    return places, *file.scan_blocks(scan.components[0])


def _first_blocks(file: JpegFile) -> list[int]:
    """Number of each component's first block, and of all blocks."""
    firsts = [0]
    for c in range(len(file.components)):
        down, across = file.blocks(c)
        firsts.append(firsts[-1] + down * across)
    return firsts

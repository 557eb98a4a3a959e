"""Writes the entropy-coded scans of a JPEG from coefficients, to the bit as libjpeg does.

Follows libjpeg's jchuff.c and jcphuff.c, whose choices (how long a run of ended blocks may get) all
common encoders share. `out`, `at`, `bits` and `count` are the bit writer's state, see `_put`. A
block's first coefficient is at `to`; `first`, `last`, `high` and `low` are Ss, Se, Ah and Al of the
scan. `run` counts ended blocks that wait for their symbol, `pending` their correction bits in
`corrections`. An `at` of -1 stands for a code that the tables do not have.
"""

import numpy as np

from ..compiler.bits import leading_zeros
from ..compiler.jit import inline_jit, jit
from ..jpeg.markers import PREFIX, RST0
from .block_order import AC_CODE, DC_CODE, H, V, block_at, scan_order
from .jpeg_file import TABLES, JpegFile, Scan

TABLE_SIZE = 256
"""int32 of a Huffman table: length << 16 | code of each symbol, 0 for none."""
BLOCK_ROOM = 512
"""Bytes that one block may take: 64 coefficients of 31 bits, or 1000 correction bits."""
MAX_RUN = 0x7FFF
"""Longest run of ended blocks."""
MAX_CORRECTIONS = 1000
"""libjpeg's buffer of correction bits: a run ends when another block's might not fit."""
_SIXTEEN_ZEROS = 0xF0
"""The symbol ZRL."""
_U = np.uint64


@jit()
def _build_table(code, table):
    """Build the table of a file's `code` (CODE_SIZE,) uint8."""
    table[:] = 0
    word, symbol = 0, 16
    for length in range(1, 17):
        for _ in range(code[length - 1]):
            table[code[symbol]] = length << 16 | word
            word += 1
            symbol += 1
        word <<= 1


@inline_jit(forceinline=True)
def _put(out, at, bits, count, value, length):
    """Write the `length` low bits of `value`, up to 32: (at, bits, count). Up to 31 bits stay in
    `bits`, `count` of them."""
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


@inline_jit(forceinline=True)
def _put_code(out, at, bits, count, entry):
    """Write the code of a table's `entry`: (at, bits, count)."""
    return _put(out, at, bits, count, entry & 0xFFFF, entry >> 16)


@inline_jit(forceinline=True)
def _put_value(out, at, bits, count, entry, value, size):
    """Write the code of a table's `entry` and a value of `size` bits: (at, bits, count). `value`:
    as T.81, F.1.2.1 codes it, a negative one less 1."""
    word = (entry & 0xFFFF) << size | value & ((1 << size) - 1)
    return _put(out, at, bits, count, word, (entry >> 16) + size)


@inline_jit()
def _put_corrections(out, at, bits, count, corrections, begin, number):
    """Write `number` correction bits from `begin` on: (at, bits, count)."""
    for i in range(begin, begin + number):
        at, bits, count = _put(out, at, bits, count, np.int64(corrections[i]), 1)
    return at, bits, count


@inline_jit()
def _put_run(out, at, bits, count, run, corrections, pending, table):
    """Write a run of ended blocks and their correction bits: (at, bits, count, run of 0, 0)."""
    if run:
        size = _size_of(run) - 1
        at, bits, count = _put_code(out, at, bits, count, np.int64(table[size << 4]))
        at, bits, count = _put(out, at, bits, count, run, size)
        at, bits, count = _put_corrections(out, at, bits, count, corrections, 0, pending)
    return at, bits, count, 0, 0


@inline_jit()
def _write_dc(out, at, bits, count, value, high, prediction, table):
    """Write a DC coefficient, shifted by Al: the difference from `prediction`, or its lowest bit:
    (at, bits, count)."""
    if high:
        return _put(out, at, bits, count, value & 1, 1)
    difference = value - prediction
    size = _size_of(difference)
    entry = np.int64(table[size])
    if entry == 0 or size > 15:
        return -1, bits, count
    difference -= difference < 0
    return _put_value(out, at, bits, count, entry, difference, size)


@inline_jit()
def _write_values(out, at, bits, count, run, blocks, to, first, last, low, corrections, table):
    """Write a block's AC coefficients, or the first bits of them: (at, bits, count, run)."""
    zeros = 0
    for k in range(max(first, 1), last + 1):
        value = np.int64(blocks[to + k])
        magnitude = abs(value) >> low
        if magnitude == 0:
            zeros += 1
            continue
        if run:
            at, bits, count, run, _ = _put_run(out, at, bits, count, run, corrections, 0, table)
        while zeros > 15:
            entry = np.int64(table[_SIXTEEN_ZEROS])
            if entry == 0:
                return -1, bits, count, run
            at, bits, count = _put_code(out, at, bits, count, entry)
            zeros -= 16
        size = _size_of(magnitude)
        entry = np.int64(table[zeros << 4 | size & 15])
        if entry == 0 or size > 15:
            return -1, bits, count, run
        code = magnitude if value > 0 else ~magnitude
        at, bits, count = _put_value(out, at, bits, count, entry, code, size)
        zeros = 0
    if zeros:
        run += 1
        if first == 0 or run == MAX_RUN:  # a sequential block ends by itself
            at, bits, count, run, _ = _put_run(out, at, bits, count, run, corrections, 0, table)
    return at, bits, count, run


@inline_jit()
def _write_corrections(
    out, at, bits, count, run, pending, blocks, to, first, last, low, corrections, table
):
    """Write a further bit of a block's AC coefficients: (at, bits, count, run, pending).

    Corrections of coefficients that are not 0 wait until the next new one's code.
    """
    newest = 0  # the last coefficient that becomes other than 0 in this scan
    for k in range(first, last + 1):
        if abs(np.int64(blocks[to + k])) >> low == 1:
            newest = k
    zeros, waiting, base = 0, 0, pending
    for k in range(first, last + 1):
        value = np.int64(blocks[to + k])
        magnitude = abs(value) >> low
        if magnitude == 0:
            zeros += 1
            continue
        while zeros > 15 and k <= newest:
            at, bits, count, run, pending = _put_run(
                out, at, bits, count, run, corrections, pending, table
            )
            entry = np.int64(table[_SIXTEEN_ZEROS])
            if entry == 0:
                return -1, bits, count, run, pending
            at, bits, count = _put_code(out, at, bits, count, entry)
            zeros -= 16
            at, bits, count = _put_corrections(out, at, bits, count, corrections, base, waiting)
            waiting, base = 0, 0
        if magnitude > 1:
            corrections[base + waiting] = magnitude & 1
            waiting += 1
            continue
        at, bits, count, run, pending = _put_run(
            out, at, bits, count, run, corrections, pending, table
        )
        entry = np.int64(table[zeros << 4 | 1])
        if entry == 0:
            return -1, bits, count, run, pending
        at, bits, count = _put_code(out, at, bits, count, entry)
        at, bits, count = _put(out, at, bits, count, np.int64(value > 0), 1)
        at, bits, count = _put_corrections(out, at, bits, count, corrections, base, waiting)
        waiting, base, zeros = 0, 0, 0
    if zeros or waiting:
        run += 1
        pending = base + waiting
        if run == MAX_RUN or pending > MAX_CORRECTIONS - 63:
            at, bits, count, run, pending = _put_run(
                out, at, bits, count, run, corrections, pending, table
            )
    return at, bits, count, run, pending


@jit(allocates=True)
def _write_scan(
    blocks, order, tables, first, last, high, low, interval, across, down, corrections, out, ends
):
    """Write a scan of `blocks` into `out`: (bytes, intervals), or (-1, 0) where `out` or `ends` is
    too small or a code is missing.

    `blocks` (n · 64,) int16. `order`: of `scan_order`. `tables` (TABLES, TABLE_SIZE) int32.
    `corrections` (2 MAX_CORRECTIONS,) uint8: working memory. `across`, `down`: MCUs of the scan.
    `interval`: MCUs of a restart interval, 0 for none. `out` uint8 receives the restart intervals
    without stuffed bytes and markers, each padded with ones to a whole byte; `ends` int64 where
    each ends.
    """
    predictions = np.zeros(4, np.int64)
    at, bits, count = 0, _U(0), 0
    run, pending, number, left = 0, 0, 0, interval
    for mcu in range(across * down):
        # 1. Restart interval.
        if interval and left == 0:
            at, bits, count, run, pending = _put_run(
                out, at, bits, count, run, corrections, pending, tables[order[0, AC_CODE]]
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
        # 2. The MCU's blocks.
        for c in range(len(order)):
            dc, ac = tables[order[c, DC_CODE]], tables[order[c, AC_CODE]]
            for b in range(order[c, H] * order[c, V]):
                to = block_at(order, c, mcu // across, mcu % across, b)
                if at + BLOCK_ROOM > len(out):
                    return -1, 0
                if first == 0:
                    value = np.int64(blocks[to]) >> low
                    at, bits, count = _write_dc(
                        out, at, bits, count, value, high, predictions[c], dc
                    )
                    predictions[c] = value
                if at >= 0 and last:
                    if high == 0:
                        at, bits, count, run = _write_values(
                            out, at, bits, count, run, blocks, to, first, last, low,
                            corrections, ac,
                        )  # fmt: skip
                    else:
                        at, bits, count, run, pending = _write_corrections(
                            out, at, bits, count, run, pending, blocks, to, first, last, low,
                            corrections, ac,
                        )  # fmt: skip
                if at < 0:
                    return -1, 0
    at, bits, count, run, pending = _put_run(
        out, at, bits, count, run, corrections, pending, tables[order[0, AC_CODE]]
    )
    at = _flush(out, at, bits, count)
    if number >= len(ends):
        return -1, 0
    ends[number] = at
    return at, number + 1


def write_scan_data(file: JpegFile, scan: Scan, blocks: np.ndarray, size: int) -> bytes | None:
    """The entropy-coded data of a scan, of `size` bytes at most; None where it cannot be made.

    `blocks` (n, 64) int16: of `read_coefficients`.
    """
    tables = np.zeros((TABLES, TABLE_SIZE), np.int32)
    for number in {*scan.dc, *scan.ac}:
        _build_table(scan.codes[number], tables[number])
    order, down, across = scan_order(file, scan)
    ends = np.zeros(1 + (across * down // scan.interval if scan.interval else 0), np.int64)
    out = np.empty(size + BLOCK_ROOM, np.uint8)
    length, intervals = _write_scan(
        blocks.reshape(-1),
        order,
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
        pieces += [piece, bytes((PREFIX, RST0 + i % 8))]
    return b"".join(pieces[:-1])

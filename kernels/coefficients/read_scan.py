"""Reads the entropy-coded scans of a JPEG to coefficients, sequential and progressive ones.

Follows T.81, F.2 and G.2. `bits`, `count` and `at` are the bit reader's state, see
`jpeg.entropy.refill`. A block's first coefficient is at `to`; `first`, `last`, `high` and `low` are
Ss, Se, Ah and Al of the scan.
"""

import re

import numpy as np

from ..compiler.jit import inline_jit, jit
from ..jpeg.entropy import read_value, refill
from .block_order import AC_CODE, DC_CODE, H, V, block_at, count_blocks, scan_order
from .jpeg_file import CODE_SIZE, TABLES, JpegFile, NotTranscodable

LOOKUP_BITS = 9
_LOOKUP = 1 << LOOKUP_BITS
_LIMIT, _SHIFT = _LOOKUP, _LOOKUP + 17
TABLE_SIZE = _LOOKUP + 2 * 17
"""int32 of a Huffman table. `1 << LOOKUP_BITS` entries by the next bits, length << 8 | symbol, 0
where the code is longer; by length, one past the last code, left-aligned to 16 bits; by length,
what to add to a code for its symbol's place in the file's table."""
MARGIN = 16
"""Zeros behind the data of a scan, which the bit reader may take."""
BLOCKS_A_BYTE = 64
"""Most blocks that a file may claim for each of its bytes. A block takes a bit at least, unless it
lies in the padding of the last MCUs."""
_U = np.uint64
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")


@jit()
def _build_table(code, table):
    """Build the table of a file's `code` (CODE_SIZE,) uint8; returns whether it is a Huffman
    code."""
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


@inline_jit()
def _read_run(bits, length, zeros):
    """The blocks that end at a symbol of `length` bits whose high half is `zeros`."""
    run = 1 << zeros
    return run + np.int64((bits << _U(length)) >> _U(64 - zeros)) if zeros else run


@inline_jit()
def _read_dc(clean, bits, count, at, blocks, to, high, low, prediction, code, table):
    """Read a DC coefficient, as a difference from `prediction` << `low`, or a further bit of it:
    (whether it is sound, bits, count, at, the next prediction)."""
    bits, count, at = refill(clean, bits, count, at)
    if high:
        blocks[to] |= np.int64(bits >> _U(63)) << low
        return True, bits << _U(1), count - _U(1), at, prediction
    size, length = _read_symbol(bits, code, table)
    if length == 0 or size > 15:
        return False, bits, count, at, prediction
    prediction += read_value(bits, length, size)
    value = prediction << low
    if value < -32768 or value > 32767:
        return False, bits, count, at, prediction
    blocks[to] = value
    used = _U(length + size)
    return True, bits << used, count - used, at, prediction


@inline_jit()
def _read_values(clean, bits, count, at, blocks, to, first, last, low, run, code, table):
    """Read a block's AC coefficients, or the first bits of them: (whether they are sound, bits,
    count, at, run). `run`: blocks that have ended already, this one included."""
    if run:
        return True, bits, count, at, run - 1
    k = max(first, 1)
    while k <= last:
        bits, count, at = refill(clean, bits, count, at)
        symbol, length = _read_symbol(bits, code, table)
        if length == 0:
            return False, bits, count, at, run
        zeros, size = symbol >> 4, symbol & 15
        if size == 0 and zeros < 15:  # the block ends, and perhaps others
            if low == 0 and first == 0 and zeros:
                return False, bits, count, at, run
            run = _read_run(bits, length, zeros) - 1
            used = _U(length + zeros)
            return True, bits << used, count - used, at, run
        k += zeros
        value = read_value(bits, length, size) << low
        if k > last or value < -32768 or value > 32767:
            return False, bits, count, at, run
        blocks[to + k] = value
        used = _U(length + size)
        bits, count = bits << used, count - used
        k += 1
    return True, bits, count, at, run


@inline_jit()
def _correct(clean, bits, count, at, blocks, to, k, last, low, zeros):
    """Read the correction bits of the coefficients that are not 0, from `k` to the one behind
    `zeros` zeros, or to `last`: (bits, count, at, where that ends)."""
    while k <= last:
        value = np.int64(blocks[to + k])
        if value:
            bits, count, at = refill(clean, bits, count, at)
            if bits >> _U(63) and abs(value) >> low & 1 == 0:
                blocks[to + k] = value + (1 << low) if value > 0 else value - (1 << low)
            bits, count = bits << _U(1), count - _U(1)
        elif zeros:
            zeros -= 1
        else:
            break
        k += 1
    return bits, count, at, k


@inline_jit()
def _read_corrections(clean, bits, count, at, blocks, to, first, last, low, run, code, table):
    """Read a further bit of a block's AC coefficients; returns as `_read_values` does."""
    k = first
    while run == 0 and k <= last:
        bits, count, at = refill(clean, bits, count, at)
        symbol, length = _read_symbol(bits, code, table)
        if length == 0 or symbol & 15 > 1:
            return False, bits, count, at, run
        zeros, value = symbol >> 4, 0
        if symbol & 15 == 0 and zeros < 15:  # the block ends, and perhaps others
            run = _read_run(bits, length, zeros)
            bits, count = bits << _U(length + zeros), count - _U(length + zeros)
            break
        bits, count = bits << _U(length), count - _U(length)
        if symbol & 15:
            value = (1 << low) if bits >> _U(63) else -(1 << low)
            bits, count = bits << _U(1), count - _U(1)
        bits, count, at, k = _correct(clean, bits, count, at, blocks, to, k, last, low, zeros)
        if value:
            if k > last:
                return False, bits, count, at, run
            blocks[to + k] = value
        k += 1
    if run:
        bits, count, at, _ = _correct(clean, bits, count, at, blocks, to, k, last, low, 64)
        run -= 1
    return True, bits, count, at, run


@jit(allocates=True)
def _read_scan(
    clean, begins, blocks, order, codes, tables, first, last, high, low, interval, across, down
):
    """Read a scan into `blocks`; returns whether its data is sound and used up.

    `clean` uint8: the restart intervals without stuffed bytes and markers, MARGIN zeros at the end;
    interval i lies between `begins[i]` and `begins[i + 1]`. `blocks` (n · 64,) int16. `order`: of
    `scan_order`. `codes` (TABLES, CODE_SIZE) uint8; `tables` (TABLES, TABLE_SIZE) int32. `across`,
    `down`: MCUs of the scan. `interval`: MCUs of a restart interval, 0 for none.
    """
    predictions = np.zeros(4, np.int64)
    bits, count, at = _U(0), _U(0), _U(begins[0])
    run = 0  # blocks that have ended, of a progressive scan
    number, left = 0, interval
    for mcu in range(across * down):
        # 1. Restart interval: it must end where the marker stood.
        if interval and left == 0:
            if run or np.int64(at) - np.int64(count >> _U(3)) != begins[number + 1]:
                return False
            number += 1
            if number + 1 >= len(begins):
                return False
            bits, count, at, left = _U(0), _U(0), _U(begins[number]), interval
            predictions[:] = 0
        left -= 1
        # 2. The MCU's blocks.
        for c in range(len(order)):
            dc, ac = order[c, DC_CODE], order[c, AC_CODE]
            for b in range(order[c, H] * order[c, V]):
                to = block_at(order, c, mcu // across, mcu % across, b)
                if np.int64(at) - np.int64(count >> _U(3)) > begins[number + 1]:
                    return False
                sound = True
                if first == 0:
                    sound, bits, count, at, predictions[c] = _read_dc(
                        clean, bits, count, at, blocks, to, high, low, predictions[c],
                        codes[dc], tables[dc],
                    )  # fmt: skip
                    if not sound:
                        return False
                if high == 0:
                    sound, bits, count, at, run = _read_values(
                        clean, bits, count, at, blocks, to, first, last, low, run,
                        codes[ac], tables[ac],
                    )  # fmt: skip
                elif first:
                    sound, bits, count, at, run = _read_corrections(
                        clean, bits, count, at, blocks, to, first, last, low, run,
                        codes[ac], tables[ac],
                    )  # fmt: skip
                if not sound:
                    return False
    return run == 0 and np.int64(at) - np.int64(count >> _U(3)) == begins[number + 1]


def read_coefficients(file: JpegFile, data: bytes) -> np.ndarray:
    """The coefficients of all components, (n, 64) int16 in zigzag order, in `block_order`.

    NotTranscodable where a scan or a Huffman table is damaged, and where the file is too short for
    the size that it claims.
    """
    if count_blocks(file) > BLOCKS_A_BYTE * len(data):
        raise NotTranscodable("fewer data than the image's size needs")
    blocks = np.zeros((count_blocks(file), 64), np.int16)
    tables = np.zeros((TABLES, TABLE_SIZE), np.int32)
    for scan in file.scans:
        pieces = [
            piece.replace(b"\xff\x00", b"\xff")
            for piece in _RESTART.split(data[scan.begin : scan.end])
        ]
        begins = np.cumsum([0, *map(len, pieces)])
        clean = np.frombuffer(b"".join(pieces) + bytes(MARGIN), np.uint8)
        for number in {*scan.dc, *scan.ac}:
            if not _build_table(scan.codes[number], tables[number]):
                raise NotTranscodable("damaged Huffman table")
        order, down, across = scan_order(file, scan)
        if not _read_scan(
            clean,
            begins,
            blocks.reshape(-1),
            order,
            scan.codes,
            tables,
            scan.first,
            scan.last,
            scan.high,
            scan.low,
            scan.interval,
            across,
            down,
        ):
            raise NotTranscodable("damaged scan")
    return blocks

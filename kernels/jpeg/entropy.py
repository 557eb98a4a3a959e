"""Baseline JPEG's entropy coding: Huffman codes to dequantised coefficients, several bits of code
and value at a time.

Codes and the bits that follow them are looked up together where both fit in `LOOK` bits, which
nearly all do, so that a coefficient costs one dependent table read. (libjpeg looks up the code,
then takes the bits.)
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..compiler.jit import inline_jit

LOOK = 11
"""Bits looked up at once."""
TABLE = 1 << LOOK
LONG = 64
"""int32 behind each table for the codes that are longer than `LOOK`: by length, one past the last
code (left-aligned to 16 bits) and the offset of its symbol; see `build_table`."""
BETWEEN_REFILLS = 4
"""Look-ups that 56 bits are enough for."""
END = 128
"""The run that stands for "no more coefficients": it leaves the block whatever was read of it."""
ROOM = 4096
"""Bytes that reading may go beyond the data, which must exist: one MCU's at most."""

_U = np.uint64
_ZIGZAG = np.full(256, 64, np.uint64)  # places behind the block take what lies beyond it
_ZIGZAG[:64] = [
    *(
        0,
        1,
        8,
        16,
        9,
        2,
        3,
        10,
        17,
        24,
        32,
        25,
        18,
        11,
        4,
        5,
        12,
        19,
        26,
        33,
        40,
        48,
        41,
        34,
        27,
        20,
        13,
        6,
        7,
        14,
        21,
    ),
    *(
        28,
        35,
        42,
        49,
        56,
        57,
        50,
        43,
        36,
        29,
        22,
        15,
        23,
        30,
        37,
        44,
        51,
        58,
        59,
        52,
        45,
        38,
        31,
        39,
        46,
        53,
        60,
        61,
    ),
    *(54, 47, 55, 62, 63),
]


@intrinsic
def _load_big_endian(typing_context, array, index):
    """The uint64 whose bytes begin at `index` of a uint8 array, the first byte highest."""

    def generate(context, builder, signature, arguments):
        data = context.make_array(array)(context, builder, arguments[0]).data
        word = ir.IntType(64)
        pointer = builder.bitcast(builder.gep(data, [arguments[1]]), word.as_pointer())
        return builder.bswap(builder.load(pointer, align=1))

    return types.uint64(array, types.uint64), generate


@inline_jit()
def build_table(data, at, ac, table, to):
    """The look-up table of a DHT segment's code, whose 16 counts lie at `at` of `data`, into
    `table` from `to` on.

    `table` (…, TABLE + LONG) int32, flat. An entry of bits that hold a whole symbol with its value:
    the value << 16 | the run << 8 | bits used. Where the value's bits do not fit, bits used are 0:
    code length << 24 | value bits << 16 | run << 8. Zero for longer codes and those that mean
    nothing. Returns whether libjpeg takes the table.
    """
    table[to : to + TABLE + LONG] = 0
    code, symbol = 0, at + 16
    for length in range(1, 17):
        count = np.int64(data[at + length - 1])
        if count > 0 and code + count >= 1 << length:  # no code is all ones
            return False
        for k in range(count):
            if not ac and data[symbol + k] > 15:
                return False
        table[to + TABLE + 2 * length] = (code + count) << (16 - length)
        table[to + TABLE + 2 * length + 1] = symbol - code
        if length <= LOOK:
            for _ in range(count):
                _fill(table, to + (code << (LOOK - length)), length, np.int64(data[symbol]), ac)
                code, symbol = code + 1, symbol + 1
        else:
            code, symbol = code + count, symbol + count
        code <<= 1
    return True


@inline_jit(forceinline=True)
def _run(symbol, ac):
    """How many coefficients a symbol passes over; with its value's bits in the lower half."""
    if not ac:
        return 0
    return END if symbol & 15 == 0 and symbol != 0xF0 else symbol >> 4


@inline_jit(forceinline=True)
def _fill(table, first, length, symbol, ac):
    """The entries of one code of at most `LOOK` bits."""
    bits = symbol & 15
    left = LOOK - length - bits
    if left < 0:
        entry = length << 24 | bits << 16 | _run(symbol, ac) << 8
        table[first : first + (1 << (LOOK - length))] = entry
        return
    for raw in range(1 << bits):
        value = raw if bits == 0 or raw >> (bits - 1) else raw - (1 << bits) + 1
        entry = value << 16 | _run(symbol, ac) << 8 | (length + bits)
        table[first + (raw << left) : first + ((raw + 1) << left)] = entry


@inline_jit(forceinline=True)
def refill(data, bits, count, at):
    """At least 56 of the stream's bits in `bits`, the next one highest; `count` of them are valid,
    `at` bytes read."""
    bits |= _load_big_endian(data, at) >> count
    return bits, count | _U(56), at + ((_U(63) - count) >> _U(3))


@inline_jit()
def _symbol(bits, data, table, to, ac):
    """What the table does not hold directly: (run, value, bits used); a run of -1 where the bits
    are no code."""
    entry = table[to + np.int64(bits >> _U(64 - LOOK))]
    if entry != 0:
        length, size, run = entry >> 24, (entry >> 16) & 15, (entry >> 8) & 255
    else:
        code, length = np.int64(bits >> _U(48)), LOOK + 1
        while length <= 16 and code >= table[to + TABLE + 2 * length]:
            length += 1
        if length > 16:
            return -1, 0, 0
        symbol = np.int64(data[table[to + TABLE + 2 * length + 1] + (code >> (16 - length))])
        size, run = symbol & 15, _run(symbol, ac)
    value = 0
    if size:
        value = np.int64((bits << _U(length)) >> _U(64 - size))
        if value < 1 << (size - 1):
            value -= (1 << size) - 1
    return run, value, length + size


@inline_jit(forceinline=True)
def read_block(clean, bits, count, at, data, table, dc, ac, quantisation, q, block, to):
    """One block's coefficients, dequantised, into `block` (65,) int16 from `to` on, in rows; its AC
    part was 0.

    The bits of `clean` come as `refill` leaves them; codes by the tables at `dc` and `ac`, their
    symbols in `data`; `quantisation` from `q` on, in zigzag order. Returns the reader's state, the
    DC difference (not yet dequantised), and where the block ended: 1 + END where all of AC is 0,
    and 0 where a code was wrong.
    """
    if count < _U(32):
        bits, count, at = refill(clean, bits, count, at)
    entry = table[_U(dc) + (bits >> _U(64 - LOOK))]
    used = _U(entry & 63)
    difference = np.int64(entry >> 16)
    if used == _U(0):
        run, difference, length = _symbol(bits, data, table, dc, False)
        if run < 0:
            return bits, count, at, difference, _U(0)
        used = _U(length)
    bits, count = bits << used, count - used
    k = _U(1)
    while k < _U(64):
        bits, count, at = refill(clean, bits, count, at)
        entry = table[_U(ac) + (bits >> _U(64 - LOOK))]
        if entry & 63 == 0:
            run, value, length = _symbol(bits, data, table, ac, True)
            if run < 0:
                return bits, count, at, difference, _U(0)
            k += _U(run)
            block[_U(to) + _ZIGZAG[k]] = value * quantisation[_U(q) + k]
            k += _U(1)
            bits, count = bits << _U(length), count - _U(length)
            continue
        for _ in range(BETWEEN_REFILLS):
            k += _U((entry >> 8) & 255)
            block[_U(to) + _ZIGZAG[k]] = (entry >> 16) * quantisation[_U(q) + k]
            k += _U(1)
            used = _U(entry & 63)
            bits, count = bits << used, count - used
            entry = table[_U(ac) + (bits >> _U(64 - LOOK))]
            if k >= _U(64) or entry & 63 == 0:
                break
    if k > _U(64) and k < _U(2 + END):
        k = _U(0)  # a run beyond the block
    return bits, count, at, difference, k

"""Huffman decoding of baseline JPEG blocks to dequantised coefficients.

One table look-up on the next `LOOKUP_BITS` bits yields a Huffman code together with the value bits
that follow it, where both fit; nearly all do. A coefficient then costs one dependent table read,
where libjpeg takes two: the code, then its value.

Names: `bits`, `count`, `at` are the bit reader's state, see `refill`; `table` holds the look-up
tables of all codes, each `TABLE_SIZE` int32; `k` is a coefficient's place in zigzag order.
"""

import numpy as np

from ..compiler.bits import count_bits, load_big_endian
from ..compiler.features import has_vbmi2
from ..compiler.jit import inline_jit
from ..compiler.vector import first_lane, load, store
from ..compiler.vector_gather import bits_of, compress
from .markers import EOI, PREFIX, RST0, STUFFED

LOOKUP_BITS = 11
"""Bits of code and value looked up at once."""
LOOKUP_SIZE = 1 << LOOKUP_BITS
LONG_CODES = 64
"""int32 behind each look-up table, for the codes longer than `LOOKUP_BITS`; see `build_table`."""
TABLE_SIZE = LOOKUP_SIZE + LONG_CODES
LOOKUPS_PER_REFILL = 4
"""After a refill there are 56 bits: four look-ups take up to 44, and a fifth sees 11 more."""
END_OF_BLOCK = 128
"""Run length that stands for the end-of-block symbol. It moves `k` past 64 from any place."""
READ_MARGIN = 16384
"""Bytes behind the entropy-coded data that must exist, since damage is noticed late: after an MCU,
or after the MCUs from one checkpoint to the next. Their 48 blocks of 64 coefficients of at most 31
bits take 11904."""
COEFFICIENT_BITS = 14
"""Width of the dequantised coefficients taken: -8192 to 8191. Photographs stay within -1024 to
1023 and a quantiser's rounding. Beyond, decoders overflow at different steps of the inverse DCT."""
DUMP_SLOT = 64
"""Place in a block's memory that receives coefficients beyond the 63rd."""

_U = np.uint64
# Natural order by zigzag order. Entries from 64 on send out-of-range coefficients to a dump slot;
# `k` reaches 63 + END_OF_BLOCK.
NATURAL_ORDER = np.full(256, DUMP_SLOT, np.uint64)
# fmt: off
NATURAL_ORDER[:64] = [
     0,  1,  8, 16,  9,  2,  3, 10,
    17, 24, 32, 25, 18, 11,  4,  5,
    12, 19, 26, 33, 40, 48, 41, 34,
    27, 20, 13,  6,  7, 14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36,
    29, 22, 15, 23, 30, 37, 44, 51,
    58, 59, 52, 45, 38, 31, 39, 46,
    53, 60, 61, 54, 47, 55, 62, 63,
]
# fmt: on


@inline_jit()
def _drop_none(data, at, size, clean, to):
    """`_drop_stuffed` for CPUs that cannot."""
    return at, to


@inline_jit()
def _drop_stuffed(data, at, size, clean, to):
    """Copy data of the scan without stuffed bytes, 64 bytes at a time, up to a marker: (at, to).
    For CPUs with VBMI2."""
    after_prefix = _U(0)  # whether the byte before is 0xFF
    while at + 65 <= size:
        chunk = load(data, at, 64)
        prefixes = _U(bits_of(chunk == np.uint8(PREFIX)))
        if prefixes & _U(bits_of(load(data, at + 1, 64) != np.uint8(STUFFED))):
            break
        keep = ~(prefixes << _U(1) | after_prefix)
        store(clean, to, compress(chunk, keep))
        to += count_bits(np.int64(keep))
        after_prefix = prefixes >> _U(63)
        at += 64
    return at + np.int64(after_prefix), to


_drop = _drop_stuffed if has_vbmi2() else _drop_none


@inline_jit()
def unstuff(data, begin, size, clean, restarts):
    """Copy the scan's data without stuffed bytes and restart markers: (bytes, restart markers), or
    (-1, 0) where it is not plain.

    `data` uint8: the scan from `begin` on, in a file of `size` bytes. `clean` uint8 receives the
    data, followed by 64 zeros; `restarts` int64 the positions in `clean` behind each restart
    marker. Restart markers must be numbered in turn, and EOI must follow the scan.
    """
    at, to, count = begin, 0, 0
    while True:
        at, to = _drop(data, at, size, clean, to)
        # Copy 32 bytes at a time; stop at the first 0xFF among them.
        while at + 64 <= size:
            chunk = load(data, at, 32)
            store(clean, to, chunk)
            step = first_lane(chunk == np.uint8(PREFIX))
            at += step
            to += step
            if step < 32:
                break
        while at < size and data[at] != PREFIX:
            clean[to] = data[at]
            at += 1
            to += 1
        if at + 1 >= size:
            return -1, 0
        # 0xFF: a stuffed byte, the next restart marker, or the end.
        following = data[at + 1]
        if following == STUFFED:
            clean[to] = PREFIX
            to += 1
        elif following == RST0 + (count & 7) and count < len(restarts):
            restarts[count] = to
            count += 1
        elif following == EOI:
            break
        else:
            return -1, 0
        at += 2
    clean[to : to + 64] = 0
    return to, count


@inline_jit()
def build_table(data, at, ac, table, to):
    """Build the look-up table of one Huffman code; returns whether libjpeg would take the code.

    The code's 16 counts by length, then its symbols, lie in `data` from `at` on, as in a DHT
    segment. `ac`: whether it is an AC code. `table` int32, flat; written from `to` on:

    - `LOOKUP_SIZE` entries by the next bits. Code and value both fit: value << 16 | run << 8 | bits
      used. The code fits but not its value: code length << 24 | value bits << 16 | run << 8, so
      that the bits used read 0. A longer or invalid code: 0.
    - `LONG_CODES` entries. The first is the most value bits of an entry with code and value. At
      2 · length: one past the last code of this length, left-aligned to 16
      bits; at 2 · length + 1: what to add to a code for the place of its symbol in `data`.
    """
    table[to : to + TABLE_SIZE] = 0
    code, symbol = 0, at + 16
    for length in range(1, 17):
        count = np.int64(data[at + length - 1])
        if count > 0 and code + count >= 1 << length:  # the code of all ones is reserved
            return False
        for k in range(count):
            if not ac and data[symbol + k] > 15:  # a DC symbol is a number of value bits
                return False
        table[to + LOOKUP_SIZE + 2 * length] = (code + count) << (16 - length)
        table[to + LOOKUP_SIZE + 2 * length + 1] = symbol - code
        if length <= LOOKUP_BITS:
            for _ in range(count):
                first = to + (code << (LOOKUP_BITS - length))
                bits = np.int64(data[symbol]) & 15
                if length + bits <= LOOKUP_BITS:
                    table[to + LOOKUP_SIZE] = max(table[to + LOOKUP_SIZE], bits)
                _fill_entries(table, first, length, np.int64(data[symbol]), ac)
                code += 1
                symbol += 1
        else:
            code += count
            symbol += count
        code <<= 1  # canonical codes: the next length continues from here
    return True


@inline_jit()
def build_code_table(data, at, ac, table, to):
    """`build_table` without values, for `lanes`: entries by the next bits are step << 16 |
    value bits << 8 | (32 - the bits of code and value); 0 for a longer or invalid code.

    `step`: coefficients that the symbol moves on by, its own included; 64 for end of block.
    """
    table[to : to + TABLE_SIZE] = 0
    code, symbol = 0, at + 16
    for length in range(1, 17):
        count = np.int64(data[at + length - 1])
        if count > 0 and code + count >= 1 << length:  # the code of all ones is reserved
            return False
        table[to + LOOKUP_SIZE + 2 * length] = (code + count) << (16 - length)
        table[to + LOOKUP_SIZE + 2 * length + 1] = symbol - code
        for k in range(count):
            value = np.int64(data[symbol + k])
            if not ac and value > 15:  # a DC symbol is a number of value bits
                return False
            if length <= LOOKUP_BITS:
                first = to + ((code + k) << (LOOKUP_BITS - length))
                entry = code_entry(value, length, ac)
                table[first : first + (1 << (LOOKUP_BITS - length))] = entry
        code, symbol = (code + count) << 1, symbol + count
    return True


@inline_jit(forceinline=True)
def code_entry(symbol, length, ac):
    """The entry of `build_code_table` for a symbol with a code of `length` bits."""
    size = symbol & 15
    step = min(_run_length(symbol, ac) + 1, 64)
    return step << 16 | size << 8 | (32 - length - size)


@inline_jit()
def find_long_code(code, data, table, to):
    """Find the code, longer than `LOOKUP_BITS`, that the 16 bits `code` begin with: (its length,
    its symbol); (0, 0) for none."""
    length = LOOKUP_BITS + 1
    while length <= 16 and code >= table[to + LOOKUP_SIZE + 2 * length]:
        length += 1
    if length > 16:
        return 0, 0
    place = table[to + LOOKUP_SIZE + 2 * length + 1] + (code >> (16 - length))
    return length, np.int64(data[place])


@inline_jit(forceinline=True)
def _run_length(symbol, ac):
    """Zero coefficients before a symbol's value: the high half of an AC symbol.

    A symbol without value bits is END_OF_BLOCK, except 0xF0 (ZRL), which is 16 zeros: a run of 15
    and a value of 0.
    """
    if not ac:
        return 0
    return END_OF_BLOCK if symbol & 15 == 0 and symbol != 0xF0 else symbol >> 4


@inline_jit(forceinline=True)
def _fill_entries(table, first, length, symbol, ac):
    """Write the look-up entries of one code of at most `LOOKUP_BITS` bits, from `first` on."""
    bits = symbol & 15
    left = LOOKUP_BITS - length - bits
    if left < 0:
        # The value does not fit: one entry for all bits that may follow the code.
        entry = length << 24 | bits << 16 | _run_length(symbol, ac) << 8
        table[first : first + (1 << (LOOKUP_BITS - length))] = entry
        return
    for raw in range(1 << bits):
        # A value whose highest bit is 0 is negative (T.81, figure F.12).
        value = raw if bits == 0 or raw >> (bits - 1) else raw - (1 << bits) + 1
        entry = value << 16 | _run_length(symbol, ac) << 8 | (length + bits)
        table[first + (raw << left) : first + ((raw + 1) << left)] = entry


@inline_jit(forceinline=True)
def is_wild(coefficient):
    """Whether a dequantised coefficient takes more than `COEFFICIENT_BITS`; 0 for False."""
    return (coefficient + (1 << (COEFFICIENT_BITS - 1))) >> COEFFICIENT_BITS


@inline_jit()
def lengthen_entries(table, to, quantisation, q):
    """Turn the look-up entries of values that may exceed `COEFFICIENT_BITS` when dequantised into
    entries of the code alone, of which `read_block` checks the value.

    `table` int32, flat, the look-up table of an AC code from `to` on; `quantisation` int32, from
    `q` on. Encoders' tables have few such entries or none: a large value with a short code.
    """
    largest = np.int64(0)
    for k in range(1, 64):
        largest = max(largest, np.int64(quantisation[q + k]))
    if not is_wild(largest << table[to + LOOKUP_SIZE]):
        return
    for i in range(to, to + LOOKUP_SIZE):
        value = np.int64(table[i] >> 16)
        used = table[i] & 63
        if used and is_wild(abs(value) * largest):
            bits = 0
            while abs(value) >> bits:
                bits += 1
            table[i] = (used - bits) << 24 | bits << 16 | table[i] & 0xFF00


@inline_jit(forceinline=True)
def refill(data, bits, count, at):
    """Refill the bit reader to at least 56 valid bits; returns its state (bits, count, at).

    `bits` uint64 holds the stream's next bits from the highest on, `count` of which are valid; `at`
    is the next byte of `data` (bytes,) uint8. Bits below the valid ones may be set already: they
    are the stream's own, so that reading them again changes nothing.
    """
    bits |= load_big_endian(data, at) >> count
    return bits, count | _U(56), at + ((_U(63) - count) >> _U(3))


@inline_jit(forceinline=True)
def read_value(bits, length, size):
    """The number of `size` bits, up to 15, behind the `length` first ones of `bits`; negative where
    its highest bit is 0 (T.81, figure F.12)."""
    if size == 0:
        return 0
    value = np.int64((bits << _U(length)) >> _U(64 - size))
    return value if value >> (size - 1) else value - (1 << size) + 1


@inline_jit()
def decode_long(bits, data, table, to, ac):
    """Decode a symbol that the look-up table does not hold with its value: (run, value, bits used);
    a run of -1 where the bits are no code.

    `table` from `to` on; its symbols are in `data`. Takes up to 31 of the `bits`.
    """
    entry = table[to + np.int64(bits >> _U(64 - LOOKUP_BITS))]
    if entry != 0:
        length = entry >> 24
        size = (entry >> 16) & 15
        run = (entry >> 8) & 255
    else:
        length, symbol = find_long_code(np.int64(bits >> _U(48)), data, table, to)
        if length == 0:
            return -1, 0, 0
        size = symbol & 15
        run = _run_length(symbol, ac)
    return run, read_value(bits, length, size), length + size


@inline_jit(forceinline=True)
def read_block(clean, bits, count, at, data, table, dc, ac, quantisation, q, block, to):
    """Decode one block: (bits, count, at, difference, end).

    `clean` (bytes,) uint8 is the entropy-coded data without stuffed bytes; `bits`, `count`, `at` as
    in `refill`. `table` int32, flat: the DC and AC tables begin at `dc` and `ac`, their symbols are
    in `data` uint8. `quantisation` int32, zigzag order, from `q` on, 0 from 64 on. `block` int16,
    from `to` on: 64 coefficients in natural order and the dump slot; the AC part must be 0, and
    receives the dequantised coefficients.

    `difference` is the DC value less the previous block's, not yet dequantised. `end` is 0 where a
    code is invalid, a run goes past the block or a coefficient takes more than `COEFFICIENT_BITS`;
    2 + END_OF_BLOCK where the block ends after DC; another number otherwise.
    """
    # DC: 31 bits at most.
    if count < _U(32):
        bits, count, at = refill(clean, bits, count, at)
    entry = table[_U(dc) + (bits >> _U(64 - LOOKUP_BITS))]
    used = _U(entry & 63)
    difference = np.int64(entry >> 16)
    if used == _U(0):
        run, difference, length = decode_long(bits, data, table, dc, False)
        if run < 0:
            return bits, count, at, difference, _U(0)
        used = _U(length)
    bits <<= used
    count -= used

    # AC: each symbol skips a run of zeros and sets one coefficient, until `k` passes 63.
    k = _U(1)
    while k < _U(64):
        bits, count, at = refill(clean, bits, count, at)
        entry = table[_U(ac) + (bits >> _U(64 - LOOKUP_BITS))]
        if entry & 63 == 0:
            run, value, length = decode_long(bits, data, table, ac, True)
            if run < 0:
                return bits, count, at, difference, _U(0)
            k += _U(run)
            coefficient = value * quantisation[_U(q) + k]
            if is_wild(coefficient):
                return bits, count, at, difference, _U(0)
            block[_U(to) + NATURAL_ORDER[k]] = coefficient
            k += _U(1)
            bits <<= _U(length)
            count -= _U(length)
            continue
        # Symbols that one look-up decodes in full; no check of `k` before the write, since the
        # dump slot takes what lies outside the block.
        for _ in range(LOOKUPS_PER_REFILL):
            k += _U((entry >> 8) & 255)
            block[_U(to) + NATURAL_ORDER[k]] = (entry >> 16) * quantisation[_U(q) + k]
            k += _U(1)
            used = _U(entry & 63)
            bits <<= used
            count -= used
            entry = table[_U(ac) + (bits >> _U(64 - LOOKUP_BITS))]
            if k >= _U(64) or entry & 63 == 0:
                break
    # `k` is 64 after a last coefficient, 2 + END_OF_BLOCK or more after an end of block.
    if k > _U(64) and k < _U(2 + END_OF_BLOCK):
        k = _U(0)  # a run beyond the block
    return bits, count, at, difference, k

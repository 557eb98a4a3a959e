"""Entropy decoding of chunks in 32 lanes of AVX-512: two vectors of 16 streams, in lockstep.

A step decodes one symbol in each lane: it gathers the lane's next bits and their table entry, and
scatters one coefficient. A lane whose chunk ends continues with the next chunk of the list.
"""

import numpy as np

from ..compiler.jit import inline_jit
from ..compiler.vector import broadcast, load, minimum, select, store
from ..compiler.vector_gather import (
    bits_of,
    count_bits,
    expand,
    gather,
    pick_16,
    scatter,
    swap_bytes,
    trailing_zeros,
)
from .entropy import LOOKUP_BITS, TABLE_SIZE, code_entry, find_long_code, load_big_endian

CHUNK_ROOM = 1024
"""Chunks that a list holds, with 16 behind the last one."""
ANY_END = 0xFFFFFFFF
"""End of a chunk that is not read to its end."""
NO_CHUNK = 0xFFFFFFFF
"""End place of the list's elements behind the last chunk."""
_N = np.uint32
_U = np.uint64


@inline_jit(forceinline=True)
def _look_up(clean, tables, position, base):
    """The lanes' next bits and their table entries. 25 or more of the bits are valid."""
    word = swap_bytes(gather(clean, position >> _N(3), 1)) << (position & _N(7))
    return word, gather(tables, (word >> _N(32 - LOOKUP_BITS)) + base, 4)


@inline_jit()
def _find_long_codes(entry, word, base, missing, position, clean, data, tables, memory):
    """(`entry`, `word`) with the lanes in `missing`, whose codes are longer than a look-up."""
    store(memory, 0, entry)
    store(memory, 16, word)
    store(memory, 32, base)
    store(memory, 48, position)
    while missing:
        lane = trailing_zeros(missing)
        missing &= missing - 1
        bit = np.int64(memory[48 + lane])
        bits = load_big_endian(clean, _U(bit >> 3)) << _U(bit & 7)
        to = np.int64(memory[32 + lane])
        length, symbol = find_long_code(np.int64(bits >> _U(48)), data, tables, to)
        memory[16 + lane] = bits >> _U(32)  # a long code and its value may take all 32 bits
        if length:
            memory[lane] = code_entry(symbol, length, to >= 4 * TABLE_SIZE)
    return load(memory, 0, 16), load(memory, 16, 16)


@inline_jit(forceinline=True)
def _store_symbols(coefficients, active, word, entry, position, place, limit):
    """Store each lane's coefficient: (position behind the symbol, place behind the coefficient)."""
    shift = entry & _N(0xFF)
    full = broadcast(_N(1), 16) << ((entry >> _N(8)) & _N(0xFF))
    value = (word >> shift) & (full - _N(1))
    # A value whose highest bit is 0 is negative (T.81, figure F.12).
    value = select(value + value < full, value - full + _N(1), value) & _N(0xFFFF)
    position = select(active, position + _N(32) - shift, position)
    place = minimum(place + (entry >> _N(16)), limit)
    scatter(coefficients, active, place - _N(1), value)
    return position, place


@inline_jit(forceinline=True)
def _next_blocks(place, limit, number, dc, ac, following):
    """Begin the next block in lanes that have ended one: (limit, its number, table's place)."""
    ends = place == limit
    limit = select(ends, limit + _N(64), limit)
    number = select(ends, pick_16(following, number), number)
    return limit, number, select(ends, pick_16(dc, number), pick_16(ac, number))


@inline_jit(forceinline=True)
def _next_chunks(chunks, taken, ends, position, place, end, stop):
    """Give the lanes in `ends` the next chunks: (taken, position, place, end, stop)."""
    position = expand(chunks, taken, ends, position)
    place = expand(chunks, CHUNK_ROOM + taken, ends, place)
    end = expand(chunks, 2 * CHUNK_ROOM + taken, ends, end)
    stop = expand(chunks, 3 * CHUNK_ROOM + taken, ends, stop)
    return taken + count_bits(bits_of(ends)), position, place, end, stop


@inline_jit()
def fill_lanes(data, count, scratch):
    """Decode `count` chunks to `scratch.coefficients`, in zigzag order, not dequantised, DC
    coefficients as differences; returns whether all chunks were valid and ended where they should.

    `scratch.chunks` (4 · CHUNK_ROOM,) uint32: of each chunk its first bit in `scratch.clean`, then
    in the same order its first coefficient's place, one past its last, and the bit at which it
    ends, or ANY_END. `scratch.blocks` (48,) uint32: the places of the DC tables of an MCU's blocks,
    of their AC tables, and the number of the block after each. Tables: of `build_code_table`. Any
    bits are safe: a block's coefficients stay within it, and one more is cleared.
    """
    clean, tables, coefficients = scratch.clean, scratch.tables, scratch.coefficients
    chunks, memory = scratch.chunks, scratch.lanes
    for field in range(4):
        value = NO_CHUNK if field == 2 else 0
        chunks[field * CHUNK_ROOM + count : field * CHUNK_ROOM + count + 16] = value
    dc, ac = load(scratch.blocks, 0, 16), load(scratch.blocks, 16, 16)
    following = load(scratch.blocks, 32, 16)
    zero = broadcast(_N(0), 16)
    all_lanes = zero == zero
    wrong = zero == _N(1)
    # Two sets of lanes, a and b, so that one computes while the other waits for memory. A chunk
    # costs as many steps as it has symbols, so that lanes end at different times.
    taken, a_at, a_place, a_end, a_stop = _next_chunks(chunks, 0, all_lanes, zero, zero, zero, zero)
    a_active = a_end < _N(NO_CHUNK)
    taken = min(taken, count)
    taken, b_at, b_place, b_end, b_stop = _next_chunks(
        chunks, taken, all_lanes, zero, zero, zero, zero
    )
    b_active = b_end < _N(NO_CHUNK)
    taken = min(taken, count)
    a_limit, b_limit = a_place + _N(64), b_place + _N(64)
    a_number, b_number = zero, zero
    a_base, b_base = pick_16(dc, zero), pick_16(dc, zero)
    while bits_of(a_active) | bits_of(b_active):
        a_word, a_entry = _look_up(clean, tables, a_at, a_base)
        b_word, b_entry = _look_up(clean, tables, b_at, b_base)

        missing = bits_of((a_entry == _N(0)) & a_active)
        if missing:
            a_entry, a_word = _find_long_codes(
                a_entry, a_word, a_base, missing, a_at, clean, data, tables, memory
            )
            if bits_of((a_entry == _N(0)) & a_active):
                return False
        a_at, a_place = _store_symbols(
            coefficients, a_active, a_word, a_entry, a_at, a_place, a_limit
        )
        a_limit, a_number, a_base = _next_blocks(a_place, a_limit, a_number, dc, ac, following)
        ends = (a_place == a_end) & a_active
        if bits_of(ends):
            wrong = wrong | (ends & (a_stop < _N(ANY_END)) & ((a_stop < a_at) | (a_at < a_stop)))
            taken, a_at, a_place, a_end, a_stop = _next_chunks(
                chunks, taken, ends, a_at, a_place, a_end, a_stop
            )
            taken = min(taken, count)
            a_limit = select(ends, a_place + _N(64), a_limit)
            a_active = a_active & (a_end < _N(NO_CHUNK))

        missing = bits_of((b_entry == _N(0)) & b_active)
        if missing:
            b_entry, b_word = _find_long_codes(
                b_entry, b_word, b_base, missing, b_at, clean, data, tables, memory
            )
            if bits_of((b_entry == _N(0)) & b_active):
                return False
        b_at, b_place = _store_symbols(
            coefficients, b_active, b_word, b_entry, b_at, b_place, b_limit
        )
        b_limit, b_number, b_base = _next_blocks(b_place, b_limit, b_number, dc, ac, following)
        ends = (b_place == b_end) & b_active
        if bits_of(ends):
            wrong = wrong | (ends & (b_stop < _N(ANY_END)) & ((b_stop < b_at) | (b_at < b_stop)))
            taken, b_at, b_place, b_end, b_stop = _next_chunks(
                chunks, taken, ends, b_at, b_place, b_end, b_stop
            )
            taken = min(taken, count)
            b_limit = select(ends, b_place + _N(64), b_limit)
            b_active = b_active & (b_end < _N(NO_CHUNK))
    return not bits_of(wrong)

"""Entropy decoding of chunks in 32 lanes of AVX-512: two vectors of 16 streams, in lockstep.

A step decodes one symbol in each lane: it gathers the lane's next bits and their table entry, and
scatters one coefficient. A lane whose chunk ends continues with the next chunk of the list.
"""

from typing import Any, NamedTuple

import numpy as np

from ..compiler.bits import count_bits, load_big_endian, trailing_zeros
from ..compiler.jit import inline_jit
from ..compiler.vector import broadcast, load, minimum, select, store
from ..compiler.vector_gather import (
    bits_of,
    expand,
    gather,
    pick_16,
    scatter,
    swap_bytes,
)
from .entropy import LOOKUP_BITS, TABLE_SIZE, code_entry, find_long_code

CHUNK_ROOM = 1024
"""Chunks that a list holds, with 16 behind the last one."""
ANY_END = 0xFFFFFFFF
"""End of a chunk that is not read to its end."""
NO_CHUNK = 0xFFFFFFFF
"""End place of the list's elements behind the last chunk."""
_N = np.uint32
_U = np.uint64


class Lanes(NamedTuple):
    """The state of a set of 16 lanes, vectors of 16 uint32. They stay in registers: all that
    handles them is inlined."""

    at: Any
    """The next bit of the data."""
    place: Any
    """Place of the next coefficient."""
    limit: Any
    """One past the block's last coefficient."""
    number: Any
    """Number of the block in its MCU."""
    base: Any
    """Place of the table of the next symbol."""
    end: Any
    """One past the chunk's last coefficient; NO_CHUNK where the list is used up."""
    stop: Any
    """The bit at which the chunk must end, or ANY_END."""
    active: Any
    """16 booleans: whether there is a chunk to read."""


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


@inline_jit(forceinline=True)
def _first_chunks(chunks, taken, count, dc):
    """Begin a set of lanes with the next chunks of the list: (taken, the lanes)."""
    zero = broadcast(_N(0), 16)
    taken, at, place, end, stop = _next_chunks(chunks, taken, zero == zero, zero, zero, zero, zero)
    active = end < _N(NO_CHUNK)
    base = pick_16(dc, zero)
    return min(taken, count), Lanes(at, place, place + _N(64), zero, base, end, stop, active)


@inline_jit(forceinline=True)
def _step(lanes, word, entry, mcu, taken, count, data, scratch):
    """Store the symbols that the lanes have looked up, and go on to the next block or chunk where
    they end one: (whether all lanes are valid, taken, the lanes).

    `word`, `entry`: of `_look_up`. `mcu`: the three vectors of `scratch.blocks`.
    """
    at, place, limit, number, base, end, stop, active = lanes
    dc, ac, following = mcu
    missing = bits_of((entry == _N(0)) & active)
    if missing:
        entry, word = _find_long_codes(
            entry, word, base, missing, at, scratch.clean, data, scratch.tables, scratch.lanes
        )
        if bits_of((entry == _N(0)) & active):
            return False, taken, lanes
    at, place = _store_symbols(scratch.coefficients, active, word, entry, at, place, limit)
    limit, number, base = _next_blocks(place, limit, number, dc, ac, following)
    ends = (place == end) & active
    valid = True
    if bits_of(ends):
        valid = not bits_of(ends & (stop < _N(ANY_END)) & (stop != at))
        taken, at, place, end, stop = _next_chunks(
            scratch.chunks, taken, ends, at, place, end, stop
        )
        taken = min(taken, count)
        limit = select(ends, place + _N(64), limit)
        active = active & (end < _N(NO_CHUNK))
    return valid, taken, Lanes(at, place, limit, number, base, end, stop, active)


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
    clean, tables, chunks = scratch.clean, scratch.tables, scratch.chunks
    for field in range(4):
        value = NO_CHUNK if field == 2 else 0
        chunks[field * CHUNK_ROOM + count : field * CHUNK_ROOM + count + 16] = value
    dc, ac = load(scratch.blocks, 0, 16), load(scratch.blocks, 16, 16)
    mcu = dc, ac, load(scratch.blocks, 32, 16)
    # Two sets of lanes, so that one computes while the other waits for memory. A chunk costs as
    # many steps as it has symbols, so that lanes end at different times.
    taken, a = _first_chunks(chunks, 0, count, dc)
    taken, b = _first_chunks(chunks, taken, count, dc)
    while bits_of(a.active) | bits_of(b.active):
        a_word, a_entry = _look_up(clean, tables, a.at, a.base)
        b_word, b_entry = _look_up(clean, tables, b.at, b.base)
        valid, taken, a = _step(a, a_word, a_entry, mcu, taken, count, data, scratch)
        if not valid:
            return False
        valid, taken, b = _step(b, b_word, b_entry, mcu, taken, count, data, scratch)
        if not valid:
            return False
    return True

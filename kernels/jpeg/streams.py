"""Entropy decoding of chunks in two scalar streams, in lockstep, on any CPU.

The bits of a code depend on those of the code before it, so that a single stream waits most of the
time. Two of them fill each other's gaps.
"""

import numpy as np

from ..compiler.jit import inline_jit
from .entropy import (
    END_OF_BLOCK,
    LOOKUP_BITS,
    LOOKUPS_PER_REFILL,
    NATURAL_ORDER,
    decode_long,
    refill,
)
from .lanes import ANY_END, CHUNK_ROOM

_U = np.uint64


@inline_jit(forceinline=True)
def _begin_block(
    chunks, count, taken, blocks, tables, data, clean, coefficients, bits, left, at, to, end, stop,
    number,
):  # fmt: skip
    """Begin a stream's next block, in its chunk or in the next of the list.

    Decodes the DC coefficient: (whether the stream is valid, `taken`, the bit reader's `bits`,
    `left`, `at`, place of the next block, the chunk's end, its stop, number of the next block,
    place of this block's AC table, whether the stream goes on).
    """
    valid = True
    if to == end:
        position = 8 * np.int64(at) - np.int64(left)
        valid = stop in (ANY_END, position)
        if taken == count:
            return valid, taken, bits, left, at, to, end, stop, number, _U(0), False
        first = np.int64(chunks[taken])
        bits, left, at = refill(clean, _U(0), _U(0), _U(first >> 3))
        bits <<= _U(first & 7)
        left -= _U(first & 7)
        to = np.int64(chunks[CHUNK_ROOM + taken])
        end = np.int64(chunks[2 * CHUNK_ROOM + taken])
        stop = np.int64(chunks[3 * CHUNK_ROOM + taken])
        taken += 1
        number = 0
    bits, left, at = refill(clean, bits, left, at)
    dc = _U(blocks[number])
    entry = tables[dc + (bits >> _U(64 - LOOKUP_BITS))]
    used = _U(entry & 63)
    difference = np.int64(entry >> 16)
    if used == _U(0):
        run, difference, length = decode_long(bits, data, tables, np.int64(dc), False)
        valid = valid and run >= 0
        used = _U(length)
    coefficients[to] = difference
    bits <<= used
    left -= used
    bits, left, at = refill(clean, bits, left, at)
    ac = _U(blocks[16 + number])
    return valid, taken, bits, left, at, to + 64, end, stop, np.int64(blocks[32 + number]), ac, True


@inline_jit(forceinline=True)
def _read_symbol(tables, data, clean, coefficients, bits, left, at, ac, to, k):
    """Decode an AC symbol of the block that ends at `to`: (valid, bits, left, at, k)."""
    entry = tables[ac + (bits >> _U(64 - LOOKUP_BITS))]
    if entry & 63 == 0:
        bits, left, at = refill(clean, bits, left, at)
        run, value, length = decode_long(bits, data, tables, np.int64(ac), True)
        if run < 0:
            return False, bits, left, at, k
        k += _U(run)
        coefficients[_U(to - 64) + NATURAL_ORDER[k]] = value
        bits <<= _U(length)
        left -= _U(length)
        bits, left, at = refill(clean, bits, left, at)
        return True, bits, left, at, k + _U(1)
    k += _U((entry >> 8) & 255)
    coefficients[_U(to - 64) + NATURAL_ORDER[k]] = entry >> 16
    used = _U(entry & 63)
    return True, bits << used, left - used, at, k + _U(1)


@inline_jit()
def fill_streams(data, count, scratch):
    """`lanes.fill_lanes` on any CPU, in natural order. Tables: of `build_table`."""
    clean, tables, coefficients = scratch.clean, scratch.tables, scratch.coefficients
    chunks, blocks = scratch.chunks, scratch.blocks
    zero = _U(0)
    taken = 0
    # Two streams, a and b. Each state is one of the bit reader (bits, left, at), one of the chunk
    # (to, end, stop, number of the next block) and one of the block (table, k).
    valid, taken, a_bits, a_left, a_at, a_to, a_end, a_stop, a_number, a_ac, a_runs = _begin_block(
        chunks, count, taken, blocks, tables, data, clean, coefficients, zero, zero, zero, 0, 0,
        ANY_END, 0,
    )  # fmt: skip
    if not valid or not a_runs:
        return valid
    valid, taken, b_bits, b_left, b_at, b_to, b_end, b_stop, b_number, b_ac, b_runs = _begin_block(
        chunks, count, taken, blocks, tables, data, clean, coefficients, zero, zero, zero, 0, 0,
        ANY_END, 0,
    )  # fmt: skip
    if not valid:
        return False
    a_k, b_k = _U(1), _U(1)
    while a_runs and b_runs:
        a_bits, a_left, a_at = refill(clean, a_bits, a_left, a_at)
        b_bits, b_left, b_at = refill(clean, b_bits, b_left, b_at)
        for _ in range(LOOKUPS_PER_REFILL):
            valid, a_bits, a_left, a_at, a_k = _read_symbol(
                tables, data, clean, coefficients, a_bits, a_left, a_at, a_ac, a_to, a_k
            )
            if not valid:
                return False
            valid, b_bits, b_left, b_at, b_k = _read_symbol(
                tables, data, clean, coefficients, b_bits, b_left, b_at, b_ac, b_to, b_k
            )
            if not valid:
                return False
            if a_k >= _U(64):
                if a_k > _U(64) and a_k < _U(2 + END_OF_BLOCK):
                    return False  # a run beyond the block
                (
                    valid, taken, a_bits, a_left, a_at, a_to, a_end, a_stop, a_number, a_ac, a_runs
                ) = _begin_block(
                    chunks, count, taken, blocks, tables, data, clean, coefficients, a_bits,
                    a_left, a_at, a_to, a_end, a_stop, a_number,
                )  # fmt: skip
                a_k = _U(1)
                if not valid:
                    return False
                if not a_runs:
                    break
            if b_k >= _U(64):
                if b_k > _U(64) and b_k < _U(2 + END_OF_BLOCK):
                    return False  # a run beyond the block
                (
                    valid, taken, b_bits, b_left, b_at, b_to, b_end, b_stop, b_number, b_ac, b_runs
                ) = _begin_block(
                    chunks, count, taken, blocks, tables, data, clean, coefficients, b_bits,
                    b_left, b_at, b_to, b_end, b_stop, b_number,
                )  # fmt: skip
                b_k = _U(1)
                if not valid:
                    return False
                if not b_runs:
                    break
    # The last chunk, alone.
    if a_runs:
        b_bits, b_left, b_at, b_k, b_ac = a_bits, a_left, a_at, a_k, a_ac
        b_to, b_end, b_stop, b_number, b_runs = a_to, a_end, a_stop, a_number, a_runs
    while b_runs:
        b_bits, b_left, b_at = refill(clean, b_bits, b_left, b_at)
        for _ in range(LOOKUPS_PER_REFILL):
            if b_k >= _U(64):
                if b_k > _U(64) and b_k < _U(2 + END_OF_BLOCK):
                    return False  # a run beyond the block
                (
                    valid, taken, b_bits, b_left, b_at, b_to, b_end, b_stop, b_number, b_ac, b_runs
                ) = _begin_block(
                    chunks, count, taken, blocks, tables, data, clean, coefficients, b_bits,
                    b_left, b_at, b_to, b_end, b_stop, b_number,
                )  # fmt: skip
                b_k = _U(1)
                if not valid:
                    return False
                if not b_runs:
                    break
            valid, b_bits, b_left, b_at, b_k = _read_symbol(
                tables, data, clean, coefficients, b_bits, b_left, b_at, b_ac, b_to, b_k
            )
            if not valid:
                return False
    return True

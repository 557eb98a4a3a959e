"""Entropy decoding of chunks in two scalar streams, in lockstep, on any CPU.

The bits of a code depend on those of the code before it, so that a single stream waits most of the
time. Two of them fill each other's gaps.
"""

from typing import Any, NamedTuple

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


class Stream(NamedTuple):
    """The state of a stream. Its fields stay in registers: all that handles it is inlined."""

    bits: Any
    """uint64: the next bits, of which `left` are valid; see `entropy.refill`."""
    left: Any
    """uint64."""
    at: Any
    """uint64: the next byte of the data."""
    to: Any
    """int64: one past the block's last coefficient."""
    k: Any
    """uint64: place of the block's next coefficient in zigzag order; past 63 at its end."""
    ac: Any
    """uint64: place of the block's AC table."""
    number: Any
    """int64: number of the next block in its MCU."""
    end: Any
    """int64: one past the chunk's last coefficient."""
    stop: Any
    """int64: the bit at which the chunk must end, or ANY_END."""
    goes_on: Any
    """Whether there is a block to read; False once the list of chunks is used up."""


@inline_jit(forceinline=True)
def _begin_block(stream, taken, count, data, scratch):
    """Begin a stream's next block, in its chunk or in the next of the list of `count`, and decode
    its DC coefficient: (whether the stream is valid, chunks taken, the stream)."""
    chunks, clean, tables = scratch.chunks, scratch.clean, scratch.tables
    bits, left, at = stream.bits, stream.left, stream.at
    to, number, end, stop = stream.to, stream.number, stream.end, stream.stop
    valid = True
    if to == end:
        valid = stop in (ANY_END, 8 * np.int64(at) - np.int64(left))
        if taken == count:
            return valid, taken, Stream(bits, left, at, to, _U(1), _U(0), number, end, stop, False)
        first = np.int64(chunks[taken])
        bits, left, at = refill(clean, _U(0), _U(0), _U(first >> 3))
        bits <<= _U(first & 7)
        left -= _U(first & 7)
        to = np.int64(chunks[CHUNK_ROOM + taken])
        end = np.int64(chunks[2 * CHUNK_ROOM + taken])
        stop = np.int64(chunks[3 * CHUNK_ROOM + taken])
        taken += 1
        number = np.int64(0)
    bits, left, at = refill(clean, bits, left, at)
    dc, ac = _U(scratch.blocks[number]), _U(scratch.blocks[16 + number])
    entry = tables[dc + (bits >> _U(64 - LOOKUP_BITS))]
    used = _U(entry & 63)
    difference = np.int64(entry >> 16)
    if used == _U(0):
        run, difference, length = decode_long(bits, data, tables, np.int64(dc), False)
        valid = valid and run >= 0
        used = _U(length)
    scratch.coefficients[to] = difference
    bits, left, at = refill(clean, bits << used, left - used, at)
    number = np.int64(scratch.blocks[32 + number])
    return valid, taken, Stream(bits, left, at, to + 64, _U(1), ac, number, end, stop, True)


@inline_jit(forceinline=True)
def _first_block(taken, count, data, scratch):
    """Begin a stream with the next chunk of the list; returns as `_begin_block` does."""
    zero, none = _U(0), np.int64(0)
    idle = Stream(zero, zero, zero, none, zero, zero, none, none, np.int64(ANY_END), False)
    return _begin_block(idle, taken, count, data, scratch)


@inline_jit(forceinline=True)
def _refilled(stream, clean):
    """The stream with at least 56 valid bits."""
    bits, left, at = refill(clean, stream.bits, stream.left, stream.at)
    return Stream(
        bits, left, at, stream.to, stream.k, stream.ac, stream.number, stream.end, stream.stop,
        stream.goes_on,
    )  # fmt: skip


@inline_jit(forceinline=True)
def _read_symbol(stream, data, scratch):
    """Decode an AC symbol: (whether it is one, the stream)."""
    tables, coefficients = scratch.tables, scratch.coefficients
    bits, left, at, k = stream.bits, stream.left, stream.at, stream.k
    valid = True
    entry = tables[stream.ac + (bits >> _U(64 - LOOKUP_BITS))]
    if entry & 63 == 0:
        bits, left, at = refill(scratch.clean, bits, left, at)
        run, value, length = decode_long(bits, data, tables, np.int64(stream.ac), True)
        valid = run >= 0
        if valid:
            k += _U(run)
            coefficients[_U(stream.to - 64) + NATURAL_ORDER[k]] = value
            used = _U(length)
            bits, left, at = refill(scratch.clean, bits << used, left - used, at)
            k += _U(1)
    else:
        k += _U((entry >> 8) & 255)
        coefficients[_U(stream.to - 64) + NATURAL_ORDER[k]] = entry >> 16
        used = _U(entry & 63)
        bits <<= used
        left -= used
        k += _U(1)
    return valid, Stream(
        bits, left, at, stream.to, k, stream.ac, stream.number, stream.end, stream.stop,
        stream.goes_on,
    )  # fmt: skip


@inline_jit(forceinline=True)
def _end_block(stream, taken, count, data, scratch):
    """Begin the next block where the stream has ended one; returns as `_begin_block` does."""
    if stream.k < _U(64):
        return True, taken, stream
    if stream.k > _U(64) and stream.k < _U(2 + END_OF_BLOCK):  # a run beyond the block
        return False, taken, stream
    return _begin_block(stream, taken, count, data, scratch)


@inline_jit()
def fill_streams(data, count, scratch):
    """`lanes.fill_lanes` on any CPU, in natural order. Tables: of `build_table`."""
    clean = scratch.clean
    valid, taken, a = _first_block(0, count, data, scratch)
    if not valid or not a.goes_on:
        return valid
    valid, taken, b = _first_block(taken, count, data, scratch)
    if not valid:
        return False
    while a.goes_on and b.goes_on:
        a, b = _refilled(a, clean), _refilled(b, clean)
        for _ in range(LOOKUPS_PER_REFILL):
            valid, a = _read_symbol(a, data, scratch)
            if not valid:
                return False
            valid, b = _read_symbol(b, data, scratch)
            if not valid:
                return False
            valid, taken, a = _end_block(a, taken, count, data, scratch)
            if not valid:
                return False
            if not a.goes_on:
                break
            valid, taken, b = _end_block(b, taken, count, data, scratch)
            if not valid:
                return False
            if not b.goes_on:
                break
    # The last chunk, alone.
    if a.goes_on:
        b = a
    while b.goes_on:
        b = _refilled(b, clean)
        for _ in range(LOOKUPS_PER_REFILL):
            valid, taken, b = _end_block(b, taken, count, data, scratch)
            if not valid:
                return False
            if not b.goes_on:
                break
            valid, b = _read_symbol(b, data, scratch)
            if not valid:
                return False
    return True

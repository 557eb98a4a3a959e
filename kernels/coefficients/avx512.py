"""What the AVX-512 reader needs: values from packed bits to their places in a block.

Compile callers only where `has_vbmi2`: elsewhere LLVM ends the process.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..compiler.jit import inline_jit
from ..compiler.vector import (
    broadcast,
    call_intrinsic,
    convert,
    lane_numbers,
    load,
    reinterpret,
    select,
    store,
    with_first,
)
from ..jpeg.entropy import NATURAL_ORDER

_U = np.uint64
_ZIGZAG = np.zeros(64, np.uint8)
"""A coefficient's place in zigzag order, by natural order."""
_ZIGZAG[NATURAL_ORDER[:64].astype(int)] = np.arange(64)
# By width w, from 64 w on: lane 8 g + i takes i · w bits on from byte g · w.
_BYTES = np.zeros(9 * 64, np.uint8)
_SHIFTS = np.zeros(9 * 64, np.uint8)
for _w in range(1, 9):
    for _lane in range(64):
        _BYTES[64 * _w + _lane] = min((_lane >> 3) * _w + (_lane & 7), 63)
        _SHIFTS[64 * _w + _lane] = (_lane & 7) * _w


@intrinsic(prefer_literal=True)
def _expand(typing_context, vector, mask):
    """The lanes in turn to those of 64 whose bit of `mask` is set; 0 elsewhere (vpexpandb)."""

    def generate(context, builder, signature, arguments):
        bits = ir.VectorType(ir.IntType(1), 64)
        zero = ir.Constant(vector.llvm, [0] * 64)
        chosen = [arguments[0], zero, builder.bitcast(arguments[1], bits)]
        name = "llvm.x86.avx512.mask.expand.v64i8"
        return call_intrinsic(builder, name, vector.llvm, chosen)

    return vector(vector, types.uint64), generate


@intrinsic(prefer_literal=True)
def _permute(typing_context, vector, places):
    """Lane i becomes lane `places[i]` modulo 64 (vpermb)."""

    def generate(context, builder, signature, arguments):
        return call_intrinsic(builder, "llvm.x86.avx512.permvar.qi.512", vector.llvm, arguments)

    return vector(vector, vector), generate


@intrinsic(prefer_literal=True)
def _multishift(typing_context, shifts, vector):
    """Lane i becomes the 8 bits from bit `shifts[i]` on of its 64-bit group (vpmultishiftqb)."""

    def generate(context, builder, signature, arguments):
        name = "llvm.x86.avx512.pmultishift.qb.512"
        return call_intrinsic(builder, name, vector.llvm, arguments)

    return vector(shifts, vector), generate


@inline_jit(forceinline=True)
def load_values(record, at, width):
    """The 64 values of `width` bits from byte `at` on, as uint8."""
    taken = _permute(load(record, at, 64), load(_BYTES, 64 * width, 64))
    raw = _multishift(load(_SHIFTS, 64 * width, 64), taken)
    half = np.uint8(1 << (width - 1))
    signed = ((raw & np.uint8((2 << (width - 1)) - 1)) ^ half) - half
    return select(signed < np.uint8(128), signed + np.uint8(width < 8), signed)


@inline_jit(forceinline=True)
def join_values(first, rest, split):
    """The first `split` values of one vector, then those of the other."""
    lanes = lane_numbers(np.uint8, 64)
    begin = broadcast(np.uint8(split), 64)
    return select(lanes < begin, first, _permute(rest, lanes - begin))


@inline_jit(forceinline=True)
def first_values(values, count):
    """The first `count` values, 0 beyond."""
    lanes = lane_numbers(np.uint8, 64)
    inside = lanes < broadcast(np.uint8(count), 64)
    return select(inside, values, broadcast(np.uint8(0), 64))


@inline_jit(forceinline=True)
def place_values(values, mask):
    """Values at the coefficients of a bitmap, in natural order; `mask` begins with the first AC."""
    return _permute(_expand(values, mask << _U(1)), load(_ZIGZAG, 0, 64))


@inline_jit(forceinline=True)
def store_coefficients(low, high, dc, dequantisation, table, block, to):
    """Dequantise 64 coefficients, of low bytes and int16 to add, and store them with `dc`."""
    values = convert(reinterpret(low, np.int8), np.int16) + high
    values = values * load(dequantisation, table, 64)
    store(block, to, with_first(values, dc))


@inline_jit(forceinline=True)
def high_part(placed):
    """The int16 that high bytes stand for."""
    return convert(reinterpret(placed, np.int8), np.int16) << np.int16(8)

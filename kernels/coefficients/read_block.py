"""Reads one block of a record: what its three bytes say, its values, and its levels in a plane.

`read_block` is for any CPU, `read_block_avx512` for those where `has_vbmi2` holds.
"""

import numpy as np

from ..compiler.bits import count_bits, load_little_endian, trailing_zeros
from ..compiler.jit import inline_jit
from ..compiler.vector import broadcast, convert, load, select, store
from ..jpeg.entropy import NATURAL_ORDER
from ..jpeg.pixels import fill_group, inverse_dct_flat, inverse_dct_four, inverse_dct_pair
from .avx512 import (
    first_values,
    high_part,
    join_values,
    load_values,
    place_values,
    store_coefficients,
)
from .record import ESCAPE

_U = np.uint64
_BITMAP = np.array([(1 << min(8 * n, 63)) - 1 for n in range(16)], np.uint64)
"""By the bytes of a bitmap: its bits. The 64th stands for no coefficient."""
_SHIFTS = np.outer(np.arange(9), np.arange(8)).astype(np.uint64).reshape(-1)
"""By width w, from 8 w on: the bits before each of eight values."""
QUEUE = 4
"""Most blocks whose inverse DCT is done at once."""


@inline_jit(forceinline=True)
def open_block(record, head, at, last):
    """What a block's three bytes and bitmap say: (bitmap, begin of the first part, values in it,
    their width, begin of the second part, width there, its end, high bytes, DC, end of the
    payload).

    `head`, `at`: its three bytes and its payload; `last`: DC of the block before. The bitmap is
    uint64, from the lowest bit on the coefficients from the first AC on, in zigzag order. Safe for
    any bytes where `MARGIN` more follow `at`.
    """
    word = np.int64(load_little_endian(record, head))
    change = ((word & 255) ^ 128) - 128
    bitmap_bytes, split = min(word >> 8 & 15, 8), word >> 12 & 63
    first, rest = (word >> 18 & 7) + 1, (word >> 21 & 7) + 1
    wide = first < rest
    if wide:
        first = 8
    if change == ESCAPE:
        last = np.int64(np.int16(load_little_endian(record, at) & _U(0xFFFF)))
        at += 2
    else:
        last += change
    bitmap = load_little_endian(record, at) & _BITMAP[bitmap_bytes]
    at += bitmap_bytes
    second = at + ((split * first + 7) >> 3)
    end = second + ((max(count_bits(bitmap) - split, 0) * rest + 7) >> 3)
    high, after = 0, end
    if wide:
        high = np.int64(record[end])
        after += 1 + high
    return bitmap, at, split, first, second, rest, end, high, last, after


@inline_jit(forceinline=True)
def _unpack(record, at, count, width, values, to):
    """Write `count` values of `width` bits from byte `at` of a record on to `values` from `to` on,
    eight at a time: up to seven more are written."""
    shifts = load(_SHIFTS, 8 * width, 8)
    half = np.uint8(1 << (width - 1))
    mask = np.uint8((2 << (width - 1)) - 1)
    for i in range(0, count, 8):
        word = broadcast(load_little_endian(record, at), 8)
        code = convert(word >> shifts, np.uint8) & mask
        value = (code ^ half) - half
        store(values, to + i, select(value < np.uint8(128), value + np.uint8(width < 8), value))
        at += width


@inline_jit(forceinline=True)
def read_values(record, bitmap, at, split, first, second, rest, values):
    """Write the low bytes of a block's values to `values` (VALUES,) uint8; returns their number.
    The other arguments are results of `open_block`."""
    number = count_bits(bitmap)
    _unpack(record, at, split, first, values, 0)
    _unpack(record, second, number - split, rest, values, split)
    return number


@inline_jit(forceinline=True)
def _put_block(record, opened, dc, table, scratch, slot):
    """Write a block's dequantised coefficients to `scratch.block` from `slot` on, on any CPU.
    `opened`: the result of `open_block`; `dc`: dequantised."""
    bitmap, at, split, first, second, rest, end, high, _, _ = opened
    block, factors, values = scratch.block, scratch.factors, scratch.values
    number = read_values(record, bitmap, at, split, first, second, rest, values)
    left = bitmap
    for i in range(number):
        place = np.int64(NATURAL_ORDER[trailing_zeros(left) + 1])
        left &= left - _U(1)
        value = np.int64(np.int8(values[i]))
        block[slot + place] = value * np.int64(factors[table + place])
    left = bitmap
    for i in range(min(high, number)):
        place = np.int64(NATURAL_ORDER[trailing_zeros(left) + 1])
        left &= left - _U(1)
        value = np.int64(np.int8(record[end + 1 + i])) << 8
        block[slot + place] += value * np.int64(factors[table + place])
    block[slot] = dc


@inline_jit(forceinline=True)
def _put_block_avx512(record, opened, dc, table, scratch, slot):
    """`_put_block` by AVX-512."""
    bitmap, at, split, first, second, rest, end, high, _, _ = opened
    values = join_values(load_values(record, at, first), load_values(record, second, rest), split)
    added = broadcast(np.int16(0), 64)
    if high:
        high_bytes = first_values(load(record, end + 1, 64), high)
        added = high_part(place_values(high_bytes, bitmap))
    placed = place_values(values, bitmap)
    store_coefficients(placed, added, dc, scratch.factors, table, scratch.block, slot)


@inline_jit(forceinline=True)
def _transform_two(scratch):
    """Inverse DCT of two blocks that wait."""
    places = scratch.places
    inverse_dct_pair(
        scratch.block, 0, 64, scratch.planes, places[0], places[QUEUE], places[1], places[QUEUE + 1]
    )


@inline_jit(forceinline=True)
def _transform_four(scratch):
    """Inverse DCT of four blocks that wait, by AVX-512."""
    inverse_dct_four(scratch.block, scratch.planes, scratch.places)


def _make_read(put, transform, most):
    """A kernel that reads a block to coefficients, which wait in `scratch.block` for their inverse
    DCT: (end of its payload, DC, blocks that wait).

    `put` writes the coefficients; `transform` is called once `most` blocks wait. Arguments of the
    kernel: `outside`: only pass over the block. `table`: where in `scratch.factors` its component's
    quantisation table is. `to`, `stride`: its place in `scratch.planes`. `scratch`: a
    `JpegScratch`, whose `places` receive those of blocks that wait. The others as for `open_block`.
    """

    @inline_jit(forceinline=True)
    def read(record, head, at, last, outside, table, to, stride, scratch, waiting):
        opened = open_block(record, head, at, last)
        bitmap, last, after = opened[0], opened[8], opened[9]
        if outside:
            return after, last, waiting
        dc = np.int64(np.int16(last * np.int64(scratch.factors[table])))
        if bitmap == _U(0):
            inverse_dct_flat(dc, scratch.planes, to, stride)
            return after, last, waiting
        put(record, opened, dc, table, scratch, 64 * waiting)
        scratch.places[waiting], scratch.places[QUEUE + waiting] = to, stride
        waiting += 1
        if waiting == most:
            transform(scratch)
            waiting = 0
        return after, last, waiting

    return read


read_block = _make_read(_put_block, _transform_two, 2)
read_block_avx512 = _make_read(_put_block_avx512, _transform_four, QUEUE)


@inline_jit()
def finish_blocks(scratch, waiting):
    """Inverse DCT of the block that waits after `read_block`, if one does."""
    if waiting:
        to, stride = scratch.places[0], scratch.places[QUEUE]
        inverse_dct_pair(scratch.block, 0, 0, scratch.planes, to, stride, to, stride)


@inline_jit()
def finish_blocks_avx512(scratch, waiting):
    """Inverse DCT of the blocks that wait after `read_block_avx512`, if any do."""
    if waiting:
        fill_group(scratch.block, scratch.places, waiting, QUEUE)
        _transform_four(scratch)

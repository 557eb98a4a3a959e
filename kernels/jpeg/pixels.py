"""Baseline JPEG's arithmetic from coefficients to RGB, equal to libjpeg's exact settings to the
bit.

The inverse DCT is jidctint.c's (JDCT_ISLOW), chroma is upsampled by jdsample.c's "fancy" triangle
filter and colours are converted by jdcolor.c's fixed-point tables.

A component's samples lie in rows of `planes`; `PAD` bytes on either side of a row may be read.
"""

import numpy as np

from ..compiler.jit import inline_jit
from ..compiler.vector import (
    broadcast,
    convert,
    load,
    maximum,
    minimum,
    multiply_high,
    reinterpret,
    store,
)
from ..compiler.vector_shuffle import (
    interleave,
    interleave_high,
    interleave_low,
    load_two,
    multiply_pairs,
    narrow_groups,
    store_interleaved,
    store_two,
    transpose_8,
)

PAD = 32
LANES = 32
"""Pixels whose colours are converted at once; as many may be written beyond the last row's end."""

_I = np.int32
_S = np.int16
# jidctint.c's constants, in 1/8192.
_F_0_298, _F_0_390, _F_0_541, _F_0_765, _F_0_899, _F_1_175 = 2446, 3196, 4433, 6270, 7373, 9633
_F_1_501, _F_1_847, _F_1_961, _F_2_053, _F_2_562, _F_3_072 = (
    12299,
    15137,
    16069,
    16819,
    20995,
    25172,
)
# Sums of their products with two coefficients each, as jidctint.c comes by them in several steps:
# by the coefficients.
_BY_2_6 = (_F_0_541 + _F_0_765, _F_0_541), (_F_0_541, _F_0_541 - _F_1_847)
_BY_73_51 = (_F_1_175 - _F_1_961, _F_1_175), (_F_1_175, _F_1_175 - _F_0_390)
_BY_7_1 = (_F_0_298 - _F_0_899, -_F_0_899), (-_F_0_899, _F_1_501 - _F_0_899)
_BY_5_3 = (_F_2_053 - _F_2_562, -_F_2_562), (-_F_2_562, _F_3_072 - _F_2_562)
_TO_PASS_2, _TO_LEVELS = _I(11), _I(18)
_ROUND_PASS_2, _ROUND_LEVELS = (
    _I(1 << 10),
    _I((1 << 17) + (128 << 18)),
)  # the latter with the level shift of 128


@inline_jit(forceinline=True)
def _factors(pair):
    """Two factors, in turn in all lanes."""
    return reinterpret(broadcast(_I((pair[0] & 0xFFFF) | (pair[1] << 16)), 8), np.int16)


@inline_jit(forceinline=True)
def _half_of_one_dimension(x04, minus_04, x26, x7351, x71, x53, rounding, shift):
    """The 1-D inverse DCT of half the lanes, as eight vectors of int32; `x26` and so on hold two
    coefficients in turn.

    `x04` is coefficient 0 plus 4, `minus_04` less it, as int32.
    """
    even_0, even_1 = (x04 << _I(13)) + rounding, (minus_04 << _I(13)) + rounding
    even_3, even_2 = (
        multiply_pairs(x26, _factors(_BY_2_6[0])),
        multiply_pairs(x26, _factors(_BY_2_6[1])),
    )
    t10, t13, t11, t12 = even_0 + even_3, even_0 - even_3, even_1 + even_2, even_1 - even_2
    z3, z4 = (
        multiply_pairs(x7351, _factors(_BY_73_51[0])),
        multiply_pairs(x7351, _factors(_BY_73_51[1])),
    )
    odd_0 = multiply_pairs(x71, _factors(_BY_7_1[0])) + z3
    odd_3 = multiply_pairs(x71, _factors(_BY_7_1[1])) + z4
    odd_1 = multiply_pairs(x53, _factors(_BY_5_3[0])) + z4
    odd_2 = multiply_pairs(x53, _factors(_BY_5_3[1])) + z3
    return (
        (t10 + odd_3) >> shift,
        (t11 + odd_2) >> shift,
        (t12 + odd_1) >> shift,
        (t13 + odd_0) >> shift,
        (t13 - odd_0) >> shift,
        (t12 - odd_1) >> shift,
        (t11 - odd_2) >> shift,
        (t10 - odd_3) >> shift,
    )


@inline_jit(forceinline=True)
def _one_dimension(x0, x1, x2, x3, x4, x5, x6, x7, rounding, shift):
    """The 1-D inverse DCT of eight vectors of int16, groups of eight lanes to a block."""
    plus, minus, x73, x51, zero = x0 + x4, x0 - x4, x7 + x3, x5 + x1, broadcast(_S(0), 16)
    # An int16 in the upper half of an int32, shifted down, has its sign.
    low = _half_of_one_dimension(
        reinterpret(interleave_low(zero, plus), np.int32) >> _I(16),
        reinterpret(interleave_low(zero, minus), np.int32) >> _I(16),
        interleave_low(x2, x6),
        interleave_low(x73, x51),
        interleave_low(x7, x1),
        interleave_low(x5, x3),
        rounding,
        shift,
    )
    high = _half_of_one_dimension(
        reinterpret(interleave_high(zero, plus), np.int32) >> _I(16),
        reinterpret(interleave_high(zero, minus), np.int32) >> _I(16),
        interleave_high(x2, x6),
        interleave_high(x73, x51),
        interleave_high(x7, x1),
        interleave_high(x5, x3),
        rounding,
        shift,
    )
    return transpose_8(
        narrow_groups(low[0], high[0]),
        narrow_groups(low[1], high[1]),
        narrow_groups(low[2], high[2]),
        narrow_groups(low[3], high[3]),
        narrow_groups(low[4], high[4]),
        narrow_groups(low[5], high[5]),
        narrow_groups(low[6], high[6]),
        narrow_groups(low[7], high[7]),
    )


@inline_jit(forceinline=True)
def _levels(row):
    """Clamped to 0..255."""
    return convert(minimum(maximum(row, broadcast(_S(0), 16)), broadcast(_S(255), 16)), np.uint8)


@inline_jit(forceinline=True)
def put_two_blocks(block, first, second, planes, at, stride, second_at, second_stride):
    """The inverse DCT of two blocks into `planes`, 8 rows each from `at` and `second_at` on; both
    are 0 thereafter.

    They lie in `block` int16 from `first` and `second` on, 64 coefficients in rows; one block may
    be given as both.
    """
    x0, x1, x2, x3, x4, x5, x6, x7 = _one_dimension(
        load_two(block, first, second, 8),
        load_two(block, first + 8, second + 8, 8),
        load_two(block, first + 16, second + 16, 8),
        load_two(block, first + 24, second + 24, 8),
        load_two(block, first + 32, second + 32, 8),
        load_two(block, first + 40, second + 40, 8),
        load_two(block, first + 48, second + 48, 8),
        load_two(block, first + 56, second + 56, 8),
        _ROUND_PASS_2,
        _TO_PASS_2,
    )
    zero = broadcast(_S(0), 32)
    store(block, first, zero)
    store(block, first + 32, zero)
    store(block, second, zero)
    store(block, second + 32, zero)
    rows = _one_dimension(x0, x1, x2, x3, x4, x5, x6, x7, _ROUND_LEVELS, _TO_LEVELS)
    store_two(planes, at, second_at, _levels(rows[0]))
    store_two(planes, at + stride, second_at + second_stride, _levels(rows[1]))
    store_two(planes, at + 2 * stride, second_at + 2 * second_stride, _levels(rows[2]))
    store_two(planes, at + 3 * stride, second_at + 3 * second_stride, _levels(rows[3]))
    store_two(planes, at + 4 * stride, second_at + 4 * second_stride, _levels(rows[4]))
    store_two(planes, at + 5 * stride, second_at + 5 * second_stride, _levels(rows[5]))
    store_two(planes, at + 6 * stride, second_at + 6 * second_stride, _levels(rows[6]))
    store_two(planes, at + 7 * stride, second_at + 7 * second_stride, _levels(rows[7]))


@inline_jit(forceinline=True)
def put_flat_block(dc, planes, at, stride):
    """The same for a block with nothing but its dequantised DC coefficient."""
    level = np.uint8(min(max(((dc + 4) >> 3) + 128, 0), 255))
    row = broadcast(level, 8)
    for i in range(8):
        store(planes, at + i * stride, row)


@inline_jit(forceinline=True)
def _to_level(value):
    return convert(
        minimum(maximum(value, broadcast(_S(0), LANES)), broadcast(_S(255), LANES)), np.uint8
    )


@inline_jit(forceinline=True)
def put_rgb(luma, blue_chroma, red_chroma, out, to):
    """`LANES` pixels, int16, to RGB in `out`.

    jdcolor.c: R = Y + 1.402 Cr, G = Y - 0.34414 Cb - 0.71414 Cr, B = Y + 1.772 Cb, products in
    1/65536 and rounded; here with whole multiples taken out, so that the factors fit 16 bits.
    """
    blue_chroma, red_chroma = blue_chroma - _S(128), red_chroma - _S(128)
    twice_blue, twice_red = blue_chroma + blue_chroma, red_chroma + red_chroma
    one = _S(1)
    red = red_chroma + ((multiply_high(twice_red, broadcast(_S(26345), LANES)) + one) >> one)
    blue = twice_blue + ((multiply_high(twice_blue, broadcast(_S(-14942), LANES)) + one) >> one)
    mixed = (
        convert(blue_chroma, np.int32) * _I(-22554)
        + convert(red_chroma, np.int32) * _I(18734)
        + _I(32768)
    )
    green = convert(mixed >> _I(16), np.int16) - red_chroma
    store_interleaved(
        out, to, _to_level(luma + red), _to_level(luma + green), _to_level(luma + blue)
    )


@inline_jit(forceinline=True)
def upsampled_across(planes, at):
    """`LANES` int16 of a chroma row at twice its width (h2v1_fancy_upsample), from the sample at
    `at` on."""
    three = _S(3)
    this = convert(load(planes, at, 16), np.int16) * three
    before, after = (
        convert(load(planes, at - 1, 16), np.int16),
        convert(load(planes, at + 1, 16), np.int16),
    )
    return interleave((this + before + _S(1)) >> _S(2), (this + after + _S(2)) >> _S(2))


@inline_jit(forceinline=True)
def _between_rows(planes, near, far):
    return convert(load(planes, near, 16), np.int16) * _S(3) + convert(
        load(planes, far, 16), np.int16
    )


@inline_jit(forceinline=True)
def upsampled_both(planes, near, far):
    """`LANES` int16 between two chroma rows at twice their size (h2v2_fancy_upsample), from `near`
    and `far` on."""
    this = _between_rows(planes, near, far) * _S(3)
    before, after = (
        _between_rows(planes, near - 1, far - 1),
        _between_rows(planes, near + 1, far + 1),
    )
    return interleave((this + before + _S(8)) >> _S(4), (this + after + _S(7)) >> _S(4))

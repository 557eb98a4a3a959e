"""Inverse DCT, chroma upsampling and colour conversion of JPEG, bit-equal to libjpeg-turbo.

The inverse DCT is jidctint.c's (JDCT_ISLOW). Chroma is upsampled by jdsample.c's "fancy" triangle
filter. Colours are converted by jdcolor.c's fixed-point tables.

`planes` uint8, flat, holds the components' samples by rows; `PAD` bytes on either side of a row may
be read. `at` is an index of the first sample, `stride` the samples from one row to the next.
"""

import numpy as np

from ..compiler.jit import inline_jit
from ..compiler.vector import (
    broadcast,
    broadcast_like,
    convert,
    load,
    maximum,
    minimum,
    multiply_high,
    reinterpret,
    store,
)
from ..compiler.vector_interleave import store_interleaved, store_interleaved_eights
from ..compiler.vector_shuffle import (
    interleave,
    interleave_high,
    interleave_low,
    load_four,
    load_two,
    multiply_pairs,
    narrow_groups,
    narrow_levels,
    store_eights,
    transpose_8,
)

PAD = 32
"""Samples around each row of `planes` that may be read."""
LANES = 64
"""Pixels converted at once on CPUs with AVX-512; up to this many may be written past the end of the
last row."""
HALF = 32
"""Pixels converted at once elsewhere, and upsampled at once."""

_I = np.int32
_S = np.int16
# jidctint.c's constants, in 1/8192: FIX_0_298631336 and so on.
_F_0_298 = 2446
_F_0_390 = 3196
_F_0_541 = 4433
_F_0_765 = 6270
_F_0_899 = 7373
_F_1_175 = 9633
_F_1_501 = 12299
_F_1_847 = 15137
_F_1_961 = 16069
_F_2_053 = 16819
_F_2_562 = 20995
_F_3_072 = 25172
# jidctint.c multiplies in several steps, which add up to sums of two products. Each pair here is
# (factor of the first coefficient, factor of the second); x73 is x7 + x3, x51 is x5 + x1.
_EVEN_2_3 = (_F_0_541 + _F_0_765, _F_0_541), (_F_0_541, _F_0_541 - _F_1_847)  # of x2, x6
_Z3_Z4 = (_F_1_175 - _F_1_961, _F_1_175), (_F_1_175, _F_1_175 - _F_0_390)  # of x73, x51
_ODD_0_3 = (_F_0_298 - _F_0_899, -_F_0_899), (-_F_0_899, _F_1_501 - _F_0_899)  # of x7, x1
_ODD_1_2 = (_F_2_053 - _F_2_562, -_F_2_562), (-_F_2_562, _F_3_072 - _F_2_562)  # of x5, x3
# The factors have 13 fractional bits, of which pass 1 keeps 2. Pass 2 removes the remaining 15 and
# 3 more, the division by 8 of a 2-D DCT. Its rounding includes the level shift of 128.
_GREEN = -22554, 18734  # see `_as_rgb`
_SHIFT_1 = _I(11)
_SHIFT_2 = _I(18)
_ROUND_1 = _I(1 << 10)
_ROUND_2 = _I((1 << 17) + (128 << 18))


@inline_jit(forceinline=True)
def _multiply(x, pair):
    """The int32 sums of neighbouring int16 lanes, each multiplied by its factor of `pair`."""
    factors = broadcast_like(reinterpret(x, np.int32), _I((pair[0] & 0xFFFF) | (pair[1] << 16)))
    return multiply_pairs(x, reinterpret(factors, np.int16))


@inline_jit(forceinline=True)
def _idct_half(x04, minus_04, x26, x7351, x71, x53, rounding, shift):
    """The 1-D inverse DCT of half the lanes: eight vectors of int32, before narrowing.

    `x04` is coefficient 0 plus 4, `minus_04` coefficient 0 less 4, int32, both times 65536. The
    others hold two coefficients in turn, twice as many int16: `x26` is x2 x6 x2 x6 …
    """
    # Even part (tmp0..tmp3 and tmp10..tmp13 in jidctint.c).
    even_0 = (x04 >> _I(3)) + rounding
    even_1 = (minus_04 >> _I(3)) + rounding
    even_2 = _multiply(x26, _EVEN_2_3[1])
    even_3 = _multiply(x26, _EVEN_2_3[0])
    t10 = even_0 + even_3
    t13 = even_0 - even_3
    t11 = even_1 + even_2
    t12 = even_1 - even_2
    # Odd part.
    z3 = _multiply(x7351, _Z3_Z4[0])
    z4 = _multiply(x7351, _Z3_Z4[1])
    odd_0 = _multiply(x71, _ODD_0_3[0]) + z3
    odd_3 = _multiply(x71, _ODD_0_3[1]) + z4
    odd_1 = _multiply(x53, _ODD_1_2[0]) + z4
    odd_2 = _multiply(x53, _ODD_1_2[1]) + z3
    # Butterflies.
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
def _idct_pass(x0, x1, x2, x3, x4, x5, x6, x7, rounding, shift):
    """One pass of the inverse DCT of two or four blocks, along the first axis, then transposed.

    `x0` … `x7` are rows of 16 or 32 int16: eight lanes of each block. Returns the transformed
    blocks' columns likewise, so that the second pass takes them as rows.
    """
    plus, minus = x0 + x4, x0 - x4
    x73, x51 = x7 + x3, x5 + x1
    zero = broadcast_like(x0, _S(0))
    # Interleaved with 0, an int16 is the upper half of an int32: times 65536.
    low = _idct_half(
        reinterpret(interleave_low(zero, plus), np.int32),
        reinterpret(interleave_low(zero, minus), np.int32),
        interleave_low(x2, x6),
        interleave_low(x73, x51),
        interleave_low(x7, x1),
        interleave_low(x5, x3),
        rounding,
        shift,
    )
    high = _idct_half(
        reinterpret(interleave_high(zero, plus), np.int32),
        reinterpret(interleave_high(zero, minus), np.int32),
        interleave_high(x2, x6),
        interleave_high(x73, x51),
        interleave_high(x7, x1),
        interleave_high(x5, x3),
        rounding,
        shift,
    )
    # Back to int16, saturated, in the lanes' first order.
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
def _clamp(value):
    """int16 lanes clamped to 0..255, as uint8."""
    zero, most = broadcast_like(value, _S(0)), broadcast_like(value, _S(255))
    return convert(minimum(maximum(value, zero), most), np.uint8)


@inline_jit(forceinline=True)
def inverse_dct_pair(block, first, second, planes, at, stride, second_at, second_stride):
    """Inverse DCT of two blocks into `planes`, 8 rows of 8 levels each; clears their coefficients.

    `block` int16: 64 dequantised coefficients in natural order from `first` on, and from `second`
    on; both may be the same block. The first block's samples begin at `at`, the second's at
    `second_at`.
    """
    # Pass 1, along columns: row v of both blocks is a vector.
    x0, x1, x2, x3, x4, x5, x6, x7 = _idct_pass(
        load_two(block, first, second, 8),
        load_two(block, first + 8, second + 8, 8),
        load_two(block, first + 16, second + 16, 8),
        load_two(block, first + 24, second + 24, 8),
        load_two(block, first + 32, second + 32, 8),
        load_two(block, first + 40, second + 40, 8),
        load_two(block, first + 48, second + 48, 8),
        load_two(block, first + 56, second + 56, 8),
        _ROUND_1,
        _SHIFT_1,
    )
    # `read_block` skips runs of zeros, so that the memory must be 0 when it reads the next block.
    zero = broadcast(_S(0), 32)
    store(block, first, zero)
    store(block, first + 32, zero)
    store(block, second, zero)
    store(block, second + 32, zero)
    # Pass 2, along rows: to levels.
    rows = _idct_pass(x0, x1, x2, x3, x4, x5, x6, x7, _ROUND_2, _SHIFT_2)
    # Two rows at once: eight levels of each, block by block.
    places = at, at + stride, second_at, second_at + second_stride
    store_eights(planes, places, narrow_levels(rows[0], rows[1]))
    at, second_at = at + 2 * stride, second_at + 2 * second_stride
    places = at, at + stride, second_at, second_at + second_stride
    store_eights(planes, places, narrow_levels(rows[2], rows[3]))
    at, second_at = at + 2 * stride, second_at + 2 * second_stride
    places = at, at + stride, second_at, second_at + second_stride
    store_eights(planes, places, narrow_levels(rows[4], rows[5]))
    at, second_at = at + 2 * stride, second_at + 2 * second_stride
    places = at, at + stride, second_at, second_at + second_stride
    store_eights(planes, places, narrow_levels(rows[6], rows[7]))


@inline_jit(forceinline=True)
def inverse_dct_four(block, planes, places):
    """`inverse_dct_pair` of the four blocks in `block`, 64 coefficients each, which stay.

    `places` (8,) int64: where each block's samples begin, then each one's stride. For CPUs with
    AVX-512.
    """
    x0, x1, x2, x3, x4, x5, x6, x7 = _idct_pass(
        load_four(block, 0, 64, 128, 192, 8),
        load_four(block, 8, 72, 136, 200, 8),
        load_four(block, 16, 80, 144, 208, 8),
        load_four(block, 24, 88, 152, 216, 8),
        load_four(block, 32, 96, 160, 224, 8),
        load_four(block, 40, 104, 168, 232, 8),
        load_four(block, 48, 112, 176, 240, 8),
        load_four(block, 56, 120, 184, 248, 8),
        _ROUND_1,
        _SHIFT_1,
    )
    rows = _idct_pass(x0, x1, x2, x3, x4, x5, x6, x7, _ROUND_2, _SHIFT_2)
    a, b, c, d = places[0], places[1], places[2], places[3]
    a_step, b_step, c_step, d_step = places[4], places[5], places[6], places[7]
    # Two rows at once: eight levels of each, block by block.
    levels = narrow_levels(rows[0], rows[1])
    below = a + a_step, b + b_step, c + c_step, d + d_step
    store_eights(planes, (a, below[0], b, below[1], c, below[2], d, below[3]), levels)
    a, b, c, d = a + 2 * a_step, b + 2 * b_step, c + 2 * c_step, d + 2 * d_step
    below = a + a_step, b + b_step, c + c_step, d + d_step
    levels = narrow_levels(rows[2], rows[3])
    store_eights(planes, (a, below[0], b, below[1], c, below[2], d, below[3]), levels)
    a, b, c, d = a + 2 * a_step, b + 2 * b_step, c + 2 * c_step, d + 2 * d_step
    below = a + a_step, b + b_step, c + c_step, d + d_step
    levels = narrow_levels(rows[4], rows[5])
    store_eights(planes, (a, below[0], b, below[1], c, below[2], d, below[3]), levels)
    a, b, c, d = a + 2 * a_step, b + 2 * b_step, c + 2 * c_step, d + 2 * d_step
    below = a + a_step, b + b_step, c + c_step, d + d_step
    levels = narrow_levels(rows[6], rows[7])
    store_eights(planes, (a, below[0], b, below[1], c, below[2], d, below[3]), levels)


@inline_jit(forceinline=True)
def fill_group(block, places, waiting, group):
    """Add copies of the first block in `block` to the `waiting` ones, 64 coefficients each, so that
    `group` of them can be transformed. `places`: where their samples begin, then their strides."""
    for i in range(waiting, group):
        store(block, 64 * i, load(block, 0, 32))
        store(block, 64 * i + 32, load(block, 32, 32))
        places[i], places[group + i] = places[0], places[group]


@inline_jit(forceinline=True)
def inverse_dct_flat(dc, planes, at, stride):
    """Inverse DCT of a block that has only the dequantised coefficient `dc`: 64 equal levels."""
    level = np.uint8(min(max(((dc + 4) >> 3) + 128, 0), 255))
    row = broadcast(level, 8)
    for i in range(8):
        store(planes, at + i * stride, row)


@inline_jit(forceinline=True)
def _as_rgb(luma, blue_chroma, red_chroma):
    """Convert `HALF` pixels from YCbCr, int16 in 0..255: red, green and blue, not yet clamped.

    jdcolor.c: R = Y + 1.402 Cr, G = Y - 0.34414 Cb - 0.71414 Cr, B = Y + 1.772 Cb, each product
    rounded from 1/65536. Whole multiples of the chroma are added apart, so that the factors fit in
    16 bits.
    """
    one = _S(1)
    blue_chroma = blue_chroma - _S(128)
    red_chroma = red_chroma - _S(128)
    twice_blue = blue_chroma + blue_chroma
    twice_red = red_chroma + red_chroma
    # 1.402 = 1 + 26345 / 65536; 1.772 = 2 - 14942 / 65536. Products of twice the chroma keep a bit
    # for rounding.
    red = red_chroma + ((multiply_high(twice_red, broadcast(_S(26345), HALF)) + one) >> one)
    blue = twice_blue + ((multiply_high(twice_blue, broadcast(_S(-14942), HALF)) + one) >> one)
    # -0.34414 = -22554 / 65536; -0.71414 = 18734 / 65536 - 1. jdcolor.c rounds this sum once.
    low = _multiply(interleave_low(blue_chroma, red_chroma), _GREEN) + _I(32768)
    high = _multiply(interleave_high(blue_chroma, red_chroma), _GREEN) + _I(32768)
    green = narrow_groups(low >> _I(16), high >> _I(16)) - red_chroma
    return luma + red, luma + green, luma + blue


@inline_jit(forceinline=True)
def store_rgb(luma, blue_chroma, red_chroma, out, to):
    """Convert `HALF` pixels, see `_as_rgb`, and write them to `out` from `to` on.

    `out` uint8, flat, receives 3 · HALF levels, RGB by pixel.
    """
    red, green, blue = _as_rgb(luma, blue_chroma, red_chroma)
    store_interleaved(out, to, _clamp(red), _clamp(green), _clamp(blue))


@inline_jit(forceinline=True)
def store_rgb_twice(first, second, out, to):
    """`store_rgb` of twice as many pixels, for CPUs with AVX-512. `first`, `second`: the arguments
    luma, blue_chroma, red_chroma of either half."""
    first_red, first_green, first_blue = _as_rgb(first[0], first[1], first[2])
    second_red, second_green, second_blue = _as_rgb(second[0], second[1], second[2])
    store_interleaved_eights(
        out,
        to,
        narrow_levels(first_red, second_red),
        narrow_levels(first_green, second_green),
        narrow_levels(first_blue, second_blue),
    )


@inline_jit(forceinline=True)
def upsample_h2v1(planes, at):
    """Upsample 16 chroma samples from `at` on to twice the width: `HALF` int16.

    libjpeg's h2v1_fancy_upsample: each output is 3/4 of the nearer sample and 1/4 of the farther.
    """
    nearer = convert(load(planes, at, 16), np.int16) * _S(3)
    left = convert(load(planes, at - 1, 16), np.int16)
    right = convert(load(planes, at + 1, 16), np.int16)
    return interleave((nearer + left + _S(1)) >> _S(2), (nearer + right + _S(2)) >> _S(2))


@inline_jit(forceinline=True)
def _blend_rows(planes, near, far):
    """3 times the nearer row plus the farther one: 16 int16, at 4 times the level."""
    nearer = convert(load(planes, near, 16), np.int16)
    farther = convert(load(planes, far, 16), np.int16)
    return nearer * _S(3) + farther


@inline_jit(forceinline=True)
def upsample_h2v2(planes, near, far):
    """Upsample 16 chroma samples to twice the width and height: one row of `HALF` int16.

    libjpeg's h2v2_fancy_upsample, the triangle filter on both axes. `near` and `far` are the first
    samples in the chroma row nearer to the output row and in the one on its other side.
    """
    nearer = _blend_rows(planes, near, far) * _S(3)
    left = _blend_rows(planes, near - 1, far - 1)
    right = _blend_rows(planes, near + 1, far + 1)
    return interleave((nearer + left + _S(8)) >> _S(4), (nearer + right + _S(7)) >> _S(4))

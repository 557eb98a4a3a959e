"""Baseline JPEG's arithmetic from coefficients to RGB, equal to libjpeg's exact settings to the bit.

The inverse DCT is jidctint.c's (JDCT_ISLOW), chroma is upsampled by jdsample.c's "fancy" triangle filter and colours
are converted by jdcolor.c's fixed-point tables.

A component's samples lie in rows of `planes`; `PAD` bytes on either side of a row may be read.
"""

import numpy as np

from .jit import leaf
from .vector import broadcast, convert, load, maximum, minimum, multiply_high, store
from .vector_shuffle import interleave, store_interleaved, transpose_8

PAD = 32
LANES = 32
"""Pixels whose colours are converted at once; as many may be written beyond the last row's end."""

_I = np.int32
_S = np.int16
# jidctint.c's constants, in 1/8192.
_F_0_298, _F_0_390, _F_0_541, _F_0_765 = _I(2446), _I(3196), _I(4433), _I(6270)
_F_0_899, _F_1_175, _F_1_501, _F_1_847 = _I(7373), _I(9633), _I(12299), _I(15137)
_F_1_961, _F_2_053, _F_2_562, _F_3_072 = _I(16069), _I(16819), _I(20995), _I(25172)
_TO_PASS_2, _TO_LEVELS = _I(11), _I(18)
_ROUND_PASS_2, _ROUND_LEVELS = _I(1 << 10), _I((1 << 17) + (128 << 18))  # the latter with the level shift of 128


@leaf(forceinline=True)
def _one_dimension(x0, x1, x2, x3, x4, x5, x6, x7, rounding, shift):
    """The 1-D inverse DCT of eight vectors of int32."""
    z1 = (x2 + x6) * _F_0_541
    even_2, even_3 = z1 - x6 * _F_1_847, z1 + x2 * _F_0_765
    even_0, even_1 = ((x0 + x4) << _I(13)) + rounding, ((x0 - x4) << _I(13)) + rounding
    t10, t13, t11, t12 = even_0 + even_3, even_0 - even_3, even_1 + even_2, even_1 - even_2
    z5 = (x7 + x3 + x5 + x1) * _F_1_175
    z1, z2 = (x7 + x1) * _F_0_899, (x5 + x3) * _F_2_562
    z3, z4 = z5 - (x7 + x3) * _F_1_961, z5 - (x5 + x1) * _F_0_390
    odd_0 = x7 * _F_0_298 - z1 + z3
    odd_1 = x5 * _F_2_053 - z2 + z4
    odd_2 = x3 * _F_3_072 - z2 + z3
    odd_3 = x1 * _F_1_501 - z1 + z4
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


@leaf(forceinline=True)
def _row(block, at, i):
    return convert(load(block, at + 8 * i, 8), np.int32)


@leaf(forceinline=True)
def _wide(row):
    return convert(row, np.int32)


@leaf(forceinline=True)
def _level(column):
    """Clamped to 0..255, as int16."""
    return convert(minimum(maximum(column, broadcast(_I(0), 8)), broadcast(_I(255), 8)), np.int16)


@leaf(forceinline=True)
def put_block(block, source, planes, at, stride):
    """The inverse DCT of `block` (64,) int16 into 8 rows of `planes`, the first at `at`; `block` is 0 thereafter."""
    c0, c1, c2, c3, c4, c5, c6, c7 = _one_dimension(
        _row(block, source, 0),
        _row(block, source, 1),
        _row(block, source, 2),
        _row(block, source, 3),
        _row(block, source, 4),
        _row(block, source, 5),
        _row(block, source, 6),
        _row(block, source, 7),
        _ROUND_PASS_2,
        _TO_PASS_2,
    )
    zero = broadcast(_S(0), 32)
    store(block, source, zero)
    store(block, source + 32, zero)
    r0, r1, r2, r3, r4, r5, r6, r7 = transpose_8(
        convert(c0, np.int16),
        convert(c1, np.int16),
        convert(c2, np.int16),
        convert(c3, np.int16),
        convert(c4, np.int16),
        convert(c5, np.int16),
        convert(c6, np.int16),
        convert(c7, np.int16),
    )
    c0, c1, c2, c3, c4, c5, c6, c7 = _one_dimension(
        _wide(r0),
        _wide(r1),
        _wide(r2),
        _wide(r3),
        _wide(r4),
        _wide(r5),
        _wide(r6),
        _wide(r7),
        _ROUND_LEVELS,
        _TO_LEVELS,
    )
    rows = transpose_8(_level(c0), _level(c1), _level(c2), _level(c3), _level(c4), _level(c5), _level(c6), _level(c7))
    store(planes, at, convert(rows[0], np.uint8))
    store(planes, at + stride, convert(rows[1], np.uint8))
    store(planes, at + 2 * stride, convert(rows[2], np.uint8))
    store(planes, at + 3 * stride, convert(rows[3], np.uint8))
    store(planes, at + 4 * stride, convert(rows[4], np.uint8))
    store(planes, at + 5 * stride, convert(rows[5], np.uint8))
    store(planes, at + 6 * stride, convert(rows[6], np.uint8))
    store(planes, at + 7 * stride, convert(rows[7], np.uint8))


@leaf(forceinline=True)
def put_flat_block(dc, planes, at, stride):
    """The same for a block with nothing but its dequantised DC coefficient."""
    level = np.uint8(min(max(((dc + 4) >> 3) + 128, 0), 255))
    row = broadcast(level, 8)
    for i in range(8):
        store(planes, at + i * stride, row)


@leaf(forceinline=True)
def _signed(planes, at, lanes):
    return convert(load(planes, at, 32), np.int16)


@leaf(forceinline=True)
def _to_level(value):
    return convert(minimum(maximum(value, broadcast(_S(0), LANES)), broadcast(_S(255), LANES)), np.uint8)


@leaf(forceinline=True)
def put_rgb(luma, blue_chroma, red_chroma, out, to):
    """`LANES` pixels, int16, to RGB in `out`.

    jdcolor.c: R = Y + 1.402 Cr, G = Y - 0.34414 Cb - 0.71414 Cr, B = Y + 1.772 Cb, products in 1/65536 and rounded;
    here with whole multiples taken out, so that the factors fit 16 bits.
    """
    blue_chroma, red_chroma = blue_chroma - _S(128), red_chroma - _S(128)
    twice_blue, twice_red = blue_chroma + blue_chroma, red_chroma + red_chroma
    one = _S(1)
    red = red_chroma + ((multiply_high(twice_red, broadcast(_S(26345), LANES)) + one) >> one)
    blue = twice_blue + ((multiply_high(twice_blue, broadcast(_S(-14942), LANES)) + one) >> one)
    mixed = convert(blue_chroma, np.int32) * _I(-22554) + convert(red_chroma, np.int32) * _I(18734) + _I(32768)
    green = convert(mixed >> _I(16), np.int16) - red_chroma
    store_interleaved(out, to, _to_level(luma + red), _to_level(luma + green), _to_level(luma + blue))


@leaf(forceinline=True)
def upsampled_across(planes, at):
    """`LANES` int16 of a chroma row at twice its width (h2v1_fancy_upsample), from the sample at `at` on."""
    three = _S(3)
    this = convert(load(planes, at, 16), np.int16) * three
    before, after = convert(load(planes, at - 1, 16), np.int16), convert(load(planes, at + 1, 16), np.int16)
    return interleave((this + before + _S(1)) >> _S(2), (this + after + _S(2)) >> _S(2))


@leaf(forceinline=True)
def _between_rows(planes, near, far):
    return convert(load(planes, near, 16), np.int16) * _S(3) + convert(load(planes, far, 16), np.int16)


@leaf(forceinline=True)
def upsampled_both(planes, near, far):
    """`LANES` int16 between two chroma rows at twice their size (h2v2_fancy_upsample), from `near` and `far` on."""
    this = _between_rows(planes, near, far) * _S(3)
    before, after = _between_rows(planes, near - 1, far - 1), _between_rows(planes, near + 1, far + 1)
    return interleave((this + before + _S(8)) >> _S(4), (this + after + _S(7)) >> _S(4))

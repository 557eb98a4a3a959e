"""Colour jitter, gray and solarisation of one planar row, equal to torchvision's operators on uint8 tensors to the bit.

That is float32 in torchvision's own order of operations, compiled without fast-math, truncated where it truncates; it
also keeps errors from growing along the chain. Hue alone is computed another way where that cannot change a level.

A row is (3, P) float32, flat, and holds whole levels: S pixels of red, then green, then blue, each padded to P, the
pitch, S rounded up to a multiple of 32. `red`, `green` and `blue` are vectors of `LANES` of them.
"""

import numpy as np

from .jit import leaf
from .vector import any_lane, broadcast, convert, load, magnitude, maximum, minimum, multiply_add, select, store, total
from .views import BRIGHTNESS, CONTRAST, SATURATION

LANES = 32
"""Values worked on at once: two AVX-512 registers of float32, since one would wait for its own results."""

_F = np.float32
_ZERO, _ONE, _TWO, _THREE, _FOUR, _FIVE, _SIX = _F(0), _F(1), _F(2), _F(3), _F(4), _F(5), _F(6)
_TOP, _THRESHOLD = _F(255), _F(128)
_LUMA_RED, _LUMA_GREEN, _LUMA_BLUE = _F(0.2989), _F(0.587), _F(0.114)  # torchvision's rgb_to_grayscale
_TO_LEVEL = _F(255.0 + 1.0 - 1e-3)  # torchvision's convert_image_dtype from float to uint8
# 1/255 as a sum: the first part has 16 bits, so that its product with a level is exact, and the sum of both products
# rounds to the quotient by 255 for every level (a test holds it).
_UNIT_HIGH = _F(int(2**23 / 255) / 2**23)
_UNIT_LOW = _F(1 / 255 - int(2**23 / 255) / 2**23)
_LEVEL_SCALE = _F((255.0 + 1.0 - 1e-3) / 255.0)
_ROUNDER = _F(1.5 * 2**23)  # added and taken away, it leaves a float32 below 2^22 rounded to a whole number
# Rounding errors of a level, torchvision's and the quick form's together. With the chroma grow those of the hue, which
# is a multiple of 2^-24 of a turn there (1.1e-6 sixths, with what follows) and a product with up to 11 here (2.1e-6).
_DOUBT_OF_CHROMA, _DOUBT = _F(4e-6), _F(2e-4)
_I0, _I1 = np.int32(0), np.int32(1)


@leaf(forceinline=True)
def _truncate(value):
    """The whole part of non-negative float32."""
    return convert(convert(value, np.int32), np.float32)


@leaf(forceinline=True)
def _luma(red, green, blue):
    return _truncate(_LUMA_RED * red + _LUMA_GREEN * green + _LUMA_BLUE * blue)


@leaf(forceinline=True)
def _blend(value, factor, addend):
    """torchvision's _blend: factor · value + addend, clamped and truncated."""
    raw = factor * value + addend
    return _truncate(minimum(maximum(raw, broadcast(_ZERO, LANES)), broadcast(_TOP, LANES)))


@leaf(forceinline=True)
def _to_unit(levels):
    """Whole levels / 255, rounded as the division is."""
    return levels * _UNIT_HIGH + levels * _UNIT_LOW


@leaf(forceinline=True)
def _turned(red, green, blue, turn):
    """torchvision's adjust_hue: to HSV in 0..1, turn the hue, back to levels.

    Of its three quotients (largest - channel) / chroma one is 0 and one is 1, so that only the middle channel's is
    computed; and the largest and the smallest channel come back as the levels that they were.
    """
    one, zero = broadcast(_ONE, LANES), broadcast(_ZERO, LANES)
    low_pair, high_pair = minimum(red, green), maximum(red, green)
    high, low = maximum(high_pair, blue), minimum(low_pair, blue)
    middle = maximum(low_pair, minimum(high_pair, blue))
    largest = _to_unit(high)
    chroma = largest - _to_unit(low)
    colourless = chroma == zero
    saturation = chroma / select(colourless, one, largest)
    part = (largest - _to_unit(middle)) / select(colourless, one, chroma)

    hue_red = select(blue <= green, _ONE - part, part - _ONE)
    hue_green = select(blue <= red, (_TWO + part) - _ONE, _THREE - part)
    hue_blue = select(red <= green, (_FOUR + part) - _ONE, _FIVE - part)
    hue = select(high == red, hue_red, select(high == green, hue_green, hue_blue))
    hue = hue / _SIX + _ONE
    hue = select(hue >= one, hue - _ONE, hue) + turn
    hue = select(hue < zero, hue + _ONE, hue)
    hue = select(hue >= one, hue - _ONE, hue)

    sixths = hue * _SIX
    sector = convert(sixths, np.int32)
    fall = sixths - convert(sector, np.float32)
    odd = (sector & _I1) == _I1
    middle = _truncate(largest * (_ONE - saturation * select(odd, fall, _ONE - fall)) * _TO_LEVEL)
    # Each third of the circle has a pair of channels that the largest level passes between, first to second.
    first, second = select(odd, middle, high), select(odd, high, middle)
    red_green, blue_red = sixths < _TWO, sixths >= _FOUR
    return (
        select(red_green, first, select(blue_red, second, low)),
        select(red_green, second, select(blue_red, low, first)),
        select(red_green, low, select(blue_red, first, second)),
    )


@leaf(forceinline=True)
def _nearest(value):
    """The nearest whole number, of float32 up to 2^22."""
    return (value + _ROUNDER) - _ROUNDER


@leaf(forceinline=True)
def _turned_quickly(red, green, blue, sixths):
    """`_turned` without divisions, and in which lanes rounding leaves a level in doubt.

    The hue, in sixths of a turn, is kept multiplied by the chroma. As it goes round, each channel rises from the
    smallest level to the largest, stays for two sixths, falls and stays. Levels come back by 255.999 / 255 and are
    truncated; here all is scaled so, lowered by a half, rounded, and clamped where it stays. `sixths`: the turn, 1..7.
    """
    high, low = maximum(maximum(red, green), blue), minimum(minimum(red, green), blue)
    scale = broadcast(_LEVEL_SCALE, LANES)
    chroma = (high - low) * scale
    is_red, is_green = high == red, high == green
    offset = select(is_red, green - blue, select(is_green, blue - red, red - green))
    third = select(is_red, broadcast(_ZERO, LANES), select(is_green, broadcast(_TWO, LANES), broadcast(_FOUR, LANES)))
    hue, whole = multiply_add(third + sixths, chroma, offset * scale), _SIX * chroma
    hue = select(hue >= whole, hue - whole, hue)

    bottom = multiply_add(low, scale, broadcast(_F(-0.5), LANES))
    rise, fall = bottom - chroma, multiply_add(broadcast(_TWO, LANES), chroma, bottom)
    red = magnitude(multiply_add(broadcast(_F(-3), LANES), chroma, hue)) + rise
    green = fall - magnitude(multiply_add(broadcast(_F(-2), LANES), chroma, hue))
    blue = fall - magnitude(multiply_add(broadcast(_F(-4), LANES), chroma, hue))
    red, green, blue = _clamped(red, low, high), _clamped(green, low, high), _clamped(blue, low, high)
    new_red, new_green, new_blue = _nearest(red), _nearest(green), _nearest(blue)
    apart = maximum(maximum(magnitude(red - new_red), magnitude(green - new_green)), magnitude(blue - new_blue))
    doubt = multiply_add(chroma, broadcast(_DOUBT_OF_CHROMA, LANES), apart)
    return new_red, new_green, new_blue, doubt > _F(0.5) - _DOUBT


@leaf(forceinline=True)
def _clamped(value, low, high):
    return minimum(maximum(value, low), high)


@leaf()
def _hue(row, pitch, turn):
    """Turn a row's hue: quickly, and in full where a lane is in doubt, which is seldom so."""
    sixths = _F(_SIX * turn + (_SIX if turn * _SIX < _ONE else _ZERO))
    for x in range(0, pitch, LANES):
        red, green, blue = load(row, x, LANES), load(row, pitch + x, LANES), load(row, 2 * pitch + x, LANES)
        new_red, new_green, new_blue, doubt = _turned_quickly(red, green, blue, sixths)
        if any_lane(doubt):
            new_red, new_green, new_blue = _turned(red, green, blue, turn)
        store(row, x, new_red)
        store(row, pitch + x, new_green)
        store(row, 2 * pitch + x, new_blue)


@leaf()
def _saturation(row, pitch, factor):
    rest = _F(1.0 - np.float64(factor))
    for x in range(0, pitch, LANES):
        red, green, blue = load(row, x, LANES), load(row, pitch + x, LANES), load(row, 2 * pitch + x, LANES)
        addend = rest * _luma(red, green, blue)
        store(row, x, _blend(red, factor, addend))
        store(row, pitch + x, _blend(green, factor, addend))
        store(row, 2 * pitch + x, _blend(blue, factor, addend))


@leaf()
def _brightness(row, pitch, factor):
    for x in range(0, 3 * pitch, LANES):
        store(row, x, _truncate(minimum(factor * load(row, x, LANES), broadcast(_TOP, LANES))))


@leaf()
def _contrast(row, pitch, factor, addend):
    for x in range(0, 3 * pitch, LANES):
        store(row, x, _blend(load(row, x, LANES), factor, broadcast(addend, LANES)))


@leaf()
def gray(row, pitch):
    """torchvision's rgb_to_grayscale, in three channels."""
    for x in range(0, pitch, LANES):
        luma = _luma(load(row, x, LANES), load(row, pitch + x, LANES), load(row, 2 * pitch + x, LANES))
        store(row, x, luma)
        store(row, pitch + x, luma)
        store(row, 2 * pitch + x, luma)


@leaf()
def solarize(row, pitch):
    """torchvision's solarize at a threshold of 128."""
    for x in range(0, 3 * pitch, LANES):
        values = load(row, x, LANES)
        store(row, x, select(values < _THRESHOLD, values, _TOP - values))


@leaf()
def jitter(row, pitch, order, factors, begin, end, mean):
    """The jitter operations number `begin` up to `end`; `mean` is the view's gray level, which contrast alone needs."""
    for i in range(begin, end):
        operation = int(order[i])
        factor = factors[operation]
        if operation == BRIGHTNESS:
            _brightness(row, pitch, factor)
        elif operation == CONTRAST:
            _contrast(row, pitch, factor, _F(1.0 - np.float64(factor)) * mean)
        elif operation == SATURATION:
            _saturation(row, pitch, factor)
        else:
            _hue(row, pitch, factor)


@leaf()
def load_row(levels, y, pitch, row):
    """Row `y` of the planar `levels`, (rows · 3 · P,) uint8, into `row`."""
    for x in range(0, 3 * pitch, LANES):
        store(row, x, convert(convert(load(levels, 3 * y * pitch + x, LANES), np.int32), np.float32))


@leaf()
def before_contrast(levels, order, factors, contrast_at, size, pitch, row):
    """Do the operations ahead of contrast on the whole view and return its mean gray level as it then stands.

    The lanes between S and P are 0 and stay so: every operation but contrast keeps black.
    """
    sum_all = 0
    for y in range(size):
        load_row(levels, y, pitch, row)
        jitter(row, pitch, order, factors, 0, contrast_at, _ZERO)
        if contrast_at > 0:
            for x in range(0, 3 * pitch, LANES):
                store(levels, 3 * y * pitch + x, convert(convert(load(row, x, LANES), np.int32), np.uint8))
        luma = broadcast(_I0, LANES)
        for x in range(0, pitch, LANES):
            values = _luma(load(row, x, LANES), load(row, pitch + x, LANES), load(row, 2 * pitch + x, LANES))
            luma = luma + convert(values, np.int32)
        sum_all += total(luma)
    return _F(sum_all) / _F(size * size)

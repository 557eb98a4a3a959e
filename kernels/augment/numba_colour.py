"""Colour jitter, gray and solarisation of a few pixels, equal to torchvision's operators on uint8
tensors to the bit.

That is float32 in torchvision's own order of operations, compiled without fast-math, truncated
where it truncates; it also keeps errors from growing along the chain. Hue alone is computed another
way where that cannot change a level.

`red`, `green` and `blue` are vectors of `LANES` float32, which hold whole levels: they stay in
registers from the first operation to the last. A view's levels lie planar by row: P values of red,
of green and of blue in each; P, the pitch, is S rounded up to a multiple of 32.
"""

import numpy as np

from ..compiler.jit import inline_jit
from ..compiler.vector import (
    any_lane,
    broadcast,
    convert,
    load,
    magnitude,
    maximum,
    minimum,
    multiply_add,
    select,
    store,
    total,
    truncate,
)
from ..views import BRIGHTNESS, CONTRAST, SATURATION

LANES = 32
"""Values worked on at once: two AVX-512 registers of float32, since one would wait for its own
results."""

_F = np.float32
_ZERO, _ONE, _TWO, _THREE, _FOUR, _FIVE, _SIX = _F(0), _F(1), _F(2), _F(3), _F(4), _F(5), _F(6)
_TOP, _THRESHOLD = _F(255), _F(128)
_LUMA_RED, _LUMA_GREEN, _LUMA_BLUE = (
    _F(0.2989),
    _F(0.587),
    _F(0.114),
)  # torchvision's rgb_to_grayscale
_TO_LEVEL = _F(255.0 + 1.0 - 1e-3)  # torchvision's convert_image_dtype from float to uint8
# 1/255 as a sum: the first part has 16 bits, so that its product with a level is exact, and the sum
# of both products rounds to the quotient by 255 for every level (a test holds it).
_UNIT_HIGH = _F(int(2**23 / 255) / 2**23)
_UNIT_LOW = _F(1 / 255 - int(2**23 / 255) / 2**23)
_LEVEL_SCALE = _F((255.0 + 1.0 - 1e-3) / 255.0)
_ROUNDER = _F(
    1.5 * 2**23
)  # added and taken away, it leaves a float32 below 2^22 rounded to a whole number
# Rounding errors of a level, torchvision's and the quick form's together. With the chroma grow
# those of the hue, which is a multiple of 2^-24 of a turn there (1.1e-6 sixths, with what follows)
# and a product with up to 11 here (2.1e-6).
_DOUBT_OF_CHROMA, _DOUBT = _F(4e-6), _F(2e-4)
_I0, _I1 = np.int32(0), np.int32(1)


@inline_jit(forceinline=True)
def _luma(red, green, blue):
    return truncate(_LUMA_RED * red + _LUMA_GREEN * green + _LUMA_BLUE * blue)


@inline_jit(forceinline=True)
def _blend(value, factor, addend):
    """torchvision's _blend: factor · value + addend, clamped and truncated."""
    raw = factor * value + addend
    return truncate(minimum(maximum(raw, broadcast(_ZERO, LANES)), broadcast(_TOP, LANES)))


@inline_jit(forceinline=True)
def _to_unit(levels):
    """Whole levels / 255, rounded as the division is."""
    return levels * _UNIT_HIGH + levels * _UNIT_LOW


@inline_jit(forceinline=True)
def _turned(red, green, blue, turn):
    """torchvision's adjust_hue: to HSV in 0..1, turn the hue, back to levels.

    Of its three quotients (largest - channel) / chroma one is 0 and one is 1, so that only the
    middle channel's is computed; and the largest and the smallest channel come back as the levels
    that they were.
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
    middle = truncate(largest * (_ONE - saturation * select(odd, fall, _ONE - fall)) * _TO_LEVEL)
    # Each third of the circle has a pair of channels that the largest level passes between, first
    # to second.
    first, second = select(odd, middle, high), select(odd, high, middle)
    red_green, blue_red = sixths < _TWO, sixths >= _FOUR
    return (
        select(red_green, first, select(blue_red, second, low)),
        select(red_green, second, select(blue_red, low, first)),
        select(red_green, low, select(blue_red, first, second)),
    )


@inline_jit(forceinline=True)
def _turned_quickly(red, green, blue, sixths):
    """`_turned` without divisions, and in which lanes rounding leaves a level in doubt.

    The hue, in sixths of a turn, is kept multiplied by the chroma: in each third of the circle one
    channel rises from the smallest level to the largest, then another one falls. Levels come back
    by 255.999 / 255 and are truncated; here all is scaled so, lowered by a half and rounded.
    `sixths`: the turn, 1..7.
    """
    high, low = maximum(maximum(red, green), blue), minimum(minimum(red, green), blue)
    zero, scale = broadcast(_ZERO, LANES), broadcast(_LEVEL_SCALE, LANES)
    chroma = (high - low) * scale
    two, is_red, is_green = chroma + chroma, high == red, high == green
    four = two + two
    offset = select(is_red, green - blue, select(is_green, blue - red, red - green))
    third = select(is_red, zero, select(is_green, two, four))
    hue = multiply_add(chroma, broadcast(sixths, LANES), multiply_add(offset, scale, third))
    hue = select(hue >= four + two, hue - (four + two), hue)

    past_two, past_four = hue >= two, hue >= four
    position = hue - select(
        past_two, select(past_four, four, two), zero
    )  # in the third, 0 .. 2 chroma
    exact = multiply_add(low, scale, minimum(position, two - position) - _F(0.5))
    exact = minimum(maximum(exact, low), high)
    middle = (exact + _ROUNDER) - _ROUNDER
    doubt = (
        multiply_add(chroma, broadcast(_DOUBT_OF_CHROMA, LANES), magnitude(exact - middle))
        > _F(0.5) - _DOUBT
    )
    falls = position >= chroma
    first, second = select(falls, middle, high), select(falls, high, middle)
    return (
        select(past_two, select(past_four, second, low), first),
        select(past_two, select(past_four, low, first), second),
        select(past_two, select(past_four, first, second), low),
        doubt,
    )


@inline_jit(forceinline=True)
def _hue(red, green, blue, turn):
    """Turn the hue: quickly, and in full where a lane is in doubt, which is seldom so."""
    sixths = _F(_SIX * turn + (_SIX if turn * _SIX < _ONE else _ZERO))
    new_red, new_green, new_blue, doubt = _turned_quickly(red, green, blue, sixths)
    if any_lane(doubt):
        new_red, new_green, new_blue = _turned(red, green, blue, turn)
    return new_red, new_green, new_blue


@inline_jit(forceinline=True)
def _saturation(red, green, blue, factor):
    addend = _F(1.0 - np.float64(factor)) * _luma(red, green, blue)
    return _blend(red, factor, addend), _blend(green, factor, addend), _blend(blue, factor, addend)


@inline_jit(forceinline=True)
def _brightness(value, factor):
    return truncate(minimum(factor * value, broadcast(_TOP, LANES)))


@inline_jit(forceinline=True)
def gray(red, green, blue):
    """torchvision's rgb_to_grayscale, the one channel of three."""
    return _luma(red, green, blue)


@inline_jit(forceinline=True)
def solarize(value):
    """torchvision's solarize at a threshold of 128, of one channel."""
    return select(value < _THRESHOLD, value, _TOP - value)


@inline_jit(forceinline=True)
def jitter(red, green, blue, order, factors, begin, end, mean):
    """The jitter operations number `begin` up to `end`; `mean` is the view's gray level, which
    contrast alone needs."""
    for i in range(begin, end):
        operation = int(order[i])
        factor = factors[operation]
        if operation == BRIGHTNESS:
            red, green, blue = (
                _brightness(red, factor),
                _brightness(green, factor),
                _brightness(blue, factor),
            )
        elif operation == CONTRAST:
            addend = broadcast(_F(1.0 - np.float64(factor)) * mean, LANES)
            red, green, blue = (
                _blend(red, factor, addend),
                _blend(green, factor, addend),
                _blend(blue, factor, addend),
            )
        elif operation == SATURATION:
            red, green, blue = _saturation(red, green, blue, factor)
        else:
            red, green, blue = _hue(red, green, blue, factor)
    return red, green, blue


@inline_jit(forceinline=True)
def load_levels(levels, at):
    """`LANES` of uint8 as float32."""
    return convert(convert(load(levels, at, LANES), np.int32), np.float32)


@inline_jit(forceinline=True)
def _store_levels(levels, at, value):
    store(levels, at, convert(convert(value, np.int32), np.uint8))


@inline_jit()
def before_contrast(levels, order, factors, contrast_at, size, pitch):
    """Do the operations ahead of contrast on the whole view and return its mean gray level as it
    then stands.

    The lanes between S and P are 0 and stay so: every operation but contrast keeps black.
    """
    sum_all = 0
    for y in range(size):
        luma = broadcast(_I0, LANES)
        for at in range(3 * y * pitch, (3 * y + 1) * pitch, LANES):
            red, green = load_levels(levels, at), load_levels(levels, at + pitch)
            blue = load_levels(levels, at + 2 * pitch)
            if contrast_at > 0:
                red, green, blue = jitter(red, green, blue, order, factors, 0, contrast_at, _ZERO)
                _store_levels(levels, at, red)
                _store_levels(levels, at + pitch, green)
                _store_levels(levels, at + 2 * pitch, blue)
            luma = luma + convert(_luma(red, green, blue), np.int32)
        sum_all += total(luma)
    return _F(sum_all) / _F(size * size)

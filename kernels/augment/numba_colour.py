"""Colour jitter, gray, solarisation and lighting of `LANES` pixels, bit-equal to torchvision's
operators.

torchvision computes uint8 tensors in float32 and truncates after each operation. The same
operations in the same order, compiled without fast-math, give the same levels. Only the hue is
computed differently, where that cannot change a level.

`red`, `green` and `blue` are vectors of `LANES` float32 that hold whole levels. They stay in
registers from the first operation to the last; but contrast, and a brightness right behind it or
before all others, are looked up in a table of all 256 levels on CPUs that do so quickly. A view's
`levels` (S · 3 · P,) uint8 are planar by row: P values of red, of green, of blue. S and S' are the
view's height and width; P, the pitch, is the longer of these rounded up to a multiple of 32.
"""

import numpy as np
from numba.extending import overload

from ..compiler.features import has_vbmi2
from ..compiler.jit import inline_jit
from ..compiler.vector import (
    any_lane,
    broadcast,
    convert,
    lane_numbers,
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
from ..compiler.vector_gather import pick_byte_of_two
from ..views import BRIGHTNESS, CONTRAST, SATURATION, SOLARIZE_THRESHOLD

LANES = 32
"""Pixels computed at once: two AVX-512 registers of float32. One register would stall on its own
results."""

TABLE_ROOM = 32
"""Bytes behind a view's levels that `replace_levels` reads, and writes back as they were."""

_TABLES = has_vbmi2()
"""Whether 64 levels are looked up at once. Elsewhere that takes longer than to compute them."""
_F = np.float32
_ZERO, _ONE, _TWO, _THREE, _FOUR, _FIVE, _SIX = _F(0), _F(1), _F(2), _F(3), _F(4), _F(5), _F(6)
_TOP = _F(255)
_THRESHOLD = _F(SOLARIZE_THRESHOLD)
# torchvision's rgb_to_grayscale.
_LUMA_RED = _F(0.2989)
_LUMA_GREEN = _F(0.587)
_LUMA_BLUE = _F(0.114)
_TO_LEVEL = _F(255.0 + 1.0 - 1e-3)  # torchvision's convert_image_dtype from float to uint8
# 1/255 as a sum. The first part has 16 bits, so that its product with a level is exact. The sum of
# both products then rounds to the quotient by 255 for every level; a test checks all 256.
_UNIT_HIGH = _F(int(2**23 / 255) / 2**23)
_UNIT_LOW = _F(1 / 255 - int(2**23 / 255) / 2**23)
_LEVEL_SCALE = _F((255.0 + 1.0 - 1e-3) / 255.0)
# Added and subtracted, it rounds a float32 below 2^22 to a whole number.
_ROUNDER = _F(1.5 * 2**23)
# Bounds on the rounding errors of a level, torchvision's and the fast form's together. Those of the
# hue grow with the chroma. torchvision's hue is a multiple of 2^-24 of a circle (1.1e-6 sixths with
# later roundings), the fast form's a product with up to 11 (2.1e-6).
_ERROR_BY_CHROMA = _F(4e-6)
_ERROR = _F(2e-4)
_I0, _I1 = np.int32(0), np.int32(1)


@inline_jit(forceinline=True)
def gray(red, green, blue):
    """torchvision's `rgb_to_grayscale`: one channel of whole gray levels."""
    return truncate(_LUMA_RED * red + _LUMA_GREEN * green + _LUMA_BLUE * blue)


@inline_jit(forceinline=True)
def _blend(value, factor, addend):
    """torchvision's `_blend`: factor · value + addend, clamped and truncated to a whole level."""
    raw = factor * value + addend
    return truncate(minimum(maximum(raw, broadcast(_ZERO, LANES)), broadcast(_TOP, LANES)))


@inline_jit(forceinline=True)
def _to_unit(levels):
    """Whole levels / 255, rounded as the division would be."""
    return levels * _UNIT_HIGH + levels * _UNIT_LOW


@inline_jit(forceinline=True)
def _turn_hue_exactly(red, green, blue, turn):
    """torchvision's `adjust_hue`, bit for bit: to HSV in 0..1, turn the hue, back to levels.

    Of its three quotients (largest - channel) / chroma, one is 0 and one is 1, so that only the
    middle channel's is computed. The largest and the smallest level are unchanged by a turn. `turn`
    is in circles, in [-0.5, 0.5].
    """
    # 1. Chroma, saturation and the middle channel's quotient.
    one, zero = broadcast(_ONE, LANES), broadcast(_ZERO, LANES)
    low_pair, high_pair = minimum(red, green), maximum(red, green)
    high, low = maximum(high_pair, blue), minimum(low_pair, blue)
    middle = maximum(low_pair, minimum(high_pair, blue))
    largest = _to_unit(high)
    chroma = largest - _to_unit(low)
    colourless = chroma == zero
    saturation = chroma / select(colourless, one, largest)
    part = (largest - _to_unit(middle)) / select(colourless, one, chroma)

    # 2. The hue in sixths of a circle, by which channel is largest; then turned and wrapped into
    # [0, 1). The order of the sums is torchvision's, which decides their rounding.
    hue_red = select(blue <= green, _ONE - part, part - _ONE)
    hue_green = select(blue <= red, (_TWO + part) - _ONE, _THREE - part)
    hue_blue = select(red <= green, (_FOUR + part) - _ONE, _FIVE - part)
    hue = select(high == red, hue_red, select(high == green, hue_green, hue_blue))
    hue = hue / _SIX + _ONE
    hue = select(hue >= one, hue - _ONE, hue) + turn
    hue = select(hue < zero, hue + _ONE, hue)
    hue = select(hue >= one, hue - _ONE, hue)

    # 3. The sector, and the new middle level: falling in odd sectors, rising in even ones.
    sixths = hue * _SIX
    sector = convert(sixths, np.int32)
    fall = sixths - convert(sector, np.float32)
    odd = (sector & _I1) == _I1
    middle = truncate(largest * (_ONE - saturation * select(odd, fall, _ONE - fall)) * _TO_LEVEL)
    # 4. Assign largest, middle and smallest to the channels. In each third of the circle the
    # largest level passes from a first channel to a second one, and the third channel is smallest.
    first = select(odd, middle, high)
    second = select(odd, high, middle)
    red_green = sixths < _TWO
    blue_red = sixths >= _FOUR
    return (
        select(red_green, first, select(blue_red, second, low)),
        select(red_green, second, select(blue_red, low, first)),
        select(red_green, low, select(blue_red, first, second)),
    )


@inline_jit(forceinline=True)
def _turn_hue_fast(red, green, blue, sixths):
    """`_turn_hue_exactly` without divisions, and in which lanes rounding leaves a level in doubt.

    The hue, in sixths of a circle, stays multiplied by the chroma. In each third of the circle one
    channel rises from the smallest level to the largest, then another one falls. torchvision scales
    levels by 255.999 / 255 in the end and truncates them; here everything is scaled from the start,
    lowered by a half and rounded. `sixths`: the turn, in [1, 7].
    """
    # 1. The hue times the chroma, turned and wrapped into [0, 6 chroma). A turn of at least one
    # sixth keeps it positive.
    high = maximum(maximum(red, green), blue)
    low = minimum(minimum(red, green), blue)
    zero = broadcast(_ZERO, LANES)
    scale = broadcast(_LEVEL_SCALE, LANES)
    chroma = (high - low) * scale
    two = chroma + chroma
    four = two + two
    is_red = high == red
    is_green = high == green
    offset = select(is_red, green - blue, select(is_green, blue - red, red - green))
    third = select(is_red, zero, select(is_green, two, four))
    hue = multiply_add(chroma, broadcast(sixths, LANES), multiply_add(offset, scale, third))
    hue = select(hue >= four + two, hue - (four + two), hue)

    # 2. The position in its third of the circle, in [0, 2 chroma), and the middle level there.
    past_two = hue >= two
    past_four = hue >= four
    position = hue - select(past_two, select(past_four, four, two), zero)
    exact = multiply_add(low, scale, minimum(position, two - position) - _F(0.5))
    exact = minimum(maximum(exact, low), high)
    middle = (exact + _ROUNDER) - _ROUNDER
    # 3. In doubt: the distance from a rounding boundary is within the bounds on the errors.
    doubt = (
        multiply_add(chroma, broadcast(_ERROR_BY_CHROMA, LANES), magnitude(exact - middle))
        > _F(0.5) - _ERROR
    )
    # 4. Assign the levels to the channels, as in `_turn_hue_exactly`.
    falls = position >= chroma
    first = select(falls, middle, high)
    second = select(falls, high, middle)
    return (
        select(past_two, select(past_four, second, low), first),
        select(past_two, select(past_four, low, first), second),
        select(past_two, select(past_four, first, second), low),
        doubt,
    )


@inline_jit(forceinline=True)
def _hue(red, green, blue, turn):
    """Turn the hue by the fast form; all lanes by the exact one where any is in doubt, which is
    rare."""
    # The same turn in [1, 7) sixths, so that the fast form meets no negative hue.
    sixths = _F(_SIX * turn + (_SIX if turn * _SIX < _ONE else _ZERO))
    new_red, new_green, new_blue, doubt = _turn_hue_fast(red, green, blue, sixths)
    if any_lane(doubt):
        new_red, new_green, new_blue = _turn_hue_exactly(red, green, blue, turn)
    return new_red, new_green, new_blue


@inline_jit(forceinline=True)
def _saturation(red, green, blue, factor):
    """torchvision's `adjust_saturation`: blend with the pixel's own gray level."""
    addend = _F(1.0 - np.float64(factor)) * gray(red, green, blue)
    return _blend(red, factor, addend), _blend(green, factor, addend), _blend(blue, factor, addend)


@inline_jit(forceinline=True)
def _brightness(value, factor):
    """torchvision's `adjust_brightness`: blend with black. The product is never negative."""
    return truncate(minimum(factor * value, broadcast(_TOP, LANES)))


@inline_jit(forceinline=True)
def _contrast(value, factor, mean):
    """torchvision's `adjust_contrast`: blend with the view's mean gray level."""
    return _blend(value, factor, broadcast(_F(1.0 - np.float64(factor)) * mean, LANES))


@inline_jit(forceinline=True)
def solarize(value):
    """torchvision's `solarize` of one channel, at SOLARIZE_THRESHOLD."""
    return select(value < _THRESHOLD, value, _TOP - value)


@inline_jit(forceinline=True)
def light(value, offset):
    """Add `offset` levels to one channel, clamped and rounded to whole levels, halves up."""
    raw = value + offset + _F(0.5)
    return truncate(minimum(maximum(raw, broadcast(_ZERO, LANES)), broadcast(_TOP, LANES)))


@inline_jit(forceinline=True)
def jitter(red, green, blue, order, factors, begin, end, mean):
    """Apply the jitter operations `begin` to `end` - 1 of `order` to `LANES` pixels.

    `order` (4,) float32: operations (`views.BRIGHTNESS` and so on) in turn. `factors` (4,) float32,
    indexed by operation. `mean`: the view's mean gray level, which only contrast needs.
    """
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
            red, green, blue = (
                _contrast(red, factor, mean),
                _contrast(green, factor, mean),
                _contrast(blue, factor, mean),
            )
        elif operation == SATURATION:
            red, green, blue = _saturation(red, green, blue, factor)
        else:
            red, green, blue = _hue(red, green, blue, factor)
    return red, green, blue


@inline_jit(forceinline=True)
def load_levels(levels, at):
    """Load `LANES` uint8 levels as float32."""
    return convert(convert(load(levels, at, LANES), np.int32), np.float32)


@inline_jit(forceinline=True)
def _store_levels(levels, at, value):
    """Store `LANES` whole levels as uint8."""
    store(levels, at, convert(convert(value, np.int32), np.uint8))


@inline_jit()
def make_table(order, factors, begin, limit, mean, table):
    """Write to `table` (256,) uint8 what operations from number `begin` on, before `limit`, make of
    each level, up to one that asks for other channels; returns the number of that one.

    That is `begin` where there are none before it, or where tables do not pay.

    The other arguments as for `jitter`.
    """
    end = begin
    while _TABLES and end < limit and int(order[end]) in (BRIGHTNESS, CONTRAST):
        end += 1
    for level in range(0, 256 if end > begin else 0, LANES):
        value = lane_numbers(np.float32, LANES) + _F(level)
        for i in range(begin, end):
            operation = int(order[i])
            if operation == BRIGHTNESS:
                value = _brightness(value, factors[operation])
            else:
                value = _contrast(value, factors[operation], mean)
        _store_levels(table, level, value)
    return end


def replace_levels(levels, at, count, table):
    """Replace `count` levels from `at` on, a multiple of 32, by those of `table` (256,) uint8.

    `TABLE_ROOM` bytes behind them must exist.
    """
    raise NotImplementedError("compiled code only")


@overload(replace_levels, jit_options={"forceinline": True})
def _replace_levels_overload(levels, at, count, table):
    """LLVM ends the process where the instruction is compiled without the CPU's feature."""
    if not _TABLES:
        return lambda levels, at, count, table: None

    def replace(levels, at, count, table):
        for i in range(at, at + count, 64):
            level = load(levels, i, 64)
            low = pick_byte_of_two(load(table, 0, 64), level, load(table, 64, 64))
            high = pick_byte_of_two(load(table, 128, 64), level, load(table, 192, 64))
            new = select(level < np.uint8(128), low, high)
            inside = lane_numbers(np.uint8, 64) < broadcast(np.uint8(min(at + count - i, 64)), 64)
            store(levels, i, select(inside, new, level))

    return replace


@inline_jit()
def jitter_until_contrast(levels, order, factors, contrast_at, size, pitch, table):
    """Apply the operations before contrast, number `contrast_at` of `order`, to the whole view, in
    place; returns the mean gray level that contrast then needs, float32.

    `size`: S and S'. Columns S' to P - 1 are 0 and stay 0, since every operation except contrast
    keeps black, so that they add nothing to the mean. `table` (256,) uint8: scratch.
    """
    sum_all = 0
    begin = make_table(order, factors, 0, contrast_at, _ZERO, table)
    for y in range(size[0]):
        if begin > 0:
            replace_levels(levels, 3 * y * pitch, 3 * pitch, table)
        luma = broadcast(_I0, LANES)
        for at in range(3 * y * pitch, (3 * y + 1) * pitch, LANES):
            red, green = load_levels(levels, at), load_levels(levels, at + pitch)
            blue = load_levels(levels, at + 2 * pitch)
            if contrast_at > begin:
                red, green, blue = jitter(
                    red, green, blue, order, factors, begin, contrast_at, _ZERO
                )
                _store_levels(levels, at, red)
                _store_levels(levels, at + pitch, green)
                _store_levels(levels, at + 2 * pitch, blue)
            luma = luma + convert(gray(red, green, blue), np.int32)
        sum_all += total(luma)
    return _F(sum_all) / _F(size[0] * size[1])

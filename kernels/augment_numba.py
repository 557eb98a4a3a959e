"""Colour, blur, normalisation and mask of one view on the CPU.

Jitter, gray and solarisation equal torchvision's operators on uint8 tensors to the bit: they are float32 in
torchvision's own order of operations, compiled without fast-math, and truncate where it truncates. That is also what
keeps errors from growing along the chain. The blur is fixed point and within one level.

The work goes by rows, each read once from the planar levels and, without a blur, written straight to the batch; a blur
keeps a ring of as many rows as its window spans. Only contrast needs a pass over the whole view beforehand.

S is the view's side; P, the pitch of a planar row, is S rounded up to a multiple of 32. `red`, `green` and `blue` are
vectors of `LANES` float32 that hold whole levels.
"""

import math

import numpy as np
from llvmlite import binding
from numba import types
from numba.core import config
from numba.extending import overload

from .jit import leaf
from .plan import BLUR_SIGMA, FACTORS, GRAY, JITTER, ORDER, SOLARIZE
from .vector import (
    broadcast,
    convert,
    load,
    maximum,
    minimum,
    multiply_high,
    reinterpret,
    select,
    store,
    store_interleaved,
    total,
)
from .views import BRIGHTNESS, CONTRAST, SATURATION

FLOAT32, FLOAT16, BFLOAT16, UINT8 = range(4)
"""Formats of a rendered view. Half precision is written as its bits, into uint16."""
LANES = 32
"""Values worked on at once: two AVX-512 registers of float32, since one would wait for its own results."""
MAX_RADIUS = 15
"""Of a blur of 5 pixels, the widest that a view may have."""
HALO = 32
"""Room for reflected pixels on either side of a row, at least `MAX_RADIUS`."""

_F = np.float32
_ZERO, _ONE, _TWO, _THREE, _FOUR, _FIVE, _SIX = _F(0), _F(1), _F(2), _F(3), _F(4), _F(5), _F(6)
_TOP, _THRESHOLD = _F(255), _F(128)
_LUMA_RED, _LUMA_GREEN, _LUMA_BLUE = _F(0.2989), _F(0.587), _F(0.114)  # torchvision's rgb_to_grayscale
_TO_LEVEL = _F(255.0 + 1.0 - 1e-3)  # torchvision's convert_image_dtype from float to uint8
# 1/255 as a sum: the first part has 16 bits, so that its product with a level is exact, and the sum of both products
# rounds to the quotient by 255 for every level (a test holds it).
_UNIT_HIGH = _F(int(2**23 / 255) / 2**23)
_UNIT_LOW = _F(1 / 255 - int(2**23 / 255) / 2**23)
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


@leaf()
def _hue(row, pitch, turn):
    for x in range(0, pitch, LANES):
        red, green, blue = load(row, x, LANES), load(row, pitch + x, LANES), load(row, 2 * pitch + x, LANES)
        red, green, blue = _turned(red, green, blue, turn)
        store(row, x, red)
        store(row, pitch + x, green)
        store(row, 2 * pitch + x, blue)


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
def _gray(row, pitch):
    for x in range(0, pitch, LANES):
        luma = _luma(load(row, x, LANES), load(row, pitch + x, LANES), load(row, 2 * pitch + x, LANES))
        store(row, x, luma)
        store(row, pitch + x, luma)
        store(row, 2 * pitch + x, luma)


@leaf()
def _solarize(row, pitch):
    for x in range(0, 3 * pitch, LANES):
        values = load(row, x, LANES)
        store(row, x, select(values < _THRESHOLD, values, _TOP - values))


@leaf()
def _jitter(row, pitch, order, factors, begin, end, mean):
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
def _load_row(levels, y, pitch, row):
    for x in range(0, 3 * pitch, LANES):
        store(row, x, convert(convert(load(levels, 3 * y * pitch + x, LANES), np.int32), np.float32))


@leaf()
def _before_contrast(levels, order, factors, contrast_at, size, pitch, row):
    """Do the operations ahead of contrast on the whole view and return its mean gray level as it then stands.

    The lanes between S and P are 0 and stay so: every operation but contrast keeps black.
    """
    sum_all = 0
    for y in range(size):
        _load_row(levels, y, pitch, row)
        _jitter(row, pitch, order, factors, 0, contrast_at, _ZERO)
        if contrast_at > 0:
            for x in range(0, 3 * pitch, LANES):
                store(levels, 3 * y * pitch + x, convert(convert(load(row, x, LANES), np.int32), np.uint8))
        luma = broadcast(_I0, LANES)
        for x in range(0, pitch, LANES):
            gray = _luma(load(row, x, LANES), load(row, pitch + x, LANES), load(row, 2 * pitch + x, LANES))
            luma = luma + convert(gray, np.int32)
        sum_all += total(luma)
    return _F(sum_all) / _F(size * size)


@leaf()
def _blur_weights(sigma, radius, weights):
    """torchvision's Gaussian of 2 radius + 1 taps, centre first, each 32 times; uint16 in 1/65536.

    They add up to one: the centre takes what rounding left over (and is capped, by less than 1/256 level).
    """
    whole = 1.0
    for k in range(1, radius + 1):
        whole += 2.0 * math.exp(-0.5 * (k / sigma) ** 2)
    rest = 65536
    for k in range(1, radius + 1):
        weight = int(math.exp(-0.5 * (k / sigma) ** 2) / whole * 65536.0 + 0.5)
        rest -= 2 * weight
        weights[32 * k : 32 * k + 32] = weight
    weights[:32] = min(rest, 65535)


@leaf(forceinline=True)
def _ring_row(y, size, radius, pitch):
    """Where row `y`, reflected into the view without repeating the border, lies in the ring."""
    y = abs(y)
    y = 2 * (size - 1) - y if y >= size else y
    return y % (2 * radius + 1) * 3 * pitch


@leaf(forceinline=True)
def _blur_down(ring, y, size, pitch, radius, weights, slots, line):
    """Blur row `y` vertically, from `ring` to `line`, and reflect its ends. Levels in 1/128."""
    for k in range(radius + 1):
        slots[2 * k], slots[2 * k + 1] = _ring_row(y - k, size, radius, pitch), _ring_row(y + k, size, radius, pitch)
    half_lost = broadcast(np.uint16((radius + 1) // 2), 32)  # each product is floored, by half a unit on average
    gap = pitch + 2 * HALO
    for x in range(0, size, 32):
        at, weight = slots[0] + x, load(weights, 0, 32)
        red = multiply_high(load(ring, at, 32), weight) + half_lost
        green = multiply_high(load(ring, at + pitch, 32), weight) + half_lost
        blue = multiply_high(load(ring, at + 2 * pitch, 32), weight) + half_lost
        for k in range(1, radius + 1):
            at, to, weight = slots[2 * k] + x, slots[2 * k + 1] + x, load(weights, 32 * k, 32)
            red = red + multiply_high(load(ring, at, 32) + load(ring, to, 32), weight)
            green = green + multiply_high(load(ring, at + pitch, 32) + load(ring, to + pitch, 32), weight)
            blue = blue + multiply_high(load(ring, at + 2 * pitch, 32) + load(ring, to + 2 * pitch, 32), weight)
        store(line, HALO + x, red)
        store(line, HALO + gap + x, green)
        store(line, HALO + 2 * gap + x, blue)
    for channel in range(3):
        start = channel * gap + HALO
        for k in range(1, radius + 1):
            line[start - k] = line[start + k]
            line[start + size - 1 + k] = line[start + size - 1 - k]


@leaf(forceinline=True)
def _blur_across(line, size, pitch, radius, weights, row):
    """Blur `line` horizontally and round it to whole levels, into `row`."""
    rounding = broadcast(np.uint16((radius + 1) // 2 + 64), 32)
    gap = pitch + 2 * HALO
    for x in range(0, size, 32):
        at, weight = HALO + x, load(weights, 0, 32)
        red = multiply_high(load(line, at, 32), weight) + rounding
        green = multiply_high(load(line, at + gap, 32), weight) + rounding
        blue = multiply_high(load(line, at + 2 * gap, 32), weight) + rounding
        for k in range(1, radius + 1):
            at, to, weight = HALO + x - k, HALO + x + k, load(weights, 32 * k, 32)
            red = red + multiply_high(load(line, at, 32) + load(line, to, 32), weight)
            green = green + multiply_high(load(line, at + gap, 32) + load(line, to + gap, 32), weight)
            blue = blue + multiply_high(load(line, at + 2 * gap, 32) + load(line, to + 2 * gap, 32), weight)
        store(row, x, convert(convert(red >> np.uint16(7), np.int32), np.float32))
        store(row, pitch + x, convert(convert(green >> np.uint16(7), np.int32), np.float32))
        store(row, 2 * pitch + x, convert(convert(blue >> np.uint16(7), np.int32), np.float32))


def _converts_float16() -> bool:
    """Whether the machine converts to float16 by itself; where it doesn't, LLVM calls a function that Numba lacks."""
    return config.CPU_NAME is None and binding.get_host_cpu_features().get("f16c", False)


@leaf(forceinline=True)
def _float16_bits(values):
    """The nearest float16, ties to even, as bits; values below float16's normal numbers (6e-5) become 0."""
    bits = reinterpret(values, np.int32)
    sign = (bits >> np.int32(16)) & np.int32(0x8000)
    size = bits & np.int32(0x7FFFFFFF)
    shifted = size - np.int32(0x38000000)
    rounded = (shifted + np.int32(0xFFF) + ((shifted >> np.int32(13)) & _I1)) >> np.int32(13)
    return convert(sign | select(size < np.int32(0x38800000), broadcast(_I0, LANES), rounded), np.uint16)


@leaf(forceinline=True)
def _bfloat16_bits(values):
    """The nearest bfloat16, ties to even, as bits."""
    bits = reinterpret(values, np.int32)
    return convert((bits + np.int32(0x7FFF) + ((bits >> np.int32(16)) & _I1)) >> np.int32(16), np.uint16)


def _encode(row, at, normalisation, channel, form, out):
    """`LANES` whole levels of `row` as the lanes that `out` stores: normalised, but for uint8."""
    raise NotImplementedError("compiled code only")


@overload(_encode, jit_options={"forceinline": True})
def _encode_overload(row, at, normalisation, channel, form, out):
    if out.dtype == types.uint8:
        return lambda row, at, normalisation, channel, form, out: convert(
            convert(load(row, at, LANES), np.int32), np.uint8
        )
    if out.dtype == types.float32:
        return lambda row, at, normalisation, channel, form, out: _normalise(row, at, normalisation, channel)
    if _converts_float16():

        def encode(row, at, normalisation, channel, form, out):
            if form == FLOAT16:
                return reinterpret(convert(_normalise(row, at, normalisation, channel), np.float16), np.uint16)
            return _bfloat16_bits(_normalise(row, at, normalisation, channel))

        return encode

    def encode_by_bits(row, at, normalisation, channel, form, out):
        if form == FLOAT16:
            return _float16_bits(_normalise(row, at, normalisation, channel))
        return _bfloat16_bits(_normalise(row, at, normalisation, channel))

    return encode_by_bits


@leaf(forceinline=True)
def _normalise(row, at, normalisation, channel):
    return load(row, at, LANES) * normalisation[0, channel] + normalisation[1, channel]


@leaf(forceinline=True)
def _write_row(row, size, pitch, form, normalisation, tail, out, start):
    """Encode `row` and write its S pixels to the flat `out` from `start` on."""
    whole = size // LANES * LANES
    for x in range(0, whole, LANES):
        red = _encode(row, x, normalisation, 0, form, out)
        green = _encode(row, pitch + x, normalisation, 1, form, out)
        blue = _encode(row, 2 * pitch + x, normalisation, 2, form, out)
        store_interleaved(out, start + 3 * x, red, green, blue)
    if whole < size:  # what lies behind the row's end may be another thread's
        red = _encode(row, whole, normalisation, 0, form, out)
        green = _encode(row, pitch + whole, normalisation, 1, form, out)
        blue = _encode(row, 2 * pitch + whole, normalisation, 2, form, out)
        store_interleaved(tail, 0, red, green, blue)
        for i in range(3 * (size - whole)):
            out[start + 3 * whole + i] = tail[i]


@leaf()
def augment_view(view, size, form, normalisation, masked, scratch, out, start):
    """Augment `scratch.levels` into the flat `out` from `start` on, (S, S, 3), as `form`; the levels are used up.

    `view` are the view's columns of the plan row; `normalisation` (2, 3) float32, scale and offset of each channel from
    levels; `masked` (x1, y1, x2, y2) whole pixels to zero after normalisation.
    """
    levels, row, pitch, tail = scratch.levels, scratch.row, scratch.pitch, scratch.tail.view(out.dtype)
    ring, line, weights, slots = scratch.ring, scratch.line, scratch.blur, scratch.slots
    jitter, gray, solarize, sigma = (
        view[JITTER] != 0,
        view[GRAY] != 0,
        view[SOLARIZE] != 0,
        np.float64(view[BLUR_SIGMA]),
    )
    order, factors = view[ORDER : ORDER + 4], view[FACTORS : FACTORS + 4]
    contrast_at, mean, radius = 0, _ZERO, 0
    if jitter:
        while int(order[contrast_at]) != CONTRAST:
            contrast_at += 1
        mean = _before_contrast(levels, order, factors, contrast_at, size, pitch, row)
    if sigma > 0.0:
        radius = min(math.ceil(3.0 * sigma), size - 1)
        _blur_weights(sigma, radius, weights)
    x1, y1, x2, y2 = masked

    for step in range(size + radius):  # a blurred row needs `radius` rows below it
        if step < size:
            _load_row(levels, step, pitch, row)
            if jitter:
                _jitter(row, pitch, order, factors, contrast_at, 4, mean)
            if gray:
                _gray(row, pitch)
            if radius > 0:
                at = _ring_row(step, size, radius, pitch)
                for x in range(0, 3 * pitch, LANES):
                    store(ring, at + x, convert(convert(load(row, x, LANES), np.int32), np.uint16) << np.uint16(7))
        y = step - radius
        if y < 0:
            continue
        if radius > 0:
            _blur_down(ring, y, size, pitch, radius, weights, slots, line)
            _blur_across(line, size, pitch, radius, weights, row)
        if solarize:
            _solarize(row, pitch)
        _write_row(row, size, pitch, form, normalisation, tail, out, start + 3 * y * size)
        if y1 <= y < y2:
            begin = start + 3 * y * size
            out[begin + 3 * x1 : begin + 3 * x2] = 0

"""Colour, blur, normalisation and mask of one view on the CPU.

Jitter, gray and solarisation equal torchvision's operators on uint8 tensors to the bit: they are written in float32 in
torchvision's own order of operations, compiled without fast-math, and truncate where it truncates. That is also what
keeps errors from growing along the chain. The blur is fixed point and within one level.

Rows of a view are planar, so that every loop runs over contiguous values: `red`, `green` and `blue` are (P,) float32
that hold whole levels; S is the view's side and P, the pitch, is S rounded up to a multiple of 64. What lies between S
and P is never read into a result.
"""

import math

import numpy as np

from .jit import leaf
from .plan import BLUR_SIGMA, FACTORS, GRAY, JITTER, ORDER, SOLARIZE
from .views import BRIGHTNESS, CONTRAST, HUE, SATURATION

FLOAT32, FLOAT16, BFLOAT16, UINT8 = range(4)
"""Formats of a rendered view. Half precision is written as its bits, into uint16."""

_F = np.float32
_ZERO, _ONE, _TOP, _HALF = _F(0.0), _F(1.0), _F(255.0), _F(0.5)
_TWO, _THREE, _FOUR, _FIVE, _SIX = _F(2.0), _F(3.0), _F(4.0), _F(5.0), _F(6.0)
_LUMA_RED, _LUMA_GREEN, _LUMA_BLUE = _F(0.2989), _F(0.587), _F(0.114)  # torchvision's rgb_to_grayscale
_TO_LEVEL = _F(255.0 + 1.0 - 1e-3)  # torchvision's convert_image_dtype from float to uint8
_THRESHOLD = _F(128.0)


@leaf()
def _truncate(value):
    """The whole part of a float32 in 0..2^31, as float32."""
    return _F(np.int32(value))


@leaf()
def _luma(red, green, blue):
    return _truncate(_LUMA_RED * red + _LUMA_GREEN * green + _LUMA_BLUE * blue)


@leaf()
def _blend(value, factor, addend):
    """torchvision's _blend: factor · value + addend, clamped and truncated."""
    return _truncate(min(max(factor * value + addend, _ZERO), _TOP))


@leaf()
def _brightness(red, green, blue, factor):
    for x in range(len(red)):
        red[x] = _truncate(min(factor * red[x], _TOP))
        green[x] = _truncate(min(factor * green[x], _TOP))
        blue[x] = _truncate(min(factor * blue[x], _TOP))


@leaf()
def _contrast(red, green, blue, factor, addend):
    for x in range(len(red)):
        red[x] = _blend(red[x], factor, addend)
        green[x] = _blend(green[x], factor, addend)
        blue[x] = _blend(blue[x], factor, addend)


@leaf()
def _saturation(red, green, blue, factor, rest):
    for x in range(len(red)):
        addend = rest * _luma(red[x], green[x], blue[x])
        red[x] = _blend(red[x], factor, addend)
        green[x] = _blend(green[x], factor, addend)
        blue[x] = _blend(blue[x], factor, addend)


@leaf()
def _gray(red, green, blue):
    for x in range(len(red)):
        red[x] = _luma(red[x], green[x], blue[x])
        green[x] = red[x]
        blue[x] = red[x]


@leaf()
def _hue(red, green, blue, turn):
    """torchvision's adjust_hue, branch by branch: to HSV in 0..1, turn the hue, back to levels.

    Of its three quotients (largest - channel) / chroma one is 0 and one is 1; only that of the middle channel is
    computed. Likewise the largest and the smallest channel come back as the levels that they were.
    """
    for x in range(len(red)):
        r, g, b = red[x] / _TOP, green[x] / _TOP, blue[x] / _TOP
        largest, smallest = max(max(r, g), b), min(min(r, g), b)
        middle = max(min(r, g), min(max(r, g), b))
        chroma = largest - smallest
        safe = chroma if chroma > _ZERO else _ONE
        saturation = chroma / (largest if chroma > _ZERO else _ONE)
        part = (largest - middle) / safe
        hue_red = (_ONE - part) if b <= g else (part - _ONE)
        hue_green = ((_TWO + part) - _ONE) if b <= r else (_THREE - part)
        hue_blue = ((_FOUR + part) - _ONE) if r <= g else (_FIVE - part)
        hue = hue_red if largest == r else (hue_green if largest == g else hue_blue)
        hue = hue / _SIX + _ONE
        hue = (hue - _ONE if hue >= _ONE else hue) + turn
        hue = hue - _ONE if hue >= _ONE else hue
        hue = hue + _ONE if hue < _ZERO else hue

        sixths = hue * _SIX
        sector = np.int32(sixths)
        part = sixths - _F(sector)
        sector = sector if sector < np.int32(6) else np.int32(0)
        part = part if sector & np.int32(1) else _ONE - part
        high, low = largest * _TOP, smallest * _TOP
        mid = _truncate(max(largest * (_ONE - saturation * part), _ZERO) * _TO_LEVEL)
        high, low = _truncate(high + _HALF), _truncate(low + _HALF)
        s = sector
        red[x] = high if (s == 0 or s == 5) else (mid if (s == 1 or s == 4) else low)
        green[x] = high if (s == 1 or s == 2) else (mid if (s == 0 or s == 3) else low)
        blue[x] = high if (s == 3 or s == 4) else (mid if (s == 2 or s == 5) else low)


@leaf()
def _jitter(red, green, blue, operation, factors, mean):
    """One jitter operation on one row; `mean` is the view's mean gray level, which contrast alone needs."""
    factor = factors[operation]
    rest = _F(1.0 - np.float64(factor))
    if operation == BRIGHTNESS:
        _brightness(red, green, blue, factor)
    elif operation == CONTRAST:
        _contrast(red, green, blue, factor, rest * mean)
    elif operation == SATURATION:
        _saturation(red, green, blue, factor, rest)
    elif operation == HUE:
        _hue(red, green, blue, factor)


@leaf()
def _load(levels, red, green, blue):
    for x in range(len(red)):
        red[x], green[x], blue[x] = _F(levels[0, x]), _F(levels[1, x]), _F(levels[2, x])


@leaf()
def _keep(levels, red, green, blue):
    for x in range(len(red)):
        levels[0, x], levels[1, x], levels[2, x] = np.int32(red[x]), np.int32(green[x]), np.int32(blue[x])


@leaf()
def _before_contrast(levels, order, factors, contrast_at, row32, size):
    """Do the operations ahead of contrast on the whole view and return its mean gray level as it then stands."""
    red, green, blue = row32[0], row32[1], row32[2]
    total = 0
    for y in range(size):
        _load(levels[y], red, green, blue)
        for i in range(contrast_at):
            _jitter(red, green, blue, int(order[i]), factors, _ZERO)
        if contrast_at > 0:
            _keep(levels[y], red, green, blue)
        subtotal = np.int32(0)
        for x in range(size):
            subtotal += np.int32(_luma(red[x], green[x], blue[x]))
        total += subtotal
    return _F(total) / _F(size * size)


@leaf()
def _blur_weights(sigma, radius, weights):
    """torchvision's Gaussian of 2 radius + 1 taps, centre first, (radius + 1,) uint16 in 1/65536.

    They add up to one: the centre takes what rounding left over (and is capped, by less than 1/256 level).
    """
    total = 1.0
    for k in range(1, radius + 1):
        total += 2.0 * math.exp(-0.5 * (k / sigma) ** 2)
    rest = 65536
    for k in range(1, radius + 1):
        weights[k] = int(math.exp(-0.5 * (k / sigma) ** 2) / total * 65536.0 + 0.5)
        rest -= 2 * int(weights[k])
    weights[0] = min(rest, 65535)


@leaf()
def _reflected(i, size):
    """The pixel that lies `i` off the start of a reflected view, its border pixel not repeated."""
    i = abs(i)
    return 2 * (size - 1) - i if i >= size else i


@leaf()
def _blur_row(levels, y, radius, weights, across, row32, size):
    """Row `y` of the blurred view into `row32` (3, P); `across` (P + 32,) uint16 in 1/128 level."""
    for channel in range(3):
        line = across[16:]
        centre = levels[y, channel]
        weight = np.uint32(weights[0])
        for x in range(size):
            line[x] = ((np.uint32(centre[x]) << 7) * weight >> 16) + (radius + 1) // 2
        for k in range(1, radius + 1):
            above, below = levels[_reflected(y - k, size), channel], levels[_reflected(y + k, size), channel]
            weight = np.uint32(weights[k])
            for x in range(size):
                line[x] += ((np.uint32(above[x]) + np.uint32(below[x])) << 7) * weight >> 16
        for k in range(1, radius + 1):
            across[16 - k] = across[16 + k]
            across[16 + size - 1 + k] = across[16 + size - 1 - k]
        for x in range(size):
            total = (np.uint32(across[16 + x]) * np.uint32(weights[0]) >> 16) + (radius + 1) // 2 + 64
            for k in range(1, radius + 1):
                pair = np.uint32(across[16 + x - k]) + np.uint32(across[16 + x + k])
                total += pair * np.uint32(weights[k]) >> 16
            row32[channel, x] = _F(np.int32(total >> 7))


@leaf()
def _solarize(values):
    for x in range(len(values)):
        values[x] = values[x] if values[x] < _THRESHOLD else _TOP - values[x]


@leaf()
def _bfloat16(value):
    """The bits of the nearest bfloat16, ties to even."""
    bits = np.float32(value).view(np.uint32)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@leaf()
def _float16(value):
    """The bits of the nearest float16, ties to even; normal numbers only, smaller ones become 0."""
    bits = np.float32(value).view(np.uint32)
    sign = (bits >> np.uint32(16)) & np.uint32(0x8000)
    size = bits & np.uint32(0x7FFFFFFF)
    if size < np.uint32(0x38800000):
        return np.uint16(sign)
    size = size - np.uint32(0x38000000)
    size = (size + np.uint32(0xFFF) + ((size >> np.uint32(13)) & np.uint32(1))) >> np.uint32(13)
    return np.uint16(sign | size)


@leaf()
def _store(row32, size, form, normalisation, out):
    """One row of the view to its place in the batch, (S, 3), interleaved; float32, uint16 or uint8 as `form` says."""
    for channel in range(3):
        values = row32[channel]
        scale, offset = normalisation[0, channel], normalisation[1, channel]
        if form == UINT8:
            for x in range(size):
                out[x, channel] = np.int32(values[x])
        elif form == FLOAT32:
            for x in range(size):
                out[x, channel] = values[x] * scale + offset
        elif form == FLOAT16:
            for x in range(size):
                out[x, channel] = _float16(values[x] * scale + offset)
        else:
            for x in range(size):
                out[x, channel] = _bfloat16(values[x] * scale + offset)


@leaf()
def augment_view(view, size, form, normalisation, masked, scratch, out):
    """Augment `scratch.levels` (S, 3, P) into `out` (S, S, 3) as `form`; the levels are used up.

    `view` are the view's columns of the plan row; `normalisation` (2, 3) float32, scale and offset of each channel from
    levels; `masked` (x1, y1, x2, y2) whole pixels to zero after normalisation.
    """
    levels, row32 = scratch.levels, scratch.row32
    red, green, blue = row32[0], row32[1], row32[2]
    jitter, gray, sigma, solarize = (
        view[JITTER] != 0,
        view[GRAY] != 0,
        np.float64(view[BLUR_SIGMA]),
        view[SOLARIZE] != 0,
    )
    order, factors = view[ORDER : ORDER + 4], view[FACTORS : FACTORS + 4]
    contrast_at, mean = 0, _ZERO
    if jitter:
        while int(order[contrast_at]) != CONTRAST:
            contrast_at += 1
        mean = _before_contrast(levels, order, factors, contrast_at, row32, size)
    radius = 0
    if sigma > 0.0:
        radius = min(math.ceil(3.0 * sigma), size - 1)
        _blur_weights(sigma, radius, scratch.blur)
    x1, y1, x2, y2 = masked

    for blurring in range(2 if radius else 1):
        for y in range(size):
            if blurring:
                _blur_row(levels, y, radius, scratch.blur, scratch.across, row32, size)
            else:
                _load(levels[y], red, green, blue)
                if jitter:
                    for i in range(contrast_at, 4):
                        _jitter(red, green, blue, int(order[i]), factors, mean)
                if gray:
                    _gray(red, green, blue)
            if radius and not blurring:
                _keep(levels[y], red, green, blue)
                continue
            if solarize:
                _solarize(red)
                _solarize(green)
                _solarize(blue)
            _store(row32, size, form, normalisation, out[y])
            if y1 <= y < y2:
                out[y, x1:x2] = 0

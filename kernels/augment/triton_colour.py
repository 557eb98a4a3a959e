"""Colour jitter, gray and solarisation of levels, for Triton kernels.

`red`, `green` and `blue` are blocks of any shape that hold whole levels in float32. Between the
operations they are raised: 2**23 is added, so that the last bits are the level. A byte is raised by
joining bits, and a sum is raised and rounded by one addition; `_times` takes 2**23 off again within
a product. Every operation rounds where torchvision's uint8 operators do; see `triton_kernels` on
fused multiply-adds.
"""

import triton
import triton.language as tl

from .. import views
from . import torch as augment_torch

BRIGHTNESS = tl.constexpr(views.BRIGHTNESS)
CONTRAST = tl.constexpr(views.CONTRAST)
SATURATION = tl.constexpr(views.SATURATION)
GRAY_RED = tl.constexpr(augment_torch.GRAY_WEIGHTS[0])
GRAY_GREEN = tl.constexpr(augment_torch.GRAY_WEIGHTS[1])
GRAY_BLUE = tl.constexpr(augment_torch.GRAY_WEIGHTS[2])
THRESHOLD = tl.constexpr(views.SOLARIZE_THRESHOLD)
ROUNDING = tl.constexpr(1.5 * 2**23)
"""Added and subtracted, it rounds a float32 of at most 2**22 to the nearest whole number, halves to
even."""
BASE = tl.constexpr(2.0**23)
"""What is added to raised levels."""
HUE_SCALE = tl.constexpr((255 + 1.0 - 1e-3) / 255)
"""torchvision's hue divides levels by 255 and multiplies them by 255.999 in the end."""


@triton.jit
def round_even(x):
    """Round float32 of at most 2**22 to whole numbers, halves to even."""
    return (x + ROUNDING) - ROUNDING


INTERPRETED = tl.constexpr(not isinstance(round_even, triton.JITFunction))
"""Whether Triton interprets the kernels: without inline assembly, with two roundings in `fma`."""


@triton.jit
def _floor(x):
    """Round float32 in 0..2**22 down, raised. Anything below 0 stays below 2**23.

    One addition that rounds towards zero; the hardware's conversions, its rounding among them, run
    at an eighth of its rate.
    """
    if INTERPRETED:
        return tl.floor(x) + BASE
    else:
        return tl.inline_asm_elementwise(
            "add.rz.f32 $0, $1, 0f4B000000;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def _times(raised, factor):
    """Levels times `factor`, rounded once: both products of the sum are exact."""
    if INTERPRETED:
        return (raised - BASE) * factor
    else:
        return tl.fma(raised, factor, -BASE * factor)


@triton.jit
def raise_byte(word):
    """Convert int32 in 0..255 to raised levels."""
    return (word | 0x4B000000).to(tl.float32, bitcast=True)


@triton.jit
def lower(raised):
    """Convert raised levels to plain ones."""
    return raised - BASE


@triton.jit
def to_byte(raised):
    """Convert raised levels to uint8."""
    return raised.to(tl.int32, bitcast=True).to(tl.uint8)


@triton.jit
def _clamp(level):
    """Truncate to a whole level and clamp to 0..255, raised; torchvision does both when it stores
    uint8."""
    return tl.minimum(tl.maximum(_floor(level), BASE), BASE + 255.0)


@triton.jit
def gray_level(red, green, blue):
    """torchvision's `rgb_to_grayscale` of raised levels: raised."""
    return _floor(_times(red, GRAY_RED) + _times(green, GRAY_GREEN) + _times(blue, GRAY_BLUE))


@triton.jit
def _turn_hue(red, green, blue, turns):
    """torchvision's `adjust_hue` of raised levels, without a division: the hue stays multiplied by
    the chroma, a whole number, whose small multiples are exact in `fma`.

    Nothing is rounded before the product with `turns`. A level differs from torchvision's, by one,
    where the exact value is so near a whole number that torchvision's own roundings decide: for
    fewer than two in ten thousand of all colours.
    """
    # 1. The hue in sixths of a circle, times the chroma: in [-1, 5] · chroma.
    value = tl.maximum(tl.maximum(red, green), blue)
    low = tl.minimum(tl.minimum(red, green), blue)
    chroma = value - low
    hue = tl.where(
        value == green, tl.fma(chroma, 2.0, blue - red), tl.fma(chroma, 4.0, red - green)
    )
    hue = tl.where(value == red, green - blue, hue)
    # 2. Turn it, and wrap it into one circle.
    circle = 6 * chroma
    hue += turns * circle
    hue += tl.where(hue < 0, circle, 0.0)
    hue -= tl.where(hue >= circle, circle, 0.0)
    # 3. Back to levels: each channel is a clamped distance from its own hue.
    low -= BASE
    red = tl.abs(tl.fma(chroma, -3.0, hue)) - chroma
    green = tl.fma(chroma, 2.0, -tl.abs(tl.fma(chroma, -2.0, hue)))
    blue = tl.fma(chroma, 2.0, -tl.abs(tl.fma(chroma, -4.0, hue)))
    red = low + tl.minimum(tl.maximum(red, 0.0), chroma)
    green = low + tl.minimum(tl.maximum(green, 0.0), chroma)
    blue = low + tl.minimum(tl.maximum(blue, 0.0), chroma)
    return _floor(red * HUE_SCALE), _floor(green * HUE_SCALE), _floor(blue * HUE_SCALE)


@triton.jit
def jitter_once(red, green, blue, operation, factor, mean):
    """Apply one operation of the colour jitter to raised levels; `mean` is the view's mean gray
    level, which contrast needs."""
    if operation == BRIGHTNESS:
        red = _clamp(_times(red, factor))
        green = _clamp(_times(green, factor))
        blue = _clamp(_times(blue, factor))
    elif operation == CONTRAST:
        other = (1.0 - factor) * mean
        red = _clamp(_times(red, factor) + other)
        green = _clamp(_times(green, factor) + other)
        blue = _clamp(_times(blue, factor) + other)
    elif operation == SATURATION:
        other = _times(gray_level(red, green, blue), 1.0 - factor)
        red = _clamp(_times(red, factor) + other)
        green = _clamp(_times(green, factor) + other)
        blue = _clamp(_times(blue, factor) + other)
    else:
        red, green, blue = _turn_hue(red, green, blue, factor)
    return red, green, blue


@triton.jit
def invert(level):
    """torchvision's `solarize` of plain levels."""
    return tl.where(level >= THRESHOLD, 255 - level, level)

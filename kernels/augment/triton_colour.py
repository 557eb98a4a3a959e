"""Colour jitter, gray and solarisation of levels, for Triton kernels.

`red`, `green` and `blue` are blocks of any shape that hold whole levels, in float32. Every
operation rounds where torchvision's uint8 operators do; see `triton_kernels` on fused
multiply-adds.
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
HUE_SCALE = tl.constexpr((255 + 1.0 - 1e-3) / 255)
"""torchvision's hue divides levels by 255 and multiplies them by 255.999 in the end."""


@triton.jit
def round_even(x):
    """Round float32 of at most 2**22 to whole numbers, halves to even."""
    return (x + ROUNDING) - ROUNDING


@triton.jit
def _floor(x):
    """`tl.floor` of float32 of at most 2**22 by additions.

    The hardware's conversions, its rounding among them, run at an eighth of an addition's rate.
    """
    nearest = round_even(x)
    return tl.where(nearest > x, nearest - 1.0, nearest)


@triton.jit
def from_byte(word):
    """Convert int32 in 0..255 to float32, by the bits of 2**23 + `word`."""
    return (word | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0


@triton.jit
def to_byte(level):
    """Convert whole float32 levels in 0..255 to uint8, by the bits of 2**23 + `level`."""
    return (level + 8388608.0).to(tl.int32, bitcast=True).to(tl.uint8)


@triton.jit
def _clamp(level):
    """Clamp to 0..255 and truncate to a whole level, as torchvision does when it stores uint8."""
    return _floor(tl.minimum(tl.maximum(level, 0.0), 255.0))


@triton.jit
def gray_level(red, green, blue):
    """torchvision's `rgb_to_grayscale`: whole gray levels."""
    return _floor(red * GRAY_RED + green * GRAY_GREEN + blue * GRAY_BLUE)


@triton.jit
def _turn_hue(red, green, blue, turns):
    """torchvision's `adjust_hue` without a division: the hue stays multiplied by the chroma.

    Nothing is rounded before the product with `turns`. A level differs from torchvision's, by one,
    where the exact value is so near a whole number that torchvision's own roundings decide: for
    fewer than two in ten thousand of all colours.
    """
    # 1. The hue in sixths of a circle, times the chroma: in [-1, 5] · chroma.
    value = tl.maximum(tl.maximum(red, green), blue)
    low = tl.minimum(tl.minimum(red, green), blue)
    chroma = value - low
    hue = tl.where(value == green, 2 * chroma + blue - red, 4 * chroma + red - green)
    hue = tl.where(value == red, green - blue, hue)
    # 2. Turn it, and wrap it into one circle.
    circle = 6 * chroma
    hue += turns * circle
    hue += tl.where(hue < 0, circle, 0.0)
    hue -= tl.where(hue >= circle, circle, 0.0)
    # 3. Back to levels: each channel is a clamped distance from its own hue.
    red = low + tl.minimum(tl.maximum(tl.abs(hue - 3 * chroma) - chroma, 0.0), chroma)
    green = low + tl.minimum(tl.maximum(2 * chroma - tl.abs(hue - 2 * chroma), 0.0), chroma)
    blue = low + tl.minimum(tl.maximum(2 * chroma - tl.abs(hue - 4 * chroma), 0.0), chroma)
    return _floor(red * HUE_SCALE), _floor(green * HUE_SCALE), _floor(blue * HUE_SCALE)


@triton.jit
def jitter_once(red, green, blue, operation, factor, mean):
    """Apply one operation of the colour jitter to whole levels; `mean` is the view's mean gray
    level, which contrast needs."""
    if operation == BRIGHTNESS:
        red, green, blue = _clamp(factor * red), _clamp(factor * green), _clamp(factor * blue)
    elif operation == CONTRAST:
        other = (1.0 - factor) * mean
        red, green, blue = (
            _clamp(factor * red + other),
            _clamp(factor * green + other),
            _clamp(factor * blue + other),
        )
    elif operation == SATURATION:
        other = (1.0 - factor) * gray_level(red, green, blue)
        red, green, blue = (
            _clamp(factor * red + other),
            _clamp(factor * green + other),
            _clamp(factor * blue + other),
        )
    else:
        red, green, blue = _turn_hue(red, green, blue, factor)
    return red, green, blue


@triton.jit
def invert(level):
    """torchvision's `solarize`."""
    return tl.where(level >= THRESHOLD, 255 - level, level)

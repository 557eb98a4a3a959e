"""The three Triton kernels of the device half; `augment_triton` launches them and says why there
are three.

Levels are whole numbers in float32 and every operation rounds where torchvision's uint8 operators
do. The two colour kernels must be compiled with `enable_fp_fusion=False`: a fused multiply-add
would move a gray pixel's blend across the whole number that it is truncated at.

Suffixes: G groups, P pixels of a group (16; 8 in the blur), Y and X rows and columns of a blur
tile, K rows or columns around it, C columns of half of those.
"""

import triton
import triton.language as tl

from .. import plan, views
from . import torch as augment_torch
from .triton_pixels import load_levels, store_pixels

BRIGHTNESS = tl.constexpr(views.BRIGHTNESS)
CONTRAST = tl.constexpr(views.CONTRAST)
SATURATION = tl.constexpr(views.SATURATION)
HUE = tl.constexpr(views.HUE)
FLIP = tl.constexpr(plan.FLIP)
JITTER = tl.constexpr(plan.JITTER)
ORDER = tl.constexpr(plan.ORDER)
FACTORS = tl.constexpr(plan.FACTORS)
GRAY = tl.constexpr(plan.GRAY)
BLUR_SIGMA = tl.constexpr(plan.BLUR_SIGMA)
SOLARIZE = tl.constexpr(plan.SOLARIZE)
GRAY_RED = tl.constexpr(augment_torch.GRAY_WEIGHTS[0])
GRAY_GREEN = tl.constexpr(augment_torch.GRAY_WEIGHTS[1])
GRAY_BLUE = tl.constexpr(augment_torch.GRAY_WEIGHTS[2])
THRESHOLD = tl.constexpr(views.SOLARIZE_THRESHOLD)
MEAN_RED = tl.constexpr(views.IMAGENET_MEAN[0])
MEAN_GREEN = tl.constexpr(views.IMAGENET_MEAN[1])
MEAN_BLUE = tl.constexpr(views.IMAGENET_MEAN[2])
DEVIATION_RED = tl.constexpr(views.IMAGENET_STD[0])
DEVIATION_GREEN = tl.constexpr(views.IMAGENET_STD[1])
DEVIATION_BLUE = tl.constexpr(views.IMAGENET_STD[2])
HUE_SCALE = tl.constexpr((255 + 1.0 - 1e-3) / 255)
"""Levels pass through 0..1 and back in torchvision's hue, which multiplies by 255.999 on the way
back."""
ROUNDING = tl.constexpr(1.5 * 2**23)
"""Adding and subtracting it rounds a float32 of at most 2**22 to the nearest whole number, halves
to even."""
HALO = tl.constexpr(16)
"""Columns and rows around a blur tile: at least the radius of the widest blur (15), and 16 bytes.
"""
TILE = tl.constexpr(32)
"""Side of a blur tile: with the halo, 64 rows and columns, the power of two that `tl.dot` wants."""


@triton.jit
def _clamp(level):
    return tl.floor(tl.minimum(tl.maximum(level, 0.0), 255.0))


@triton.jit
def _gray(red, green, blue):
    return tl.floor(red * GRAY_RED + green * GRAY_GREEN + blue * GRAY_BLUE)


@triton.jit
def _turn_hue(red, green, blue, turns):
    """torchvision's `adjust_hue` without a division: all that HSV divides by the chroma is kept
    multiplied by it.

    So only the product with `turns` is rounded. A level is another than torchvision's, by one,
    where the exact value lies so near a whole number that torchvision's own roundings decide: fewer
    than two in ten thousand of all colours.
    """
    value = tl.maximum(tl.maximum(red, green), blue)
    low = tl.minimum(tl.minimum(red, green), blue)
    chroma = value - low
    hue = tl.where(value == green, 2 * chroma + blue - red, 4 * chroma + red - green)
    hue = tl.where(value == red, green - blue, hue)  # sixths of a turn, times the chroma, in -1..5
    circle = 6 * chroma
    hue += turns * circle
    hue += tl.where(hue < 0, circle, 0.0)
    hue -= tl.where(hue >= circle, circle, 0.0)
    red = low + tl.minimum(tl.maximum(tl.abs(hue - 3 * chroma) - chroma, 0.0), chroma)
    green = low + tl.minimum(tl.maximum(2 * chroma - tl.abs(hue - 2 * chroma), 0.0), chroma)
    blue = low + tl.minimum(tl.maximum(2 * chroma - tl.abs(hue - 4 * chroma), 0.0), chroma)
    return tl.floor(red * HUE_SCALE), tl.floor(green * HUE_SCALE), tl.floor(blue * HUE_SCALE)


@triton.jit
def _jitter_once(red, green, blue, operation, factor, mean):
    """One operation of the colour jitter on whole levels; `mean` is the image's gray mean where it
    is the contrast."""
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
        other = (1.0 - factor) * _gray(red, green, blue)
        red, green, blue = (
            _clamp(factor * red + other),
            _clamp(factor * green + other),
            _clamp(factor * blue + other),
        )
    else:
        red, green, blue = _turn_hue(red, green, blue, factor)
    return red, green, blue


@triton.jit
def _invert(level):
    return tl.where(level >= THRESHOLD, 255 - level, level)


@triton.jit
def _finish(level, masked, MEAN: tl.constexpr, DEVIATION: tl.constexpr, DTYPE: tl.constexpr):
    """Whole levels to the output's dtype: normalised and masked, or left as they are for uint8."""
    if DTYPE == tl.uint8:  # noqa: SIM300
        return level.to(tl.int32).to(tl.uint8)
    else:
        return tl.where(masked, 0.0, level * (1 / (255 * DEVIATION)) - MEAN / DEVIATION).to(DTYPE)


@triton.jit
def _masked(box, stride_box, stride_side, view, boxes, y, x):
    """Where the pixels (y, x) lie in this view's masked box; the first `boxes` views have one."""
    sides = box + view.to(tl.int64) * stride_box
    has_box = view < boxes
    x1 = tl.load(sides, mask=has_box, other=0.0)
    y1 = tl.load(sides + stride_side, mask=has_box, other=0.0)
    x2 = tl.load(sides + 2 * stride_side, mask=has_box, other=0.0)
    y2 = tl.load(sides + 3 * stride_side, mask=has_box, other=0.0)
    x, y = x.to(tl.float32), y.to(tl.float32)
    inside = (x >= tl.floor(x1)) & (x < tl.ceil(x2)) & (y >= tl.floor(y1)) & (y < tl.ceil(y2))
    return inside & has_box


@triton.jit
def _row(parameters, stride_v, stride_n, view, batch):
    """Where this view's parameters start."""
    return (
        parameters
        + (view // batch).to(tl.int64) * stride_v
        + (view % batch).to(tl.int64) * stride_n
    )


@triton.jit(do_not_specialize=["first_view", "batch"])
def gray_sums(
    views, stride_v, stride_n, stride_y, stride_x, stride_c,
    parameters, stride_pv, stride_pn, stride_pc,
    sums, first_view, batch,
    S: tl.constexpr, GROUPS: tl.constexpr, VECTOR_LOADS: tl.constexpr,
):  # fmt: skip
    """Pass 1: the gray levels of a jittered view as contrast will find it, summed over each
    program's groups.

    `sums` (views of this launch, programs a view) int32. Grid (programs a view, views of this
    launch).
    """
    view = first_view + tl.program_id(1)
    row = _row(parameters, stride_pv, stride_pn, view, batch)
    if tl.load(row + JITTER * stride_pc) == 0:
        return
    source = (
        views + (view // batch).to(tl.int64) * stride_v + (view % batch).to(tl.int64) * stride_n
    )
    group_G = tl.program_id(0) * GROUPS + tl.arange(0, GROUPS)
    red, green, blue, live_GP = load_levels(
        source, stride_y, stride_x, stride_c, group_G, False, S, VECTOR_LOADS, False
    )
    reached = 0
    for step in range(4):
        operation = tl.load(row + (ORDER + step) * stride_pc).to(tl.int32)
        reached = tl.where(operation == CONTRAST, 1, reached)
        if reached == 0:
            factor = tl.load(row + (FACTORS + operation) * stride_pc)
            red, green, blue = _jitter_once(red, green, blue, operation, factor, 0.0)
    gray = tl.where(live_GP, _gray(red, green, blue), 0.0).to(tl.int32)
    place = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(sums + place, tl.sum(tl.sum(gray, 1), 0))


@triton.jit(do_not_specialize=["first_view", "batch", "boxes"])
def colour(
    views, stride_v, stride_n, stride_y, stride_x, stride_c,
    parameters, stride_pv, stride_pn, stride_pc,
    box, stride_box, stride_side, boxes,
    sums, levels, out, first_view, batch,
    S: tl.constexpr, GROUPS: tl.constexpr, SUMS: tl.constexpr, PITCH: tl.constexpr,
    VECTOR_LOADS: tl.constexpr, VECTOR_STORES: tl.constexpr, FLIPPED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Pass 2: colour jitter and gray; then the rest of an unblurred view, or a blurred one's levels
    for pass 3.

    `levels` (views of this launch, 3, S, PITCH) uint8, pixel x in column HALO + x. `out` (views, S,
    S, 3). `SUMS` is the power of two that the programs a view fit in. Grid (programs a view, views
    of this launch).
    """
    DTYPE: tl.constexpr = out.dtype.element_ty
    view = first_view + tl.program_id(1)
    row = _row(parameters, stride_pv, stride_pn, view, batch)
    source = (
        views + (view // batch).to(tl.int64) * stride_v + (view % batch).to(tl.int64) * stride_n
    )
    group_G = tl.program_id(0) * GROUPS + tl.arange(0, GROUPS)
    flip = tl.load(row + FLIP * stride_pc) != 0
    red, green, blue, _ = load_levels(
        source, stride_y, stride_x, stride_c, group_G, flip, S, VECTOR_LOADS, FLIPPED
    )
    if tl.load(row + JITTER * stride_pc) != 0:
        part = tl.arange(0, SUMS)
        own_sums = sums + tl.program_id(1) * tl.num_programs(0)
        total = tl.sum(tl.load(own_sums + part, mask=part < tl.num_programs(0), other=0), 0)
        mean = tl.div_rn(total.to(tl.float32), tl.full((), S * S, tl.float32))
        for step in range(4):
            operation = tl.load(row + (ORDER + step) * stride_pc).to(tl.int32)
            factor = tl.load(row + (FACTORS + operation) * stride_pc)
            red, green, blue = _jitter_once(red, green, blue, operation, factor, mean)
    if tl.load(row + GRAY * stride_pc) != 0:
        gray = _gray(red, green, blue)
        red, green, blue = gray, gray, gray

    ROW_GROUPS: tl.constexpr = (S + 15) // 16
    y_G, x_G = group_G // ROW_GROUPS, group_G % ROW_GROUPS * 16
    if tl.load(row + BLUR_SIGMA * stride_pc) > 0:
        # The columns right of the view are written too, so that every access is 16 bytes; pass 3
        # weighs them with 0.
        plane = levels + tl.program_id(1).to(tl.int64) * (3 * S * PITCH)
        address = plane + (y_G * PITCH + HALO + x_G)[:, None] + tl.arange(0, 16)[None, :]
        mask = (y_G < S)[:, None]
        tl.store(address, red.to(tl.int32).to(tl.uint8), mask=mask)
        tl.store(address + S * PITCH, green.to(tl.int32).to(tl.uint8), mask=mask)
        tl.store(address + 2 * S * PITCH, blue.to(tl.int32).to(tl.uint8), mask=mask)
    else:
        if tl.load(row + SOLARIZE * stride_pc) != 0:
            red, green, blue = _invert(red), _invert(green), _invert(blue)
        masked = tl.full((GROUPS, 16), False, tl.int1)
        if MASKED:
            x_GP = x_G[:, None] + tl.arange(0, 16)[None, :]
            masked = _masked(box, stride_box, stride_side, view, boxes, y_G[:, None], x_GP)
        store_pixels(
            out + view.to(tl.int64) * (S * S * 3),
            y_G,
            x_G,
            _finish(red, masked, MEAN_RED, DEVIATION_RED, DTYPE),
            _finish(green, masked, MEAN_GREEN, DEVIATION_GREEN, DTYPE),
            _finish(blue, masked, MEAN_BLUE, DEVIATION_BLUE, DTYPE),
            S,
            VECTOR_STORES,
        )


@triton.jit
def _taps(offset, sigma, radius, total):
    """The Gaussian's weights at whole offsets from its middle, float32, zero beyond the radius."""
    ratio = offset / sigma
    return tl.where(tl.abs(offset) <= radius, tl.exp(-0.5 * ratio * ratio) / total, 0.0)


@triton.jit
def _halves(x):
    """float32 as the sum of two float16, which keep 22 bits of it."""
    high = x.to(tl.float16)
    return high, (x - high.to(tl.float32)).to(tl.float16)


@triton.jit
def _column_weights(source_K, x_X, sigma, radius, total, S: tl.constexpr):
    """What each of the columns `source_K` adds to each of the blurred columns `x_X`, two float16
    (K, X).

    Columns are reflected here, so that the loads stay whole: a column stands for itself, for the
    one as far left of column 0 and for the one as far right of column S - 1.
    """
    source_K1, x_1X = source_K[:, None], x_X[None, :]
    weights_KX = _taps((source_K1 - x_1X).to(tl.float32), sigma, radius, total)
    left_KX = _taps((-source_K1 - x_1X).to(tl.float32), sigma, radius, total)
    right_KX = _taps((2 * (S - 1) - source_K1 - x_1X).to(tl.float32), sigma, radius, total)
    weights_KX += tl.where(source_K1 > 0, left_KX, 0.0) + tl.where(source_K1 < S - 1, right_KX, 0.0)
    return _halves(tl.where((source_K1 >= 0) & (source_K1 < S), weights_KX, 0.0))


@triton.jit
def _blur_columns(
    words, source_K, rows_high, rows_low, columns_high, columns_low, blurred_YX, PITCH: tl.constexpr
):
    """Add what TILE columns of levels, from `words` on, give to a blurred tile: both directions are
    matrix products."""
    # Four levels a word, since the compiler would move single bytes through shared memory one by
    # one.
    word = tl.load(words + source_K[:, None] * (PITCH // 4) + tl.arange(0, TILE // 4)[None, :])
    quads = tl.join(
        tl.join(word & 255, (word >> 16) & 255), tl.join((word >> 8) & 255, (word >> 24) & 255)
    )
    levels_KC = (
        tl.reshape(quads, (TILE + 2 * HALO, TILE)).to(tl.float32).to(tl.float16)
    )  # whole levels: exact
    vertical_YC = tl.dot(rows_high, levels_KC)
    vertical_YC = tl.dot(rows_low, levels_KC, vertical_YC)
    high, low = _halves(vertical_YC)
    blurred_YX = tl.dot(low, columns_high, blurred_YX)
    blurred_YX = tl.dot(high, columns_low, blurred_YX)
    return tl.dot(high, columns_high, blurred_YX)


@triton.jit(do_not_specialize=["first_view", "batch", "boxes"])
def blur(
    parameters, stride_pv, stride_pn, stride_pc,
    box, stride_box, stride_side, boxes,
    levels, out, first_view, batch,
    S: tl.constexpr, PITCH: tl.constexpr, VECTOR_STORES: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Pass 3: blur, solarise, normalise, mask and store the blurred views, a column of tiles each
    program.

    `levels` as pass 2 left them. Grid (columns of tiles, views of this launch).

    Each direction is a product with a banded matrix on the tensor cores. Weights and half-blurred
    levels are split in two float16 each, so that the sums are good to 2**-20 and round as float32
    ones do.
    """
    DTYPE: tl.constexpr = out.dtype.element_ty
    view = first_view + tl.program_id(1)
    row = _row(parameters, stride_pv, stride_pn, view, batch)
    sigma = tl.load(row + BLUR_SIGMA * stride_pc)
    if sigma <= 0:
        return
    # In float64, because 3·sigma rounded to float32 may land on a whole number from above and lose
    # a tap.
    radius = tl.ceil(sigma.to(tl.float64) * 3.0).to(tl.float32)
    middle = (tl.arange(0, 2 * HALO) - HALO).to(tl.float32)
    total = tl.sum(_taps(middle, sigma, radius, 1.0), 0)

    out_T, around_K = tl.arange(0, TILE), tl.arange(0, TILE + 2 * HALO) - HALO
    rows_YK = _taps((around_K[None, :] - out_T[:, None]).to(tl.float32), sigma, radius, total)
    rows_high, rows_low = _halves(rows_YK)
    x_X = tl.program_id(0) * TILE + out_T
    left_high, left_low = _column_weights(x_X - HALO, x_X, sigma, radius, total, S)
    right_high, right_low = _column_weights(x_X + HALO, x_X, sigma, radius, total, S)

    solarize = tl.load(row + SOLARIZE * stride_pc) != 0
    words = (levels + tl.program_id(1).to(tl.int64) * (3 * S * PITCH) + tl.program_id(0) * TILE).to(
        tl.pointer_type(tl.int32)
    )
    target = out + view.to(tl.int64) * (S * S * 3)
    PIXELS: tl.constexpr = 8  # so that each thread of four warps has a group
    GROUPS: tl.constexpr = TILE * TILE // PIXELS
    y_G = tl.arange(0, GROUPS) // (TILE // PIXELS)
    x_G = tl.program_id(0) * TILE + tl.arange(0, GROUPS) % (TILE // PIXELS) * PIXELS
    x_GP = x_G[:, None] + tl.arange(0, PIXELS)[None, :]
    red = tl.zeros((TILE, TILE), tl.float16)  # holds whole levels exactly, in half the registers
    green, blue = red, red
    # One channel after the other in one loop: unrolled, the three would not fit in the registers.
    for step in range(0, (S + TILE - 1) // TILE * 3):
        top, channel = step // 3 * TILE, step % 3
        # Rows are reflected in their addresses. Those farther out than the reflection reaches only
        # feed rows that are not stored.
        source_K = tl.abs(around_K + top)
        source_K = tl.where(source_K >= S, 2 * (S - 1) - source_K, source_K)
        source_K = tl.maximum(source_K, 0)
        own_words = words + channel * (S * PITCH // 4)
        level = tl.zeros((TILE, TILE), tl.float32)
        level = _blur_columns(
            own_words, source_K, rows_high, rows_low, left_high, left_low, level, PITCH
        )
        level = _blur_columns(
            own_words + TILE // 4,
            source_K,
            rows_high,
            rows_low,
            right_high,
            right_low,
            level,
            PITCH,
        )
        level = (level + ROUNDING) - ROUNDING
        red, green, blue = (
            green,
            blue,
            level.to(tl.float16),
        )  # after three steps each is in its place
        if channel == 2:
            red_GP = tl.reshape(red, (GROUPS, PIXELS)).to(tl.float32)
            green_GP = tl.reshape(green, (GROUPS, PIXELS)).to(tl.float32)
            blue_GP = tl.reshape(blue, (GROUPS, PIXELS)).to(tl.float32)
            if solarize:
                red_GP, green_GP, blue_GP = _invert(red_GP), _invert(green_GP), _invert(blue_GP)
            masked = tl.full((GROUPS, PIXELS), False, tl.int1)
            if MASKED:
                masked = _masked(
                    box, stride_box, stride_side, view, boxes, (y_G + top)[:, None], x_GP
                )
            store_pixels(
                target,
                y_G + top,
                x_G,
                _finish(red_GP, masked, MEAN_RED, DEVIATION_RED, DTYPE),
                _finish(green_GP, masked, MEAN_GREEN, DEVIATION_GREEN, DTYPE),
                _finish(blue_GP, masked, MEAN_BLUE, DEVIATION_BLUE, DTYPE),
                S,
                VECTOR_STORES,
            )

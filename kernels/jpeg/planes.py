"""Planes of levels: where each component's samples of a region lie, and their conversion to RGB.

Rectangles in pixels are (y, x, rows, columns); the rectangle in MCUs is (x1, y1, x2, y2), its end
excluded.
"""

import numpy as np

from ..compiler.features import has_avx512
from ..compiler.jit import inline_jit
from ..compiler.vector import convert, load
from ..compiler.vector_interleave import store_interleaved
from .pixels import (
    HALF,
    LANES,
    PAD,
    store_rgb,
    store_rgb_twice,
    upsample_h2v1,
    upsample_h2v2,
)
from .segments import LAST_DC, OFFSET, STRIDE, H, V

_TWICE = has_avx512()


@inline_jit()
def sampling(frame, components):
    """Sampling factors (h, v) of the luma; (0, 0) where the sampling is not plain.

    Plain are 1x1, 2x1 and 2x2 with chroma sampled 1x1, and a single component sampled 1x1.
    """
    h, v = frame[0, H], frame[0, V]
    if components == 1 and h * v != 1:
        return 0, 0
    for c in range(1, components):
        if frame[c, H] != 1 or frame[c, V] != 1:
            return 0, 0
    return (h, v) if (h == 1 and v == 1) or (h == 2 and (v == 1 or v == 2)) else (0, 0)


@inline_jit(forceinline=True)
def mcu_span(begin, length, factor, mcus):
    """MCUs (first, past the last) that hold the pixels begin .. begin + length - 1 of an axis, and
    the neighbours that upsampling reads.

    `factor`: the luma's sampling factor on this axis; `mcus`: MCUs along it.
    """
    margin = factor if factor > 1 else 0
    last = begin + length - 1 + margin
    return max(begin - margin, 0) // (8 * factor), min(last // (8 * factor) + 1, mcus)


@inline_jit()
def lay_out_planes(frame, components, region):
    """Set OFFSET and STRIDE of each component for the MCUs of `region`; returns the bytes of
    `planes` that they take. Resets LAST_DC."""
    x1, y1, x2, y2 = region
    total = PAD
    for c in range(components):
        stride = 8 * (x2 - x1) * frame[c, H] + 2 * PAD
        frame[c, OFFSET] = total + PAD
        frame[c, STRIDE] = stride
        frame[c, LAST_DC] = 0
        total += 8 * (y2 - y1) * frame[c, V] * stride
    return total + LANES + PAD


@inline_jit()
def _extend_edges(planes, offset, stride, rows, left, right):
    """Repeat the sample at column `left` to its left and the one at `right` to its right, in each
    row; -1 for neither."""
    for row in range(rows):
        at = offset + row * stride
        if left >= 0:
            planes[at + left - 1] = planes[at + left]
        if right >= 0:
            planes[at + right + 1] = planes[at + right]


@inline_jit(forceinline=True)
def _load_pixels(planes, luma, blue_near, blue_far, red_near, red_far, h, v):
    """`HALF` pixels from these places of `planes` on, upsampled: (luma, blue, red) int16."""
    levels = convert(load(planes, luma, HALF), np.int16)
    if h == 1:
        blue = convert(load(planes, blue_near, HALF), np.int16)
        red = convert(load(planes, red_near, HALF), np.int16)
    elif v == 1:
        blue = upsample_h2v1(planes, blue_near)
        red = upsample_h2v1(planes, red_near)
    else:
        blue = upsample_h2v2(planes, blue_near, blue_far)
        red = upsample_h2v2(planes, red_near, red_far)
    return levels, blue, red


@inline_jit()
def convert_region(scratch, components, h, v, height, width, corner, y, x, rows, columns, out):
    """Upsample and convert the region's levels to RGB: `out` flat (rows · columns · 3,) uint8.

    (`h`, `v`): the luma's sampling; (`height`, `width`): the image, pixels; `corner` (x, y): the
    image's pixel at which the planes begin; (`y`, `x`, `rows`, `columns`): the region, pixels.
    """
    frame, planes = scratch.frame, scratch.planes
    half_height, half_width = (height + 1) // 2, (width + 1) // 2
    chroma_x, chroma_y = corner[0] // h, corner[1] // v
    # 1. Upsampling in x reads one sample on either side; beyond the image's edges it is repeated.
    # In y the same is done by clamping row numbers, below.
    if h == 2:
        left = 0 if chroma_x == 0 else -1
        right = half_width - 1 - chroma_x if x + columns == width else -1
        for c in range(1, 3):
            chroma_rows = (frame[2, OFFSET] - frame[1, OFFSET]) // frame[1, STRIDE]
            _extend_edges(planes, frame[c, OFFSET], frame[c, STRIDE], chroma_rows, left, right)
    for row in range(rows):
        # 2. Where the row's samples are. With v == 2 it lies between two chroma rows, of which the
        # near one counts three times.
        pixel_y = y + row
        luma_at = frame[0, OFFSET] + (pixel_y - corner[1]) * frame[0, STRIDE] + x - corner[0]
        near = far = pixel_y - corner[1]
        if v == 2:
            near = pixel_y // 2
            far = min(max(near + 2 * (pixel_y & 1) - 1, 0), half_height - 1) - chroma_y
            near -= chroma_y
        stride = frame[1, STRIDE]
        first = x // h - chroma_x
        blue_near = frame[1, OFFSET] + near * stride + first
        blue_far = frame[1, OFFSET] + far * stride + first
        red_near = frame[2, OFFSET] + near * stride + first
        red_far = frame[2, OFFSET] + far * stride + first
        # 3. `HALF` pixels at a time; the last vector's surplus is overwritten by the next row.
        to = 3 * row * columns
        if components == 1:
            for column in range(0, columns, HALF):
                levels = load(planes, luma_at + column, HALF)
                store_interleaved(out, to + 3 * column, levels, levels, levels)
        elif _TWICE:
            for column in range(0, columns, 2 * HALF):
                at = column // h
                first = _load_pixels(
                    planes, luma_at + column, blue_near + at, blue_far + at, red_near + at,
                    red_far + at, h, v,
                )  # fmt: skip
                at = (column + HALF) // h
                second = _load_pixels(
                    planes, luma_at + column + HALF, blue_near + at, blue_far + at, red_near + at,
                    red_far + at, h, v,
                )  # fmt: skip
                store_rgb_twice(first, second, out, to + 3 * column)
        else:
            for column in range(0, columns, HALF):
                at = column // h
                luma, blue, red = _load_pixels(
                    planes, luma_at + column, blue_near + at, blue_far + at, red_near + at,
                    red_far + at, h, v,
                )  # fmt: skip
                store_rgb(luma, blue, red, out, to + 3 * column)

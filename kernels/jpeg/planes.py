"""Planes of levels: where each component's samples of a region lie, and their conversion to RGB.

The planes are a ring of two rows of MCUs, which stays in the L1 cache. A row is converted once it
is decoded; the one above is kept for the upsampling.

Rectangles in pixels are (y, x, rows, columns); the rectangle in MCUs is (x1, y1, x2, y2), its end
excluded.
"""

from typing import Any, NamedTuple

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


class Picture(NamedTuple):
    """A region to be decoded, and where its pixels go. All sides are pixels but those of `mcus`."""

    height: Any
    """int64: of the image."""
    width: Any
    """int64."""
    y: Any
    """int64: the region's first row."""
    x: Any
    """int64."""
    rows: Any
    """int64: of the region."""
    columns: Any
    """int64."""
    mcus: Any
    """(x1, y1, x2, y2): the MCUs that hold the region and what its upsampling reads."""
    components: Any
    """int64: 1 or 3."""
    out: Any
    """uint8, flat, at least 3 (rows · columns + LANES): receives (rows, columns, 3) RGB."""


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
    `planes` that they take, at most `plane_bytes`. Resets LAST_DC."""
    x1, _, x2, _ = region
    total = PAD
    for c in range(components):
        stride = 8 * (x2 - x1) * frame[c, H] + 2 * PAD
        frame[c, OFFSET] = total + PAD
        frame[c, STRIDE] = stride
        frame[c, LAST_DC] = 0
        total += 16 * frame[c, V] * stride
    return total + LANES + PAD


@inline_jit()
def plane_bytes(columns):
    """The most bytes of `planes` that a region of `columns` pixels takes."""
    # With luma sampled 2x2, an MCU more on either side: 32 rows of luma, twice 16 of half as many
    # samples, and the rows' margins. Other samplings take less.
    whole = columns + 48
    return 32 * (whole + 2 * PAD) + 32 * (whole // 2 + 2 * PAD) + PAD + LANES + PAD


@inline_jit(forceinline=True)
def ring_row(my, picture, frame, c):
    """The first place in `planes` of component `c`'s samples in the row of MCUs `my`."""
    return frame[c, OFFSET] + 8 * ((my - picture.mcus[1]) & 1) * frame[c, V] * frame[c, STRIDE]


@inline_jit()
def _extend_edges(planes, offset, stride, left, right):
    """Repeat the sample at column `left` to its left and the one at `right` to its right, in each
    of 8 rows; -1 for neither."""
    for row in range(8):
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
def convert_row(scratch, picture, my):
    """Upsample and convert to RGB what the row of MCUs `my` completes, once its levels are there.

    Call it for each row of `picture.mcus` in turn.
    """
    frame, planes, out = scratch.frame, scratch.planes, picture.out
    h, v, components = frame[0, H], frame[0, V], picture.components
    x, columns = picture.x, picture.columns
    x1, y1, _, y2 = picture.mcus
    corner, chroma_x = 8 * h * x1, 8 * x1
    # 1. The rows of pixels: with v == 2 the last one needs the chroma below, and waits for it.
    waits = v - 1
    begin = max(8 * v * my - waits, picture.y)
    end = picture.y + picture.rows
    if my + 1 < y2:
        end = min(8 * v * (my + 1) - waits, end)
    # 2. Upsampling in x reads one sample on either side; beyond the image's edges it is repeated.
    # In y the same is done by clamping row numbers, below.
    if h == 2:
        left = 0 if chroma_x == 0 else -1
        right = (picture.width + 1) // 2 - 1 - chroma_x if x + columns == picture.width else -1
        for c in range(1, 3):
            _extend_edges(planes, ring_row(my, picture, frame, c), frame[c, STRIDE], left, right)
    last_chroma, stride = (picture.height + 1) // 2 - 1, frame[1, STRIDE]
    first = x // h - chroma_x
    for pixel_y in range(begin, end):
        # 3. Where the row's samples are in the ring. With v == 2 it lies between two chroma rows,
        # of which the near one counts three times.
        luma_row = (pixel_y - 8 * v * y1) & (16 * v - 1)
        luma_at = frame[0, OFFSET] + luma_row * frame[0, STRIDE] + x - corner
        near = far = pixel_y
        if v == 2:
            near = pixel_y // 2
            far = min(max(near + 2 * (pixel_y & 1) - 1, 0), last_chroma)
        near, far = (near - 8 * y1) & 15, (far - 8 * y1) & 15
        blue_near = frame[1, OFFSET] + near * stride + first
        blue_far = frame[1, OFFSET] + far * stride + first
        red_near = frame[2, OFFSET] + near * stride + first
        red_far = frame[2, OFFSET] + far * stride + first
        # 4. `HALF` pixels at a time; the last vector's surplus is overwritten by the next row.
        to = 3 * (pixel_y - picture.y) * columns
        if components == 1:
            for column in range(0, columns, HALF):
                levels = load(planes, luma_at + column, HALF)
                store_interleaved(out, to + 3 * column, levels, levels, levels)
        elif _TWICE:
            for column in range(0, columns, 2 * HALF):
                at = column // h
                low = _load_pixels(
                    planes, luma_at + column, blue_near + at, blue_far + at, red_near + at,
                    red_far + at, h, v,
                )  # fmt: skip
                at = (column + HALF) // h
                high = _load_pixels(
                    planes, luma_at + column + HALF, blue_near + at, blue_far + at, red_near + at,
                    red_far + at, h, v,
                )  # fmt: skip
                store_rgb_twice(low, high, out, to + 3 * column)
        else:
            for column in range(0, columns, HALF):
                at = column // h
                luma, blue, red = _load_pixels(
                    planes, luma_at + column, blue_near + at, blue_far + at, red_near + at,
                    red_far + at, h, v,
                )  # fmt: skip
                store_rgb(luma, blue, red, out, to + 3 * column)

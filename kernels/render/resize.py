"""Crop, antialiased resize and flip of one view, in uint8.

The result is the seam: every loader renders to it, and augmentation starts from it. The definition
is Pillow's: a triangle filter whose support grows with the downscaling, normalised over the crop.
What the view shows, the window, is the crop or a part of it, and not always whole pixels.
`resize_reference` is Pillow itself. The kernel resizes vertically first (contiguous memory), then
horizontally, in 16-bit fixed point with 8 fractional bits, and rounds once. Pillow rounds to whole
levels in between, so the two differ by at most one level (see `NARROW_TAPS`).

Shapes: H, W the image's sides; S, S' the view's height and width; P the pitch of a planar row, the
longer of these rounded up to a multiple of 32; T = `NARROW_TAPS`. Scratch arrays are flat;
`render.Scratch` describes them.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from ..compiler.jit import inline_jit
from ..compiler.vector import (
    broadcast,
    convert,
    lane_numbers,
    load,
    maximum,
    minimum,
    multiply_high,
    prefetch,
    reinterpret,
    select,
    store,
)
from ..compiler.vector_shuffle import transpose

NARROW_TAPS = 64
"""Most source pixels of an output pixel in fixed point: a downscaling by 31.

Each tap's product is floored to 1/256 level, which half a unit a tap compensates on average. The
error left is at most 64/512 level a pass, plus 0.05 for the rounded weights. That is below the 0.5
that keeps the result within one level of Pillow's.
"""
STRIP = 32
"""Output rows resized together, one in each lane of a vector."""
TILE = 128
"""Bytes of an image row resized vertically at once."""

_MAX_SCALE = (NARROW_TAPS - 2) / 2  # scale s takes at most 2 s + 1 pixels; one is spare
_HALF_LEVEL = 128  # in units of 1/256 level


def resize_reference(
    image: np.ndarray,
    crop: Sequence[float],
    size: int | tuple[int, int],
    flip: bool,
    *,
    window: Sequence[float] | None = None,
    bicubic: bool = False,
) -> np.ndarray:
    """Crop, resize and flip by Pillow: `image` (H, W, 3) uint8 to a view (S, S', 3) uint8.

    `crop`: (y, x, height, width), whole pixels of the image. `size`: the view's side, or its height
    and width. `window`: likewise as `crop`, not whole; None for the crop.
    """
    rows, across = (size, size) if isinstance(size, int) else size
    y, x, height, width = (int(side) for side in crop)
    top, left, tall, wide = (float(side) for side in (crop if window is None else window))
    patch = Image.fromarray(np.ascontiguousarray(image[y : y + height, x : x + width]))
    # Pillow's box is what the view shows; its filter also reads around it, within the crop. The
    # box is kept inside the crop, which its edges may leave by float32's rounding.
    x1, x2 = max(left - x, 0.0), min(left - x + wide, width)
    y1, y2 = max(top - y, 0.0), min(top - y + tall, height)
    if bicubic:
        # Columns first, as up to Pillow 12: Pillow 13 takes rows first in some shapes, which
        # clamps other values.
        columns = patch.resize((across, height), Image.Resampling.BICUBIC, (x1, 0, x2, height))
        patch = columns.resize((across, rows), Image.Resampling.BICUBIC, (0, y1, across, y2))
    else:
        patch = patch.resize((across, rows), Image.Resampling.BILINEAR, (x1, y1, x2, y2))
    view = np.asarray(patch)
    return view[:, ::-1].copy() if flip else view.copy()


@inline_jit(forceinline=True)
def row_pitch(size):
    """P of a view of `size` (height, width)."""
    return (max(size[0], size[1]) + 31) // 32 * 32


@inline_jit()
def resize_view(image, y, x, height, width, axes, flip, size, scratch):
    """Crop, resize and flip one view into `scratch.levels` (P · 3 · P,) uint8, planar by row.

    `image` (H, W, 3) uint8, C-contiguous. `y`, `x`, `height`, `width`: the crop, inside the image.
    `axes` (first y, side y, first x, side x): the window, pixels of the crop, float64. `size`: the
    view's height and width. Columns of the levels from S' on are left undefined.
    """
    top, tall, left, wide = axes
    rows, across = size
    levels, pitch, narrow = scratch.levels, row_pitch(size), scratch.narrow
    flat, stride = image.reshape(-1), 3 * image.shape[1]
    begin, values = y * stride + 3 * x, 3 * width
    # 1. Crops that fixed point cannot take: scaled down too far, or both narrow and too tall.
    too_far = tall > _MAX_SCALE * rows or wide > _MAX_SCALE * across
    if too_far or (values < TILE and height * TILE > len(narrow)):
        line = scratch.columns.view(np.float32)
        _resize_wide(image, y, x, height, width, axes, flip, size, line, levels, pitch)
        return
    # 2. A crop narrower than a tile is copied to rows of a tile, so that loads stay inside memory.
    if values < TILE:
        for row in range(height):
            for i in range(values):
                narrow[row * TILE + i] = flat[begin + row * stride + i]
        flat, stride, begin, values = narrow, TILE, 0, TILE
    spans, weights = scratch.spans, scratch.weights
    tile, columns, block = scratch.tile, scratch.columns, scratch.block
    # 3. Source pixels and weights of all output rows (axis 0) and columns (axis 1).
    _fill_taps(height, top, tall, rows, False, spans, weights, 0, pitch)
    _fill_taps(width, left, wide, across, flip, spans, weights, 1, pitch)
    # 4. Strip by strip: resize into columns of `STRIP` values, then transpose them to rows.
    for top in range(0, rows, STRIP):
        _resize_strip(
            flat,
            begin,
            stride,
            values,
            top,
            flip,
            size,
            spans,
            weights,
            pitch,
            tile,
            columns,
            block,
        )
        for channel in range(3):
            for column in range(0, pitch, STRIP):
                at, to = (channel * pitch + column) * STRIP, (3 * top + channel) * pitch + column
                transpose(block, at, STRIP, levels, to, 3 * pitch)


@inline_jit(forceinline=True)
def source_pixels(at, size, flip, scale, first, support, length):
    """(centre, begin, end) of the source pixels of the 16 outputs from `at`: float64 vectors.

    They are those under an output's filter, `support` pixels to both sides, inside the crop.
    `scale`, `first`: source pixels an output, and the window's first one. `length`: the crop's
    side. Where `flip`, outputs are counted from the last of `size`.
    """
    output = lane_numbers(np.float64, 16) + np.float64(at)
    if flip:
        output = np.float64(size - 1) - output
    centre = (output + 0.5) * scale + first
    begin = maximum(centre - support + 0.5, broadcast(0.0, 16))
    end = minimum(centre + support + 0.5, broadcast(np.float64(length), 16))
    # By way of int32, which cuts the fraction off.
    begin = convert(convert(begin, np.int32), np.float64)
    end = convert(convert(end, np.int32), np.float64)
    return centre, begin, end


@inline_jit()
def _fill_taps(length, first, side, size, flip, spans, weights, axis, pitch):
    """Compute the taps of all outputs along one axis by Pillow's rules (precompute_coeffs in its
    Resample.c).

    `length`: the crop's side along `axis`; `first` and `side`: the window's first pixel and side.
    `spans` (2, 2, P) int32, flat: for each axis, the first source pixel of output i and the number
    of pixels. `weights` (2, T, P) uint16, flat: their weights in 1/65536. `flip` mirrors the
    outputs.

    The rounding error of a weight is carried to the next, so that weights add up to 65536 and
    constant images stay constant. A single weight of 65536 is capped at 65535, which costs less
    than 1/256 level.
    """
    # 16 outputs at a time, in float64.
    scale = side / size
    support = max(scale, 1.0)
    zero = broadcast(0.0, 16)
    for at in range(0, size, 16):
        centre, begin, end = source_pixels(at, size, flip, scale, first, support, length)
        # Sum of the triangle's heights, for normalisation.
        whole = zero
        for k in range(int(2.0 * support) + 2):
            whole = whole + _triangle(begin + np.float64(k), end, centre, 1.0 / support)
        # Weights as differences of the rounded running sum.
        to_fixed = 65536.0 / whole
        running, before = broadcast(0.5, 16), broadcast(np.int32(0), 16)
        for k in range(int(2.0 * support) + 2):
            running = (
                running + _triangle(begin + np.float64(k), end, centre, 1.0 / support) * to_fixed
            )
            until = convert(running, np.int32)
            weight = minimum(until - before, broadcast(np.int32(65535), 16))
            store(weights, (axis * NARROW_TAPS + k) * pitch + at, convert(weight, np.uint16))
            before = until
        store(spans, 2 * axis * pitch + at, convert(begin, np.int32))
        store(spans, (2 * axis + 1) * pitch + at, convert(end - begin, np.int32))


@inline_jit(forceinline=True)
def _triangle(pixel, end, centre, inverse_support):
    """The triangle filter's height at `pixel`, not normalised; 0 from `end`. float64 vectors."""
    distance = pixel - centre + 0.5
    height = 1.0 - maximum(distance, 0.0 - distance) * inverse_support
    return select(pixel < end, maximum(height, broadcast(0.0, 16)), broadcast(0.0, 16))


@inline_jit(forceinline=True)
def _resize_strip(
    flat, begin, stride, values, top, flip, size, spans, weights, pitch, tile, columns, block
):
    """Resize `STRIP` output rows from `top` into `block`: (3, P, STRIP) uint8, flat, each column's
    rows adjacent. `size`: the view's height and width.

    `flat`: the image's bytes; `begin`: the crop's first; `stride`: bytes from row to row; `values`:
    bytes of a crop's row. `tile` (STRIP · TILE,) and `columns` (3 W · STRIP,) uint16: scratch.
    Tiles are resized vertically just ahead of the columns that need them, so that a tile and its
    transpose are still in the L1 cache when they are read.
    """
    rows, across = min(STRIP, size[0] - top), size[1]
    above, below = spans[top], spans[top + rows - 1] + spans[pitch + top + rows - 1]
    ready = 0  # bytes of the crop's rows that are in `columns`
    for i in range(across):
        column = across - 1 - i if flip else i
        count, first = spans[3 * pitch + column], 3 * spans[2 * pitch + column]
        # Vertical: more tiles, until this column's source pixels are ready.
        while ready < first + 3 * count:
            start = min(ready, values - TILE)
            for row in range(above, below):  # the next tile's source, while this one is computed
                prefetch(flat, begin + start + TILE + 63 + row * stride)
                prefetch(flat, begin + start + TILE + 127 + row * stride)
            for row in range(rows):
                _resize_down(
                    flat, begin + start, stride, top + row, spans, weights, pitch, tile, row * TILE
                )
            # Transpose, so that a column's rows are adjacent. `_resize_down` leaves each chunk of
            # 64 values as its even values, then its odd ones.
            for chunk in range(0, TILE, 64):
                for j in range(0, 32, 8):
                    to = (start + chunk + 2 * j) * STRIP
                    transpose(tile, chunk + j, TILE, columns, to, 2 * STRIP)
                    transpose(tile, chunk + 32 + j, TILE, columns, to + STRIP, 2 * STRIP)
            ready = start + TILE
        # Horizontal: one output column, its `STRIP` rows in the lanes.
        red = green = blue = broadcast(np.uint16(0), 32)
        at = first * STRIP
        for k in range(count):
            weight = broadcast(weights[(NARROW_TAPS + k) * pitch + column], 32)
            red = red + multiply_high(load(columns, at, 32), weight)
            green = green + multiply_high(load(columns, at + STRIP, 32), weight)
            blue = blue + multiply_high(load(columns, at + 2 * STRIP, 32), weight)
            at += 3 * STRIP
        # Each product was floored by half a unit on average: add that, and half a level to round.
        rounding = broadcast(np.uint16(_HALF_LEVEL + count // 2), 32)
        to = column * STRIP
        store(block, to, convert((red + rounding) >> np.uint16(8), np.uint8))
        store(block, to + pitch * STRIP, convert((green + rounding) >> np.uint16(8), np.uint8))
        store(block, to + 2 * pitch * STRIP, convert((blue + rounding) >> np.uint16(8), np.uint8))


@inline_jit(forceinline=True)
def _resize_down(flat, at, stride, row, spans, weights, pitch, tile, to):
    """Resize `TILE` bytes of one output row vertically, into `tile` from `to`, in 1/256 level.

    `at`: the first byte in the crop's first row; `row`: the output row. Two bytes are loaded as one
    uint16. A byte in the upper half of a uint16 is its level in 1/256: even bytes are shifted up,
    odd bytes are masked. The result holds 32 even values, 32 odd ones, and so again.
    """
    at += spans[row] * stride
    count = spans[pitch + row]
    low, high = np.uint16(8), np.uint16(0xFF00)
    # A product is floored by half a unit on average.
    even = odd = even_2 = odd_2 = broadcast(np.uint16(count // 2), 32)
    for k in range(count):
        weight = broadcast(weights[k * pitch + row], 32)
        pairs = reinterpret(load(flat, at, 64), np.uint16)
        pairs_2 = reinterpret(load(flat, at + 64, 64), np.uint16)
        even = even + multiply_high(pairs << low, weight)
        odd = odd + multiply_high(pairs & high, weight)
        even_2 = even_2 + multiply_high(pairs_2 << low, weight)
        odd_2 = odd_2 + multiply_high(pairs_2 & high, weight)
        at += stride
    store(tile, to, even)
    store(tile, to + 32, odd)
    store(tile, to + 64, even_2)
    store(tile, to + 96, odd_2)


@inline_jit()
def _scalar_triangle(pixel, centre, inverse_support):
    """`_triangle` of one pixel."""
    return max(0.0, 1.0 - abs(pixel - centre + 0.5) * inverse_support)


@inline_jit()
def _resize_wide(image, y, x, height, width, axes, flip, size, line, levels, pitch):
    """`resize_view` in floating point, for the rare crops that fixed point cannot take; slow.

    `line` (at least 3 W,) float32: scratch, one output row resized vertically.
    """
    top, tall, left, wide = axes
    rows, across = size
    scale_y, scale_x = tall / rows, wide / across
    support_y, support_x = max(scale_y, 1.0), max(scale_x, 1.0)
    for row in range(rows):
        # Vertical: the weighted sum of the source rows.
        centre = (row + 0.5) * scale_y + top
        line[: 3 * width] = np.float32(0.0)
        row_weight = 0.0
        for k in range(
            max(int(centre - support_y + 0.5), 0), min(int(centre + support_y + 0.5), height)
        ):
            weight = np.float32(_scalar_triangle(k, centre, 1.0 / support_y))
            row_weight += weight
            for j in range(width):
                for channel in range(3):
                    line[3 * j + channel] += np.float32(image[y + k, x + j, channel]) * weight
        # Horizontal: the weighted sum of pixels, normalised over both axes at once.
        for i in range(across):
            centre = (i + 0.5) * scale_x + left
            total = red = green = blue = 0.0
            for k in range(
                max(int(centre - support_x + 0.5), 0), min(int(centre + support_x + 0.5), width)
            ):
                weight = _scalar_triangle(k, centre, 1.0 / support_x)
                total += weight
                red += line[3 * k] * weight
                green += line[3 * k + 1] * weight
                blue += line[3 * k + 2] * weight
            at = 3 * row * pitch + (across - 1 - i if flip else i)
            inverse = 1.0 / (total * row_weight)
            levels[at] = int(red * inverse + 0.5)
            levels[at + pitch] = int(green * inverse + 0.5)
            levels[at + 2 * pitch] = int(blue * inverse + 0.5)

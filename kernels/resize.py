"""Crop, antialiased bilinear resize and flip of one view, in uint8: the seam where every loader's
views meet.

The definition is Pillow's: a triangle filter whose support grows with the downscaling, normalised
over the crop alone. `resize_reference` is Pillow itself. The kernel resizes rows first (contiguous
memory) and then columns, in 16-bit fixed point with 8 fractional bits, and rounds once; Pillow
rounds to whole levels in between, so that the two differ by one level at most (see `NARROW_TAPS`).

Shapes: S the view's side; P the pitch of a planar row, S rounded up to a multiple of 64; T
`NARROW_TAPS`.
"""

import numpy as np
from PIL import Image

from .compiler.jit import inline_jit
from .compiler.vector import (
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
from .compiler.vector_shuffle import transpose

NARROW_TAPS = 64
"""The most source pixels an output pixel may draw on in fixed point (a downscaling by about 31).

Each tap's product is floored to 1/256 level, which half a unit a tap makes up for on average: at
most 64/512 level is left a pass, and 0.05 for the rounded weights; less than the 0.5 that keeps the
result within one level of Pillow's.
"""
STRIP = 32
"""Output rows that are resized together, as the lanes of a vector."""
TILE = 128
"""Values (bytes) of an image row that are worked on at once."""

_MAX_SCALE = (
    NARROW_TAPS - 2
) / 2  # a downscaling by s draws on 2 s + 1 pixels at most, and one is to spare
_HALF_LEVEL = 128  # in 1/256


def resize_reference(
    image: np.ndarray, crop: tuple[int, int, int, int], size: int, flip: bool
) -> np.ndarray:
    """The view of `crop` (y, x, height, width) of `image` (H, W, 3) uint8 by Pillow; (S, S, 3)
    uint8."""
    y, x, height, width = crop
    patch = Image.fromarray(np.ascontiguousarray(image[y : y + height, x : x + width]))
    view = np.asarray(patch.resize((size, size), Image.Resampling.BILINEAR))
    return view[:, ::-1].copy() if flip else view.copy()


@inline_jit()
def resize_view(image, y, x, height, width, flip, size, scratch):
    """Crop, resize and flip one view into `scratch.levels`.

    `image` (H, W, 3) uint8, C-contiguous; the crop's `y`, `x`, `height`, `width` in its pixels,
    inside it.
    """
    levels, pitch, narrow = scratch.levels, scratch.pitch, scratch.narrow
    flat, stride = image.reshape(-1), 3 * image.shape[1]
    begin, values = y * stride + 3 * x, 3 * width
    if max(height, width) > _MAX_SCALE * size or (values < TILE and height * TILE > len(narrow)):
        _resize_wide(
            image, y, x, height, width, flip, size, scratch.columns.view(np.float32), levels, pitch
        )
        return
    if values < TILE:  # a tile would reach beyond the image
        for row in range(height):
            for i in range(values):
                narrow[row * TILE + i] = flat[begin + row * stride + i]
        flat, stride, begin, values = narrow, TILE, 0, TILE
    spans, weights, tile, columns, block = (
        scratch.spans,
        scratch.weights,
        scratch.tile,
        scratch.columns,
        scratch.block,
    )
    _fill_taps(height, size, False, spans, weights, 0, pitch)
    _fill_taps(width, size, flip, spans, weights, 1, pitch)
    for top in range(0, size, STRIP):
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


@inline_jit()
def _fill_taps(length, size, flip, spans, weights, axis, pitch):
    """The taps of all outputs along one axis, by Pillow's rules (precompute_coeffs in its
    Resample.c).

    Output i draws on `spans[1]` pixels from `spans[0]` on (each (2, 2, P) int32, the first axis
    `axis`), weighted by `weights` (2, T, P) uint16 in 1/65536; both flat. The rounding error of a
    weight goes into the next one, so that they add up to 65536 and constant images stay what they
    are. `flip` mirrors the outputs. A weight of one is capped at 65535, which costs less than 1/256
    level.
    """
    scale = length / size
    support = max(scale, 1.0)
    zero = broadcast(0.0, 16)
    for at in range(0, size, 16):
        output = lane_numbers(np.float64, 16) + np.float64(at)
        if flip:
            output = np.float64(size - 1) - output
        centre = (output + 0.5) * scale
        begin = convert(convert(maximum(centre - support + 0.5, zero), np.int32), np.float64)
        end = convert(
            convert(minimum(centre + support + 0.5, broadcast(np.float64(length), 16)), np.int32),
            np.float64,
        )
        whole = zero
        for k in range(int(2.0 * support) + 2):
            whole = whole + _triangle(begin + np.float64(k), end, centre, 1.0 / support)
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
    """The filter's height over `pixel`, not yet normalised; 0 from `end` on."""
    distance = pixel - centre + 0.5
    height = 1.0 - maximum(distance, 0.0 - distance) * inverse_support
    return select(pixel < end, maximum(height, broadcast(0.0, 16)), broadcast(0.0, 16))


@inline_jit(forceinline=True)
def _resize_strip(
    flat, begin, stride, values, top, flip, size, spans, weights, pitch, tile, columns, block
):
    """`STRIP` output rows from `top` on, into `block`, where they are the lanes of each column.

    The rows are resized vertically tile by tile, each tile just ahead of the columns that need it,
    so that it and what it is transposed into are still in the L1 cache.
    """
    rows = min(STRIP, size - top)
    above, below = spans[top], spans[top + rows - 1] + spans[pitch + top + rows - 1]
    ready = 0
    for i in range(size):
        column = size - 1 - i if flip else i
        count, first = spans[3 * pitch + column], 3 * spans[2 * pitch + column]
        while ready < first + 3 * count:
            start = min(ready, values - TILE)
            for row in range(above, below):  # what the next tile needs, while this one is worked on
                prefetch(flat, begin + start + TILE + 63 + row * stride)
                prefetch(flat, begin + start + TILE + 127 + row * stride)
            for row in range(rows):
                _resize_down(
                    flat, begin + start, stride, top + row, spans, weights, pitch, tile, row * TILE
                )
            for chunk in range(0, TILE, 64):  # a chunk holds its even values, then its odd ones
                for j in range(0, 32, 8):
                    to = (start + chunk + 2 * j) * STRIP
                    transpose(tile, chunk + j, TILE, columns, to, 2 * STRIP)
                    transpose(tile, chunk + 32 + j, TILE, columns, to + STRIP, 2 * STRIP)
            ready = start + TILE
        red, green, blue = (
            broadcast(np.uint16(0), 32),
            broadcast(np.uint16(0), 32),
            broadcast(np.uint16(0), 32),
        )
        at = first * STRIP
        for k in range(count):
            weight = broadcast(weights[(NARROW_TAPS + k) * pitch + column], 32)
            red = red + multiply_high(load(columns, at, 32), weight)
            green = green + multiply_high(load(columns, at + STRIP, 32), weight)
            blue = blue + multiply_high(load(columns, at + 2 * STRIP, 32), weight)
            at += 3 * STRIP
        rounding = broadcast(np.uint16(_HALF_LEVEL + count // 2), 32)
        to = column * STRIP
        store(block, to, convert((red + rounding) >> np.uint16(8), np.uint8))
        store(block, to + pitch * STRIP, convert((green + rounding) >> np.uint16(8), np.uint8))
        store(block, to + 2 * pitch * STRIP, convert((blue + rounding) >> np.uint16(8), np.uint8))


@inline_jit(forceinline=True)
def _resize_down(flat, at, stride, row, spans, weights, pitch, tile, to):
    """`TILE` values of one output row from the image's rows, from `at` on, into `tile` from `to`
    on, in 1/256 level.

    Two bytes are taken as one uint16: each in its upper half is a level in 1/256, which the
    weight's product keeps.
    """
    at += spans[row] * stride
    count = spans[pitch + row]
    low, high = np.uint16(8), np.uint16(0xFF00)
    even = odd = even_2 = odd_2 = broadcast(
        np.uint16(count // 2), 32
    )  # a product loses half a unit on average
    for k in range(count):
        weight = broadcast(weights[k * pitch + row], 32)
        pairs, pairs_2 = (
            reinterpret(load(flat, at, 64), np.uint16),
            reinterpret(load(flat, at + 64, 64), np.uint16),
        )
        even, odd = (
            even + multiply_high(pairs << low, weight),
            odd + multiply_high(pairs & high, weight),
        )
        even_2, odd_2 = (
            even_2 + multiply_high(pairs_2 << low, weight),
            odd_2 + multiply_high(pairs_2 & high, weight),
        )
        at += stride
    store(tile, to, even)
    store(tile, to + 32, odd)
    store(tile, to + 64, even_2)
    store(tile, to + 96, odd_2)


@inline_jit()
def _scalar_triangle(pixel, centre, inverse_support):
    return max(0.0, 1.0 - abs(pixel - centre + 0.5) * inverse_support)


@inline_jit()
def _resize_wide(image, y, x, height, width, flip, size, line, levels, pitch):
    """`resize_view` in floating point, for what the fixed point form does not take. Seldom met;
    need not be fast."""
    scale_y, scale_x = height / size, width / size
    support_y, support_x = max(scale_y, 1.0), max(scale_x, 1.0)
    for row in range(size):
        centre = (row + 0.5) * scale_y
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
        for i in range(size):
            centre = (i + 0.5) * scale_x
            total, red, green, blue = 0.0, 0.0, 0.0, 0.0
            for k in range(
                max(int(centre - support_x + 0.5), 0), min(int(centre + support_x + 0.5), width)
            ):
                weight = _scalar_triangle(k, centre, 1.0 / support_x)
                total += weight
                red += line[3 * k] * weight
                green += line[3 * k + 1] * weight
                blue += line[3 * k + 2] * weight
            at = 3 * row * pitch + (size - 1 - i if flip else i)
            inverse = 1.0 / (total * row_weight)
            levels[at] = int(red * inverse + 0.5)
            levels[at + pitch] = int(green * inverse + 0.5)
            levels[at + 2 * pitch] = int(blue * inverse + 0.5)

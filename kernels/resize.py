"""Crop, antialiased bilinear resize and flip of one view, in uint8: the seam where every loader's views meet.

The definition is Pillow's: a triangle filter whose support grows with the downscaling, normalised over the crop
alone. `resize_reference` is Pillow itself. The kernel resizes rows first (contiguous memory) and then columns, in
16-bit fixed point with 8 fractional bits, and rounds once; Pillow rounds to whole levels in between, so that the two
differ by one level at most (see `NARROW_TAPS`).

Shapes: S the view's side; P the pitch of a planar row, S rounded up to a multiple of 64; T `NARROW_TAPS`.
"""

import numpy as np
from PIL import Image

from .jit import leaf
from .vector import (
    broadcast,
    convert,
    lane_numbers,
    load,
    maximum,
    minimum,
    multiply_high,
    reinterpret,
    select,
    store,
    transpose,
)

NARROW_TAPS = 64
"""The most source pixels an output pixel may draw on in fixed point (a downscaling by about 31).

Each tap's product is floored to 1/256 level, which half a unit a tap makes up for on average: at most 64/512 level is
left a pass, and 0.05 for the rounded weights; less than the 0.5 that keeps the result within one level of Pillow's.
"""
STRIP = 32
"""Output rows that are resized together, so that their intermediate stays in the L2 cache."""

_MAX_SCALE = (NARROW_TAPS - 2) / 2  # a downscaling by s draws on 2 s + 1 pixels at most, and one is to spare
_CHUNK = 64  # bytes of an image row that are worked on at once: a crop of 22 pixels is the narrowest
_HALF_LEVEL = 128  # in 1/256


def resize_reference(image: np.ndarray, crop: tuple[int, int, int, int], size: int, flip: bool) -> np.ndarray:
    """The view of `crop` (y, x, height, width) of `image` (H, W, 3) uint8 by Pillow; (S, S, 3) uint8."""
    y, x, height, width = crop
    patch = Image.fromarray(np.ascontiguousarray(image[y : y + height, x : x + width]))
    view = np.asarray(patch.resize((size, size), Image.Resampling.BILINEAR))
    return view[:, ::-1].copy() if flip else view.copy()


@leaf()
def resize_view(image, y, x, height, width, flip, size, scratch):
    """Crop, resize and flip one view into `scratch.levels`.

    `image` (H, W, 3) uint8, C-contiguous; the crop's `y`, `x`, `height`, `width` in its pixels, inside it.
    """
    strip, levels, pitch = scratch.strip, scratch.levels, scratch.pitch
    if max(height, width) > _MAX_SCALE * size or 3 * width < _CHUNK:
        _resize_wide(image, y, x, height, width, flip, size, strip.view(np.float32), levels, pitch)
        return
    spans, weights = scratch.spans, scratch.weights
    _fill_taps(height, size, False, spans, weights, 0, pitch)
    _fill_taps(width, size, flip, spans, weights, 1, pitch)
    flat, stride = image.reshape(-1), 3 * image.shape[1]
    begin = y * stride + 3 * x
    columns, block, wide = scratch.columns, scratch.block, scratch.wide
    # An odd number of cache lines a row, so that the rows of a column do not compete for the same places in the cache.
    line = (3 * width + _CHUNK - 1) // _CHUNK * _CHUNK + 32
    for top in range(0, size, STRIP):
        for row in range(top, min(top + STRIP, size)):
            to = (row - top) * line
            _resize_row(flat, begin, stride, 3 * width, row, spans, weights, pitch, wide, strip, to)
        _resize_columns(strip, line, 3 * width, flip, size, spans, weights, pitch, columns, block)
        for channel in range(3):
            for column in range(0, pitch, STRIP):
                at, to = (channel * pitch + column) * STRIP, (3 * top + channel) * pitch + column
                transpose(block, at, STRIP, levels, to, 3 * pitch)


@leaf()
def _fill_taps(length, size, flip, spans, weights, axis, pitch):
    """The taps of all outputs along one axis, by Pillow's rules (precompute_coeffs in its Resample.c).

    Output i draws on `spans[1]` pixels from `spans[0]` on (each (2, 2, P) int32, the first axis `axis`), weighted by
    `weights` (2, T, P) uint16 in 1/65536; both flat. The
    rounding error of a weight goes into the next one, so that they add up to 65536 and constant images stay what they
    are. `flip` mirrors the outputs. A weight of one is capped at 65535, which costs less than 1/256 level.
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
        end = convert(convert(minimum(centre + support + 0.5, broadcast(np.float64(length), 16)), np.int32), np.float64)
        whole = zero
        for k in range(int(2.0 * support) + 2):
            whole = whole + _triangle(begin + np.float64(k), end, centre, 1.0 / support)
        to_fixed = 65536.0 / whole
        running, before = broadcast(0.5, 16), broadcast(np.int32(0), 16)
        for k in range(int(2.0 * support) + 2):
            running = running + _triangle(begin + np.float64(k), end, centre, 1.0 / support) * to_fixed
            until = convert(running, np.int32)
            weight = minimum(until - before, broadcast(np.int32(65535), 16))
            store(weights, (axis * NARROW_TAPS + k) * pitch + at, convert(weight, np.uint16))
            before = until
        store(spans, 2 * axis * pitch + at, convert(begin, np.int32))
        store(spans, (2 * axis + 1) * pitch + at, convert(end - begin, np.int32))


@leaf(forceinline=True)
def _triangle(pixel, end, centre, inverse_support):
    """The filter's height over `pixel`, not yet normalised; 0 from `end` on."""
    distance = pixel - centre + 0.5
    height = 1.0 - maximum(distance, 0.0 - distance) * inverse_support
    return select(pixel < end, maximum(height, broadcast(0.0, 16)), broadcast(0.0, 16))


@leaf(forceinline=True)
def _resize_row(flat, begin, stride, values, row, spans, weights, pitch, wide, strip, to):
    """One output row from the image's rows, into `strip` from `to` on: each chunk's even values, then its odd ones.

    Two bytes are taken as one uint16: each in its upper half is a level in 1/256, which the weight's product keeps.
    """
    begin += spans[row] * stride
    count = spans[pitch + row]
    for k in range(count):
        store(wide, 32 * k, broadcast(weights[k * pitch + row], 32))
    half_lost = broadcast(np.uint16(count // 2), 32)
    for chunk in range(0, values, _CHUNK):
        at = begin + min(chunk, values - _CHUNK)
        even, odd = broadcast(np.uint16(0), 32), broadcast(np.uint16(0), 32)
        for k in range(count):
            pairs, weight = reinterpret(load(flat, at + k * stride, _CHUNK), np.uint16), load(wide, 32 * k, 32)
            even = even + multiply_high(pairs << np.uint16(8), weight)
            odd = odd + multiply_high(pairs & np.uint16(0xFF00), weight)
        store(strip, to + chunk, even + half_lost)
        store(strip, to + chunk + 32, odd + half_lost)


@leaf(forceinline=True)
def _resize_columns(strip, line, values, flip, size, spans, weights, pitch, columns, block):
    """All output columns of a strip into `block`; the strip's rows are the lanes.

    The strip is transposed into `columns` just ahead of its use, while it is in the L1 cache.
    """
    chunk = 0
    for i in range(size):
        column = size - 1 - i if flip else i
        count = spans[3 * pitch + column]
        at = 3 * spans[2 * pitch + column] * STRIP
        while chunk < values and chunk * STRIP < at + 3 * count * STRIP:
            to = min(chunk, values - _CHUNK) * STRIP
            for j in range(chunk, chunk + _CHUNK // 2, 8):
                transpose(strip, j, line, columns, to, 2 * STRIP)
                transpose(strip, j + _CHUNK // 2, line, columns, to + STRIP, 2 * STRIP)
                to += 16 * STRIP
            chunk += _CHUNK
        red, green, blue = broadcast(np.uint16(0), 32), broadcast(np.uint16(0), 32), broadcast(np.uint16(0), 32)
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


@leaf()
def _scalar_triangle(pixel, centre, inverse_support):
    return max(0.0, 1.0 - abs(pixel - centre + 0.5) * inverse_support)


@leaf()
def _resize_wide(image, y, x, height, width, flip, size, line, levels, pitch):
    """`resize_view` in floating point, for what the fixed point form does not take. Seldom met; need not be fast."""
    scale_y, scale_x = height / size, width / size
    support_y, support_x = max(scale_y, 1.0), max(scale_x, 1.0)
    for row in range(size):
        centre = (row + 0.5) * scale_y
        line[: 3 * width] = np.float32(0.0)
        row_weight = 0.0
        for k in range(max(int(centre - support_y + 0.5), 0), min(int(centre + support_y + 0.5), height)):
            weight = np.float32(_scalar_triangle(k, centre, 1.0 / support_y))
            row_weight += weight
            for j in range(width):
                for channel in range(3):
                    line[3 * j + channel] += np.float32(image[y + k, x + j, channel]) * weight
        for i in range(size):
            centre = (i + 0.5) * scale_x
            total, red, green, blue = 0.0, 0.0, 0.0, 0.0
            for k in range(max(int(centre - support_x + 0.5), 0), min(int(centre + support_x + 0.5), width)):
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

"""Crop, antialiased bilinear resize and horizontal flip of one view, in uint8: the seam where every loader's views meet.

The definition is Pillow's: a triangle filter whose support grows with the downscaling, normalised over the pixels of the
crop alone. `resize_reference` is Pillow itself. The kernel resizes rows first (contiguous memory) and then columns, in
16-bit fixed point with 8 fractional bits, and rounds once; Pillow rounds to whole levels in between, so that the two
differ by one level at most (see `NARROW_TAPS`).

Shapes: S the view's side; P the pitch of a planar row, S rounded up to a multiple of 64; T `NARROW_TAPS`.
"""

import numpy as np
from PIL import Image

from .jit import leaf

NARROW_TAPS = 64
"""The most source pixels an output pixel may draw on in fixed point (a downscaling by about 31).

Each tap's product is floored to 1/256 level, which half a unit a tap makes up for on average: at most 64/512 level is
left a pass, and 0.05 for the rounded weights; less than the 0.5 that keeps the result within one level of Pillow's.
"""
STRIP = 32
"""Output rows that are resized together, so that their intermediate stays in the L2 cache."""

_ONE_HALF = 128  # half a level, in 1/256


def resize_reference(image: np.ndarray, crop: tuple[int, int, int, int], size: int, flip: bool) -> np.ndarray:
    """The view of `crop` (y, x, height, width) of `image` (H, W, 3) uint8 by Pillow; (S, S, 3) uint8."""
    y, x, height, width = crop
    patch = Image.fromarray(np.ascontiguousarray(image[y : y + height, x : x + width]))
    view = np.asarray(patch.resize((size, size), Image.Resampling.BILINEAR))
    return view[:, ::-1].copy() if flip else view.copy()


@leaf()
def _window(i, length, size):
    """First pixel, number of pixels, centre and 1/support of output `i` when `length` pixels become `size`."""
    scale = length / size
    support = max(scale, 1.0)
    centre = (i + 0.5) * scale
    first = max(int(centre - support + 0.5), 0)
    count = min(int(centre + support + 0.5), length) - first
    return first, count, centre, 1.0 / support


@leaf()
def _triangle(pixel, centre, inverse_support):
    return max(0.0, 1.0 - abs(pixel - centre + 0.5) * inverse_support)


@leaf()
def fits_narrow(length, size):
    """Whether every output pixel draws on at most `NARROW_TAPS` of `length` pixels."""
    return 2.0 * length / size + 1.0 <= NARROW_TAPS


@leaf()
def fill_taps(length, size, flip, firsts, counts, weights):
    """The taps of all outputs along one axis: `firsts`, `counts` (S,) int32, `weights` (S, T) uint16 in 1/65536.

    The rounding error of a weight goes into the next one, so that constant images stay what they are. `flip` mirrors the
    outputs. A weight of one is capped at 65535, which costs less than 1/256 level.
    """
    for i in range(size):
        first, count, centre, inverse_support = _window(i, length, size)
        total = 0.0
        for k in range(count):
            total += _triangle(first + k, centre, inverse_support)
        at = size - 1 - i if flip else i
        firsts[at], counts[at] = first, count
        running, before = 0.0, 0
        for k in range(count):
            running += _triangle(first + k, centre, inverse_support) * (65536.0 / total)
            until = int(running + 0.5)
            weights[at, k] = min(until - before, 65535)
            before = until


@leaf()
def resize_view(image, y, x, height, width, flip, size, scratch):
    """Crop, resize and flip one view into `scratch.levels` (S, 3, P).

    `image` (H, W, 3) uint8, C-contiguous; the crop's `y`, `x`, `height`, `width` in its pixels, inside it.
    """
    rows = image.reshape(image.shape[0], image.shape[1] * 3)
    if fits_narrow(height, size) and fits_narrow(width, size):
        _resize_narrow(rows, y, x, height, width, flip, size, scratch)
    else:
        _resize_wide(rows, y, x, height, width, flip, size, scratch)


@leaf()
def _resize_narrow(rows, y, x, height, width, flip, size, scratch):
    """`resize_view` in fixed point. `rows` (H, 3 W) uint8."""
    firsts, counts, weights, levels = scratch.firsts, scratch.counts, scratch.weights, scratch.levels
    fill_taps(height, size, False, firsts[0], counts[0], weights[0])
    fill_taps(width, size, flip, firsts[1], counts[1], weights[1])
    values = 3 * width
    line = scratch.strip[:values]
    for row in range(size):
        count = counts[0, row]
        for j in range(values):
            line[j] = (count + 1) // 2
        for k in range(count):
            source = rows[y + firsts[0, row] + k, 3 * x : 3 * x + values]
            weight = np.uint32(weights[0, row, k])
            for j in range(values):
                line[j] += np.uint16(((np.uint32(source[j]) << np.uint32(8)) * weight) >> np.uint32(16))
        for column in range(size):
            count = counts[1, column]
            for channel in range(3):
                at = 3 * firsts[1, column] + channel
                total = _ONE_HALF + (count + 1) // 2
                for k in range(count):
                    total += (np.int64(line[at + 3 * k]) * np.int64(weights[1, column, k])) >> 16
                levels[(3 * row + channel) * scratch.pitch + column] = total >> 8


@leaf()
def _resize_wide(rows, y, x, height, width, flip, size, scratch):
    """`resize_view` in float32, for downscalings beyond `NARROW_TAPS`: seldom met, so that it need not be fast."""
    line = scratch.strip[: 2 * 3 * width].view(np.float32)
    for row in range(size):
        first, count, centre, inverse_support = _window(row, height, size)
        line[:] = np.float32(0.0)
        row_weight = 0.0
        for k in range(count):
            weight = np.float32(_triangle(first + k, centre, inverse_support))
            row_weight += weight
            source = rows[y + first + k, 3 * x : 3 * x + 3 * width]
            for j in range(3 * width):
                line[j] += np.float32(source[j]) * weight
        for i in range(size):
            first, count, centre, inverse_support = _window(i, width, size)
            total, red, green, blue = 0.0, 0.0, 0.0, 0.0
            for k in range(first, first + count):
                weight = _triangle(k, centre, inverse_support)
                total += weight
                red += line[3 * k] * weight
                green += line[3 * k + 1] * weight
                blue += line[3 * k + 2] * weight
            column = size - 1 - i if flip else i
            scale = 1.0 / (total * row_weight)
            scratch.levels[(3 * row + 0) * scratch.pitch + column] = int(red * scale + 0.5)
            scratch.levels[(3 * row + 1) * scratch.pitch + column] = int(green * scale + 0.5)
            scratch.levels[(3 * row + 2) * scratch.pitch + column] = int(blue * scale + 0.5)

"""Crop, antialiased bicubic resize and flip of one view, in uint8: `resize` with the other filter.

The definition is again Pillow's, with the order that it has up to version 12: horizontally, rounded
and clamped to whole levels, then vertically. Bicubic weights are negative in places, so that sharp
edges overshoot; clamped in the other order, some would differ by several levels. Weights and sums
are Pillow's integers, so that the levels are its own.
`resize.resize_reference` is the reference.

Shapes as in `resize`; here T = `CUBIC_TAPS`.
"""

import numpy as np

from ..compiler.jit import inline_jit
from ..compiler.vector import (
    broadcast,
    convert,
    load,
    maximum,
    minimum,
    select,
    store,
)
from ..compiler.vector_shuffle import transpose
from .resize import row_pitch, source_pixels

CUBIC_TAPS = 128
"""Most source pixels of an output pixel in vectors: a downscaling by 31."""
STRIP = 32
"""Source rows resized together, one in each lane of a vector."""
BAND_STRIPS = 8
"""Strips whose horizontally resized rows are kept: at least those that `CUBIC_TAPS` rows touch."""

_BITS = 22  # Pillow's weights have so many fractional bits; a sum of products fits int32
_MAX_SCALE = (CUBIC_TAPS - 4) / 4  # scale s takes at most 4 s + 1 pixels


@inline_jit()
def resize_bicubic(image, y, x, height, width, axes, flip, size, scratch):
    """Crop, resize and flip one view into `scratch.levels`. Arguments as for `resize.resize_view`.

    `scratch.band` is a ring of strips of source rows, resized horizontally. Each strip is made when
    the first output row needs it.
    """
    top, tall, left, wide = axes
    rows, across = size
    if tall > _MAX_SCALE * rows or wide > _MAX_SCALE * across:
        _resize_wide(image, y, x, height, width, axes, flip, size, scratch)
        return
    # 1. Source pixels and weights of all output rows (axis 0) and columns (axis 1).
    pitch, spans, weights = row_pitch(size), scratch.spans, scratch.cubic_weights
    heights = scratch.columns.view(np.float64)
    _fill_taps(height, top, tall, rows, False, spans, weights, heights, 0, pitch)
    _fill_taps(width, left, wide, across, flip, spans, weights, heights, 1, pitch)
    # 2. Output row by output row.
    flat, stride = image.reshape(-1), 3 * image.shape[1]
    begin = y * stride + 3 * x
    strips = 0  # strips that have been made
    for row in range(rows):
        first, count = spans[row], spans[pitch + row]
        while strips * STRIP < first + count:
            _resize_strip(flat, begin, stride, height, 3 * width, strips, across, pitch, scratch)
            strips += 1
        _resize_down(row, first, count, pitch, scratch)


@inline_jit()
def _fill_taps(length, first, side, size, flip, spans, weights, heights, axis, pitch):
    """Compute the taps of all outputs along one axis, as `resize._fill_taps` does.

    `weights` (2, T, P) int32, flat: in units of 2^-22, each rounded by itself as in Pillow.
    `heights` (T, 16) float64, flat: scratch.
    """
    scale = side / size
    filter_scale = max(scale, 1.0)
    support = 2.0 * filter_scale
    zero = broadcast(0.0, 16)
    for at in range(0, size, 16):
        centre, begin, end = source_pixels(at, size, flip, scale, first, support, length)
        taps = int(2.0 * support) + 2
        whole = zero
        for k in range(taps):
            height = _cubic(begin + np.float64(k), end, centre, 1.0 / filter_scale)
            whole = whole + height
            store(heights, 16 * k, height)
        inverse = 1.0 / whole
        for k in range(taps):
            weight = load(heights, 16 * k, 16) * inverse * np.float64(1 << _BITS)
            half = select(weight < zero, broadcast(-0.5, 16), broadcast(0.5, 16))
            place = (axis * CUBIC_TAPS + k) * pitch + at
            store(weights, place, convert(weight + half, np.int32))
        store(spans, 2 * axis * pitch + at, convert(begin, np.int32))
        store(spans, (2 * axis + 1) * pitch + at, convert(end - begin, np.int32))


@inline_jit(forceinline=True)
def _cubic(pixel, end, centre, inverse_scale):
    """Keys' cubic with a = -0.5 at `pixel`, not normalised; 0 from `end`. float64 vectors."""
    distance = (pixel - centre + 0.5) * inverse_scale
    d = maximum(distance, 0.0 - distance)
    near = (1.5 * d - 2.5) * d * d + 1.0
    far = (((d - 5.0) * d + 8.0) * d - 4.0) * -0.5
    zero = broadcast(0.0, 16)
    height = select(d < broadcast(1.0, 16), near, select(d < broadcast(2.0, 16), far, zero))
    return select(pixel < end, height, zero)


@inline_jit(forceinline=True)
def _to_levels(total):
    """Whole levels of 32 sums in units of 2^-22, which start at a half; clamped to 0..255."""
    low, high = broadcast(np.int32(0), 32), broadcast(np.int32(255), 32)
    return convert(minimum(maximum(total >> np.int32(_BITS), low), high), np.uint8)


@inline_jit(forceinline=True)
def _load_levels(array, at):
    """Load 32 uint8 levels as int32."""
    return convert(load(array, at, 32), np.int32)


@inline_jit()
def _resize_strip(flat, begin, stride, height, values, strip, across, pitch, scratch):
    """Resize the rows of one strip of the crop horizontally, into their places in `scratch.band`.

    `flat`: the image's bytes; `begin`: the crop's first; `stride`: bytes from row to row; `height`
    and `values`: rows of the crop, and bytes of such a row; `across`: the view's width.

    The last strip begins early, so that it is whole: rows that the strip before it holds are made
    again. The band has room for them in front of its first strip.
    """
    band, block = scratch.band, scratch.block
    spans, weights = scratch.spans, scratch.cubic_weights
    columns = scratch.columns.view(np.uint8)
    # 1. Transpose, so that a column's rows are adjacent.
    start = max(min(strip * STRIP, height - STRIP), 0)
    if height < STRIP or values < 32:
        for row in range(min(STRIP, height - start)):
            for i in range(values):
                columns[i * STRIP + row] = flat[begin + (start + row) * stride + i]
    else:
        for i in range(0, values, 32):
            at = min(i, values - 32)
            transpose(flat, begin + start * stride + at, stride, columns, at * STRIP, STRIP)
    # 2. One output column after the other, its rows in the lanes.
    for column in range(across):
        at, count = 3 * spans[2 * pitch + column] * STRIP, spans[3 * pitch + column]
        red = green = blue = broadcast(np.int32(1 << (_BITS - 1)), 32)
        for k in range(count):
            weight = weights[(CUBIC_TAPS + k) * pitch + column]
            red = red + _load_levels(columns, at) * weight
            green = green + _load_levels(columns, at + STRIP) * weight
            blue = blue + _load_levels(columns, at + 2 * STRIP) * weight
            at += 3 * STRIP
        to = column * STRIP
        store(block, to, _to_levels(red))
        store(block, to + pitch * STRIP, _to_levels(green))
        store(block, to + 2 * pitch * STRIP, _to_levels(blue))
    # 3. Back to rows.
    first = STRIP + strip % BAND_STRIPS * STRIP - (strip * STRIP - start)
    for plane in range(0, 3 * pitch, STRIP):
        transpose(block, plane * STRIP, STRIP, band, 3 * first * pitch + plane, 3 * pitch)


@inline_jit()
def _resize_down(row, first, count, pitch, scratch):
    """Resize one output row vertically, from `count` rows of the band into the levels."""
    band, levels, weights = scratch.band, scratch.levels, scratch.cubic_weights
    to = 3 * row * pitch
    for x in range(0, pitch, 32):
        red = green = blue = broadcast(np.int32(1 << (_BITS - 1)), 32)
        for k in range(count):
            weight = weights[k * pitch + row]
            at = 3 * (STRIP + (first + k) % (BAND_STRIPS * STRIP)) * pitch + x
            red = red + _load_levels(band, at) * weight
            green = green + _load_levels(band, at + pitch) * weight
            blue = blue + _load_levels(band, at + 2 * pitch) * weight
        store(levels, to + x, _to_levels(red))
        store(levels, to + pitch + x, _to_levels(green))
        store(levels, to + 2 * pitch + x, _to_levels(blue))


@inline_jit()
def _scalar_cubic(pixel, centre, inverse_scale):
    """`_cubic` of one pixel."""
    d = abs((pixel - centre + 0.5) * inverse_scale)
    if d < 1.0:
        return (1.5 * d - 2.5) * d * d + 1.0
    if d < 2.0:
        return (((d - 5.0) * d + 8.0) * d - 4.0) * -0.5
    return 0.0


@inline_jit()
def _scalar_span(output, first, scale, length):
    """(centre, begin, end) of the source pixels of one output pixel."""
    centre = (output + 0.5) * scale + first
    support = 2.0 * max(scale, 1.0)
    return centre, max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), length)


@inline_jit()
def _resize_wide(image, y, x, height, width, axes, flip, size, scratch):
    """`resize_bicubic` of crops scaled down too far for the band: pixel by pixel, slow and rare.

    In floating point, so within a level of Pillow. Each output row resizes the source rows of its
    own filter horizontally.
    """
    top, tall, left, wide = axes
    rows, across = size
    scale_y, scale_x = tall / rows, wide / across
    inverse_y, inverse_x = 1.0 / max(scale_y, 1.0), 1.0 / max(scale_x, 1.0)
    levels, pitch = scratch.levels, row_pitch(size)
    # `columns` holds the output row's sums and then the weights of all columns.
    sums = scratch.columns.view(np.float32)
    weights = sums[3 * across :]
    place = 0
    for i in range(across):
        centre, begin, end = _scalar_span(i, left, scale_x, width)
        whole = 0.0
        for k in range(begin, end):
            whole += _scalar_cubic(k, centre, inverse_x)
        for k in range(begin, end):
            weights[place] = _scalar_cubic(k, centre, inverse_x) / whole
            place += 1
    for row in range(rows):
        centre_y, begin_y, end_y = _scalar_span(row, top, scale_y, height)
        sums[: 3 * across] = np.float32(0)
        whole = 0.0
        for j in range(begin_y, end_y):
            weight = _scalar_cubic(j, centre_y, inverse_y)
            whole += weight
            place = 0
            for i in range(across):
                _, begin, end = _scalar_span(i, left, scale_x, width)
                red = green = blue = 0.0
                for k in range(begin, end):
                    red += image[y + j, x + k, 0] * weights[place]
                    green += image[y + j, x + k, 1] * weights[place]
                    blue += image[y + j, x + k, 2] * weights[place]
                    place += 1
                sums[3 * i] += weight * _scalar_level(red)
                sums[3 * i + 1] += weight * _scalar_level(green)
                sums[3 * i + 2] += weight * _scalar_level(blue)
        for i in range(across):
            at = 3 * row * pitch + (across - 1 - i if flip else i)
            for channel in range(3):
                levels[at + channel * pitch] = _scalar_level(sums[3 * i + channel] / whole)


@inline_jit()
def _scalar_level(value):
    """`_to_levels` of one value."""
    return int(min(max(value + 0.5, 0.0), 255.0))

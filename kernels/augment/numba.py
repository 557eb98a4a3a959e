"""Colour, blur, normalisation and mask of one view on the CPU.

Colour equals torchvision's operators to the bit (`colour_numba`); the blur is fixed point and
within one level.

The work goes by rows, each read once from the planar levels and, without a blur, written straight
to the batch; a blur keeps a ring of as many rows as its window spans. Only contrast needs a pass
over the whole view beforehand.

S is the view's side; P, the pitch of a planar row, is S rounded up to a multiple of 32. `row` is a
row at hand, (3, P) float32, flat, in whole levels.
"""

import math

import numpy as np
from numba import types
from numba.extending import overload

from ..compiler.half_precision import bfloat16_bits, converts_float16, float16_bits
from ..compiler.jit import inline_jit
from ..compiler.vector import broadcast, convert, fence, load, multiply_high, reinterpret, store
from ..compiler.vector_shuffle import store_interleaved, stream_interleaved
from ..formats import FLOAT16
from ..plan import BLUR_SIGMA, FACTORS, GRAY, JITTER, ORDER, SOLARIZE
from ..views import CONTRAST
from .numba_colour import LANES, before_contrast, gray, jitter, load_levels, solarize

MAX_RADIUS = 15
"""Of a blur of 5 pixels, the widest that a view may have."""
HALO = 32
"""Room for reflected pixels on either side of a row, at least `MAX_RADIUS`."""


@inline_jit()
def _blur_weights(sigma, radius, weights):
    """torchvision's Gaussian of 2 radius + 1 taps, centre first, each 32 times; uint16 in 1/65536.

    They add up to one: the centre takes what rounding left over (and is capped, by less than 1/256
    level).
    """
    whole = 1.0
    for k in range(1, radius + 1):
        whole += 2.0 * math.exp(-0.5 * (k / sigma) ** 2)
    rest = 65536
    for k in range(1, radius + 1):
        weight = int(math.exp(-0.5 * (k / sigma) ** 2) / whole * 65536.0 + 0.5)
        rest -= 2 * weight
        weights[32 * k : 32 * k + 32] = weight
    weights[:32] = min(rest, 65535)


@inline_jit(forceinline=True)
def _ring_row(y, size, radius, pitch):
    """Where row `y`, reflected into the view without repeating the border, lies in the ring."""
    y = abs(y)
    y = 2 * (size - 1) - y if y >= size else y
    return y % (2 * radius + 1) * 3 * pitch


@inline_jit(forceinline=True)
def _blur_down(ring, y, size, pitch, radius, weights, slots, line):
    """Blur row `y` vertically, from `ring` to `line`, and reflect its ends. Levels in 1/128."""
    for k in range(radius + 1):
        slots[2 * k], slots[2 * k + 1] = (
            _ring_row(y - k, size, radius, pitch),
            _ring_row(y + k, size, radius, pitch),
        )
    half_lost = broadcast(
        np.uint16((radius + 1) // 2), 32
    )  # each product is floored, by half a unit on average
    gap = pitch + 2 * HALO
    for x in range(0, size, 32):
        at, weight = slots[0] + x, load(weights, 0, 32)
        red = multiply_high(load(ring, at, 32), weight) + half_lost
        green = multiply_high(load(ring, at + pitch, 32), weight) + half_lost
        blue = multiply_high(load(ring, at + 2 * pitch, 32), weight) + half_lost
        for k in range(1, radius + 1):
            at, to, weight = slots[2 * k] + x, slots[2 * k + 1] + x, load(weights, 32 * k, 32)
            red = red + multiply_high(load(ring, at, 32) + load(ring, to, 32), weight)
            green = green + multiply_high(
                load(ring, at + pitch, 32) + load(ring, to + pitch, 32), weight
            )
            blue = blue + multiply_high(
                load(ring, at + 2 * pitch, 32) + load(ring, to + 2 * pitch, 32), weight
            )
        store(line, HALO + x, red)
        store(line, HALO + gap + x, green)
        store(line, HALO + 2 * gap + x, blue)
    for channel in range(3):
        start = channel * gap + HALO
        for k in range(1, radius + 1):
            line[start - k] = line[start + k]
            line[start + size - 1 + k] = line[start + size - 1 - k]


@inline_jit(forceinline=True)
def _blur_across(line, size, pitch, radius, weights, row):
    """Blur `line` horizontally and round it to whole levels, into `row`."""
    rounding = broadcast(np.uint16((radius + 1) // 2 + 64), 32)
    gap = pitch + 2 * HALO
    for x in range(0, size, 32):
        at, weight = HALO + x, load(weights, 0, 32)
        red = multiply_high(load(line, at, 32), weight) + rounding
        green = multiply_high(load(line, at + gap, 32), weight) + rounding
        blue = multiply_high(load(line, at + 2 * gap, 32), weight) + rounding
        for k in range(1, radius + 1):
            at, to, weight = HALO + x - k, HALO + x + k, load(weights, 32 * k, 32)
            red = red + multiply_high(load(line, at, 32) + load(line, to, 32), weight)
            green = green + multiply_high(
                load(line, at + gap, 32) + load(line, to + gap, 32), weight
            )
            blue = blue + multiply_high(
                load(line, at + 2 * gap, 32) + load(line, to + 2 * gap, 32), weight
            )
        store(row, x, convert(convert(red >> np.uint16(7), np.int32), np.float32))
        store(row, pitch + x, convert(convert(green >> np.uint16(7), np.int32), np.float32))
        store(row, 2 * pitch + x, convert(convert(blue >> np.uint16(7), np.int32), np.float32))


@inline_jit(forceinline=True)
def _fixed(value):
    """Whole levels in 1/128, as the blur takes them."""
    return convert(convert(value, np.int32), np.uint16) << np.uint16(7)


def _encode(row, at, normalisation, channel, form, out):
    """`LANES` whole levels of `row` as the lanes that `out` stores: normalised, but for uint8."""
    raise NotImplementedError("compiled code only")


@overload(_encode, jit_options={"forceinline": True})
def _encode_overload(row, at, normalisation, channel, form, out):
    if out.dtype == types.uint8:
        return lambda row, at, normalisation, channel, form, out: convert(
            convert(load(row, at, LANES), np.int32), np.uint8
        )
    if out.dtype == types.float32:
        return lambda row, at, normalisation, channel, form, out: _normalise(
            row, at, normalisation, channel
        )
    if converts_float16():

        def encode(row, at, normalisation, channel, form, out):
            if form == FLOAT16:
                return reinterpret(
                    convert(_normalise(row, at, normalisation, channel), np.float16), np.uint16
                )
            return bfloat16_bits(_normalise(row, at, normalisation, channel))

        return encode

    def encode_by_bits(row, at, normalisation, channel, form, out):
        if form == FLOAT16:
            return float16_bits(_normalise(row, at, normalisation, channel))
        return bfloat16_bits(_normalise(row, at, normalisation, channel))

    return encode_by_bits


@inline_jit(forceinline=True)
def _normalise(row, at, normalisation, channel):
    return load(row, at, LANES) * normalisation[0, channel] + normalisation[1, channel]


@inline_jit(forceinline=True)
def _write_row(row, size, pitch, form, normalisation, tail, out, start, streams):
    """Encode `row` and write its S pixels to the flat `out` from `start` on; past the caches where
    it `streams`."""
    whole = size // LANES * LANES
    for x in range(0, whole, LANES):
        red = _encode(row, x, normalisation, 0, form, out)
        green = _encode(row, pitch + x, normalisation, 1, form, out)
        blue = _encode(row, 2 * pitch + x, normalisation, 2, form, out)
        if streams:
            stream_interleaved(out, start + 3 * x, red, green, blue)
        else:
            store_interleaved(out, start + 3 * x, red, green, blue)
    if whole < size:  # what lies behind the row's end may be another thread's
        red = _encode(row, whole, normalisation, 0, form, out)
        green = _encode(row, pitch + whole, normalisation, 1, form, out)
        blue = _encode(row, 2 * pitch + whole, normalisation, 2, form, out)
        store_interleaved(tail, 0, red, green, blue)
        for i in range(3 * (size - whole)):
            out[start + 3 * whole + i] = tail[i]


@inline_jit()
def augment_view(view, size, form, normalisation, masked, scratch, out, start):
    """Augment `scratch.levels` into the flat `out` from `start` on, (S, S, 3), as `form`; the
    levels are used up.

    `view` are the view's columns of the plan row; `normalisation` (2, 3) float32, scale and offset
    of each channel from levels; `masked` (x1, y1, x2, y2) whole pixels to zero after normalisation.
    """
    levels, row, pitch, tail = (
        scratch.levels,
        scratch.row,
        scratch.pitch,
        scratch.tail.view(out.dtype),
    )
    ring, line, weights, slots = scratch.ring, scratch.line, scratch.blur, scratch.slots
    jittered, grayed, solarized, sigma = (
        view[JITTER] != 0,
        view[GRAY] != 0,
        view[SOLARIZE] != 0,
        np.float64(view[BLUR_SIGMA]),
    )
    order, factors = view[ORDER : ORDER + 4], view[FACTORS : FACTORS + 4]
    contrast_at, mean, radius = 0, np.float32(0.0), 0
    if jittered:
        while int(order[contrast_at]) != CONTRAST:
            contrast_at += 1
        mean = before_contrast(levels, order, factors, contrast_at, size, pitch)
    if sigma > 0.0:
        radius = min(math.ceil(3.0 * sigma), size - 1)
        _blur_weights(sigma, radius, weights)
    x1, y1, x2, y2 = masked
    # A batch is larger than the caches: written past them it need not be read first, nor does it
    # push the image out.
    streams = size % LANES == 0 and (out.ctypes.data + start * out.itemsize) % 64 == 0

    for step in range(size + radius):  # a blurred row needs `radius` rows below it
        if step < size:
            to = _ring_row(step, size, radius, pitch)
            for x in range(0, pitch, LANES):
                at = 3 * step * pitch + x
                red, green = load_levels(levels, at), load_levels(levels, at + pitch)
                blue = load_levels(levels, at + 2 * pitch)
                if jittered:
                    red, green, blue = jitter(
                        red, green, blue, order, factors, contrast_at, 4, mean
                    )
                if grayed:
                    red = gray(red, green, blue)
                    green, blue = red, red
                if radius > 0:
                    store(ring, to + x, _fixed(red))
                    store(ring, to + pitch + x, _fixed(green))
                    store(ring, to + 2 * pitch + x, _fixed(blue))
                else:
                    store(row, x, red)
                    store(row, pitch + x, green)
                    store(row, 2 * pitch + x, blue)
        y = step - radius
        if y < 0:
            continue
        if radius > 0:
            _blur_down(ring, y, size, pitch, radius, weights, slots, line)
            _blur_across(line, size, pitch, radius, weights, row)
        if solarized:
            for x in range(0, 3 * pitch, LANES):
                store(row, x, solarize(load(row, x, LANES)))
        begin, masked_row = start + 3 * y * size, y1 <= y < y2
        _write_row(
            row, size, pitch, form, normalisation, tail, out, begin, streams and not masked_row
        )
        if masked_row:
            out[begin + 3 * x1 : begin + 3 * x2] = 0
    if streams:
        fence()

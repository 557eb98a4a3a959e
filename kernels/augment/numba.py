"""Augmentation of one view on the CPU, compiled: colour, blur, lighting, normalisation and mask.

Colour equals torchvision's operators bit for bit (`numba_colour`). The blur is fixed point and
within one level.

A view is processed row by row. Each row is read once from the planar levels and, without a blur,
written straight to the batch. A blur keeps a ring of as many rows as its window spans. Only
contrast needs a pass over the whole view beforehand.

Shapes: S and S' are the view's height and width, P, the pitch of a planar row, the longer of these
rounded up to a multiple of 32, R the blur's radius. All arrays are flat:

- `levels` (S · 3 · P + TABLE_ROOM,) uint8: the view, planar by row; 0 from column S'
- `table` (256,) uint8: see `numba_colour.make_table`
- `row` (3 · P,) float32: the current row, in whole levels
- `ring` ((2 R + 1) · 3 · P,) uint16: rows around the current one, in 1/128 level
- `line` (3 · (P + 2 HALO),) uint16: the current row blurred vertically, in 1/128 level
- `weights` ((R + 1) · 32,) uint16: the blur's taps, centre first, each 32 times, in 1/65536
"""

import math

import numpy as np
from numba import types
from numba.extending import overload

from ..compiler.half_precision import bfloat16_bits, converts_float16, float16_bits
from ..compiler.jit import inline_jit
from ..compiler.vector import broadcast, convert, load, multiply_high, reinterpret, store
from ..compiler.vector_interleave import fence, store_interleaved, stream_interleaved
from ..formats import FLOAT16, UINT8
from ..plan import BLUR_SIGMA, FACTORS, GRAY, JITTER, LIGHTING, ORDER, SOLARIZE
from ..render.resize import row_pitch
from ..views import CONTRAST
from .numba_colour import (
    LANES,
    gray,
    jitter,
    jitter_until_contrast,
    light,
    load_levels,
    make_table,
    replace_levels,
    solarize,
)

MAX_RADIUS = 15
"""Radius of the widest blur that a `View` allows, sigma 5, in pixels."""
HALO = 32
"""Room for reflected pixels on either side of a row: at least `MAX_RADIUS`."""


@inline_jit()
def _blur_weights(sigma, radius, weights):
    """Write torchvision's Gaussian of 2 radius + 1 taps to `weights`.

    The taps add up to 1: the centre takes the rounding errors of the others. A centre of 1 is
    capped at 65535/65536, which costs less than 1/256 level.
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
def _ring_row(y, height, radius, pitch):
    """Offset in `ring` of row `y`, reflected into the view without repeating the border."""
    y = abs(y)
    y = 2 * (height - 1) - y if y >= height else y
    return y % (2 * radius + 1) * 3 * pitch


@inline_jit(forceinline=True)
def _blur_down(ring, y, size, pitch, radius, weights, slots, line):
    """Blur row `y` vertically, from `ring` to `line`, and reflect its ends.

    `size`: the view's height and width. `slots` (2 · (R + 1),) int64 receives the offsets in `ring`
    of the rows y - k and y + k.
    """
    height, width = size
    # 1. Where the rows of the window are.
    for k in range(radius + 1):
        slots[2 * k] = _ring_row(y - k, height, radius, pitch)
        slots[2 * k + 1] = _ring_row(y + k, height, radius, pitch)
    # 2. Weighted sums, 32 pixels at a time. Rows at the same distance share a tap. Each product is
    # floored, which loses half a unit on average; `half_lost` restores it.
    half_lost = broadcast(np.uint16((radius + 1) // 2), 32)
    gap = pitch + 2 * HALO
    for x in range(0, width, 32):
        at = slots[0] + x
        weight = load(weights, 0, 32)
        red = multiply_high(load(ring, at, 32), weight) + half_lost
        green = multiply_high(load(ring, at + pitch, 32), weight) + half_lost
        blue = multiply_high(load(ring, at + 2 * pitch, 32), weight) + half_lost
        for k in range(1, radius + 1):
            at = slots[2 * k] + x
            to = slots[2 * k + 1] + x
            weight = load(weights, 32 * k, 32)
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
    # 3. Reflect `radius` pixels at both ends, for the horizontal blur.
    for channel in range(3):
        start = channel * gap + HALO
        for k in range(1, radius + 1):
            line[start - k] = line[start + k]
            line[start + width - 1 + k] = line[start + width - 1 - k]


@inline_jit(forceinline=True)
def _blur_across(line, width, pitch, radius, weights, row):
    """Blur `line` horizontally into `row`, rounded to whole levels."""
    # What the floored products lose on average, as above, and half a level (64) for rounding.
    rounding = broadcast(np.uint16((radius + 1) // 2 + 64), 32)
    gap = pitch + 2 * HALO
    for x in range(0, width, 32):
        at = HALO + x
        weight = load(weights, 0, 32)
        red = multiply_high(load(line, at, 32), weight) + rounding
        green = multiply_high(load(line, at + gap, 32), weight) + rounding
        blue = multiply_high(load(line, at + 2 * gap, 32), weight) + rounding
        for k in range(1, radius + 1):
            at = HALO + x - k
            to = HALO + x + k
            weight = load(weights, 32 * k, 32)
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
    """Convert whole levels to 1/128 level, uint16, for the blur."""
    return convert(convert(value, np.int32), np.uint16) << np.uint16(7)


def _encode(row, at, normalisation, channel, form, out):
    """Encode `LANES` whole levels of `row` from `at` on in the element type of `out`: uint8 levels
    unchanged, anything else normalised. `form` is a code of `formats`.

    A new dtype is a new branch in the overload below, chosen when `augment_view` is compiled.
    """
    raise NotImplementedError("compiled code only")


@overload(_encode, jit_options={"forceinline": True})
def _encode_overload(row, at, normalisation, channel, form, out):
    """Choose the encoding by the type of `out`: uint16 holds the bits of float16 or bfloat16."""
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
    """`LANES` levels times scale plus offset, `normalisation` (2, 3) float32, of a channel."""
    return load(row, at, LANES) * normalisation[0, channel] + normalisation[1, channel]


@inline_jit(forceinline=True)
def _write_row(row, width, pitch, form, normalisation, tail, out, start, streams):
    """Encode `row` and write its S' pixels to `out` (flat) from `start` on; bypass the caches if
    `streams`."""
    whole = width // LANES * LANES
    for x in range(0, whole, LANES):
        red = _encode(row, x, normalisation, 0, form, out)
        green = _encode(row, pitch + x, normalisation, 1, form, out)
        blue = _encode(row, 2 * pitch + x, normalisation, 2, form, out)
        if streams:
            stream_interleaved(out, start + 3 * x, red, green, blue)
        else:
            store_interleaved(out, start + 3 * x, red, green, blue)
    # The last pixels of a row go through `tail`: memory behind the row may be another thread's.
    if whole < width:
        red = _encode(row, whole, normalisation, 0, form, out)
        green = _encode(row, pitch + whole, normalisation, 1, form, out)
        blue = _encode(row, 2 * pitch + whole, normalisation, 2, form, out)
        store_interleaved(tail, 0, red, green, blue)
        for i in range(3 * (width - whole)):
            out[start + 3 * whole + i] = tail[i]


@inline_jit()
def augment_view(view, size, form, normalisation, masked, scratch, out, start):
    """Augment `scratch.levels` into the flat `out` from `start` on: (S, S', 3). Overwrites the
    levels.

    `view`: the view's columns of the plan row, float32. `size`: S and S'. `form`: a code of
    `formats`. `normalisation` (2, 3) float32: scale and offset from levels, by channel. `masked`
    (x1, y1, x2, y2): whole pixels to zero after normalisation. `scratch`: a `render.Scratch`.
    """
    height, width = size
    levels = scratch.levels
    row = scratch.row
    pitch = row_pitch(size)
    tail = scratch.tail.view(out.dtype)
    lit = view[LIGHTING : LIGHTING + 3]
    ring = scratch.ring
    line = scratch.line
    weights = scratch.blur
    slots = scratch.slots
    jittered = view[JITTER] != 0
    grayed = view[GRAY] != 0
    solarized = view[SOLARIZE] != 0
    sigma = np.float64(view[BLUR_SIGMA])
    order = view[ORDER : ORDER + 4]
    factors = view[FACTORS : FACTORS + 4]
    x1, y1, x2, y2 = masked

    # 1. Lighting moves the offsets of the normalisation. Levels are lit in step 5 instead.
    lit_levels = form == UINT8 and (lit[0] != 0 or lit[1] != 0 or lit[2] != 0)
    for channel in range(3):
        scale = normalisation[0, channel]
        scratch.normalisation[0, channel] = scale
        scratch.normalisation[1, channel] = normalisation[1, channel] + scale * (
            np.float32(255) * lit[channel]
        )
    # 2. Jitter operations before contrast, on the whole view, for the mean that contrast needs.
    contrast_at, rest_at = 0, 0
    mean = np.float32(0.0)
    if jittered:
        while int(order[contrast_at]) != CONTRAST:
            contrast_at += 1
        mean = jitter_until_contrast(
            levels, order, factors, contrast_at, size, pitch, scratch.table
        )
        rest_at = make_table(order, factors, contrast_at, 4, mean, scratch.table)
    radius = 0
    if sigma > 0.0:
        radius = min(math.ceil(3.0 * sigma), min(height, width) - 1)
        _blur_weights(sigma, radius, weights)
    # Streaming stores bypass the caches. A batch is larger than these: ordinary stores would read
    # its memory first and evict the image. Streaming needs whole, aligned cache lines.
    streams = width % LANES == 0 and (out.ctypes.data + start * out.itemsize) % 64 == 0

    # Row `step` is coloured, then row `y` = `step` - radius, which needs `radius` rows below it, is
    # blurred and written.
    for step in range(height + radius):
        # 3. Contrast and the operations after it, then gray, into the ring or the current row.
        if step < height:
            to = _ring_row(step, height, radius, pitch)
            if rest_at > contrast_at:
                replace_levels(levels, 3 * step * pitch, 3 * pitch, scratch.table)
            for x in range(0, pitch, LANES):
                at = 3 * step * pitch + x
                red, green = load_levels(levels, at), load_levels(levels, at + pitch)
                blue = load_levels(levels, at + 2 * pitch)
                if jittered:
                    red, green, blue = jitter(red, green, blue, order, factors, rest_at, 4, mean)
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
        # 4. Blur.
        if radius > 0:
            _blur_down(ring, y, size, pitch, radius, weights, slots, line)
            _blur_across(line, width, pitch, radius, weights, row)
        # 5. Solarise, light, normalise, write, mask. A masked row is written again, so it is not
        # streamed.
        if solarized:
            for x in range(0, 3 * pitch, LANES):
                store(row, x, solarize(load(row, x, LANES)))
        if lit_levels:
            for channel in range(3):
                offset = np.float32(255) * lit[channel]
                for x in range(channel * pitch, (channel + 1) * pitch, LANES):
                    store(row, x, light(load(row, x, LANES), offset))
        begin = start + 3 * y * width
        masked_row = y1 <= y < y2
        _write_row(
            row,
            width,
            pitch,
            form,
            scratch.normalisation,
            tail,
            out,
            begin,
            streams and not masked_row,
        )
        if masked_row:
            out[begin + 3 * x1 : begin + 3 * x2] = 0
    if streams:
        fence()

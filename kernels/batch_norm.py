"""A residual block's BatchNorm in training, with the sum and ReLU that follow it, in as few passes
as it takes.

On a CPU a ResNet's step spends more time on these than on its convolutions, since each passes over
a tensor that no cache holds. Forward: one pass for the statistics, one for the output. Backward:
one for the sums, one for the gradient.

Shapes: G groups, each with statistics of its own, of R rows (pixels) of C channels, flat: (G · R ·
C,), float32, or bfloat16 as uint16; C a multiple of `LANES`. Vectors of C float32 hold what is one
for each channel. Sums are in float64, over `STRIP` rows' sums in float32. `entry` and `parts`: see
`parallel.in_parts`.
"""

import numpy as np
from numba import types
from numba.core.errors import TypingError
from numba.extending import overload

from .compiler.half_precision import bfloat16_bits, from_bfloat16
from .compiler.jit import inline_jit, jit
from .compiler.threads import in_parts
from .compiler.vector import broadcast, load, multiply_add, prefetch, select, store

LANES = 16
"""Channels worked on at a time."""
STRIP = 64
"""Rows summed in float32."""
AHEAD = 2048
"""Elements that are asked of memory before their turn: a core alone does not ask for enough at a
time."""
NO_MASK, MASK_BY_INPUT, MASK_BY_OUTPUT = range(3)
"""Where ReLU let gradients through: everywhere; where the normalised input, or the output, was not
below 0."""


def _values(array, at):
    """`LANES` elements from `at` on, in float32."""
    raise NotImplementedError("compiled code only")


def _put(array, at, values):
    """Write `LANES` values from `at` on, rounded to the array's dtype."""
    raise NotImplementedError("compiled code only")


@overload(_values, jit_options={"forceinline": True})
def _choose_values(array, at):
    if array.dtype == types.float32:
        return lambda array, at: load(array, at, LANES)
    if array.dtype == types.uint16:
        return lambda array, at: from_bfloat16(load(array, at, LANES))
    raise TypingError(f"BatchNorm takes float32 and bfloat16 (as uint16), not {array.dtype}")


@overload(_put, jit_options={"forceinline": True})
def _choose_put(array, at, values):
    if array.dtype == types.float32:
        return lambda array, at, values: store(array, at, values)
    return lambda array, at, values: store(array, at, bfloat16_bits(values))


@inline_jit(allocates=True)
def _moments(part, parts, x, shift, sums):
    """To the part's row of `sums` (parts · 2 · C,) float64: each channel's sum of x - shift, and of
    (x - shift)²."""
    channels = len(shift)
    partial = np.zeros(2 * channels, np.float32)
    total = sums[part * 2 * channels : (part + 1) * 2 * channels]
    begin, end = _rows(part, parts, x, channels)
    for first in range(begin, end, STRIP):
        for row in range(first, min(first + STRIP, end)):
            for c in range(0, channels, LANES):
                at = row * channels + c
                prefetch(x, at + AHEAD)
                value = _values(x, at) - load(shift, c, LANES)
                store(partial, c, load(partial, c, LANES) + value)
                store(
                    partial,
                    channels + c,
                    multiply_add(value, value, load(partial, channels + c, LANES)),
                )
        _flush(partial, total)


@inline_jit()
def _normalise(part, parts, x, mean, scale, bias, residual, relu, out):
    """out = (x - mean) · scale + bias, plus `residual` unless that is empty; then, if `relu`, no
    less than 0."""
    channels = len(mean)
    zero = broadcast(np.float32(0), LANES)
    begin, end = _rows(part, parts, x, channels)
    for row in range(begin, end):
        for c in range(0, channels, LANES):
            at = row * channels + c
            prefetch(x, at + AHEAD)
            value = multiply_add(
                _values(x, at) - load(mean, c, LANES), load(scale, c, LANES), load(bias, c, LANES)
            )
            if len(residual):
                prefetch(residual, at + AHEAD)
                value = value + _values(residual, at)
            if relu:
                value = select(value < np.float32(0), zero, value)  # NaN stays
            _put(out, at, value)


@inline_jit(allocates=True)
def _gradient_sums(part, parts, gradient, x, mean, scale, bias, mask, output, masked, sums):
    """To the part's row of `sums`: each channel's sum of the gradient, and of the gradient times (x
    - mean).

    `mask` says which gradients ReLU lets through. With MASK_BY_OUTPUT these are also written to
    `masked`.
    """
    channels = len(mean)
    partial = np.zeros(2 * channels, np.float32)
    total = sums[part * 2 * channels : (part + 1) * 2 * channels]
    zero = broadcast(np.float32(0), LANES)
    begin, end = _rows(part, parts, x, channels)
    for first in range(begin, end, STRIP):
        for row in range(first, min(first + STRIP, end)):
            for c in range(0, channels, LANES):
                at = row * channels + c
                prefetch(gradient, at + AHEAD)
                prefetch(x, at + AHEAD)
                value, grad = _values(x, at) - load(mean, c, LANES), _values(gradient, at)
                if mask == MASK_BY_INPUT:
                    before = multiply_add(value, load(scale, c, LANES), load(bias, c, LANES))
                    grad = select(before <= np.float32(0), zero, grad)
                elif mask == MASK_BY_OUTPUT:
                    prefetch(output, at + AHEAD)
                    grad = select(_values(output, at) <= np.float32(0), zero, grad)
                    _put(masked, at, grad)
                store(partial, c, load(partial, c, LANES) + grad)
                store(
                    partial,
                    channels + c,
                    multiply_add(value, grad, load(partial, channels + c, LANES)),
                )
        _flush(partial, total)


@inline_jit()
def _input_gradient(part, parts, gradient, x, mean, scale, bias, mask, shift, slope, out):
    """out = scale · (gradient - shift - slope · (x - mean)), the gradient masked if by the input,
    else as given."""
    channels = len(mean)
    zero = broadcast(np.float32(0), LANES)
    begin, end = _rows(part, parts, x, channels)
    for row in range(begin, end):
        for c in range(0, channels, LANES):
            at = row * channels + c
            prefetch(gradient, at + AHEAD)
            prefetch(x, at + AHEAD)
            by = load(scale, c, LANES)
            value, grad = _values(x, at) - load(mean, c, LANES), _values(gradient, at)
            if mask == MASK_BY_INPUT:
                grad = select(
                    multiply_add(value, by, load(bias, c, LANES)) <= np.float32(0), zero, grad
                )
            _put(out, at, (grad - load(shift, c, LANES) - load(slope, c, LANES) * value) * by)


@inline_jit()
def _add(part, parts, a, b, out):
    begin, end = _rows(part, parts, a, LANES)
    for at in range(begin * LANES, end * LANES, LANES):
        prefetch(a, at + AHEAD)
        prefetch(b, at + AHEAD)
        _put(out, at, _values(a, at) + _values(b, at))


@inline_jit()
def _rows(part, parts, x, channels):
    """Where a part's rows begin and end."""
    rows = len(x) // channels
    return rows * part // parts, rows * (part + 1) // parts


@inline_jit()
def _flush(partial, total):
    """Move a strip's sums to those in float64."""
    for i in range(len(partial)):
        total[i] += partial[i]
        partial[i] = 0


@jit(allocates=True)
def normalise(entry, parts, x, weight, bias, eps, residual, relu, mean, variance, out):
    """BatchNorm, plus `residual` unless that is empty; then, if `relu`, no less than 0. Writes
    `out`, of x's shape.

    Writes `mean` and the biased `variance` of each group, (G · C,) float32, as well.
    """
    channels, groups = len(weight), len(mean) // len(weight)
    size = len(x) // groups
    scale, sums = np.empty(channels, np.float32), np.empty(parts * 2 * channels)
    for group in range(groups):
        own = slice(group * channels, (group + 1) * channels)
        pixels = slice(group * size, (group + 1) * size)
        # The first row, near the means, keeps the squares from drowning what they are to tell.
        shift = mean[own]
        for c in range(0, channels, LANES):
            store(shift, c, _values(x, group * size + c))
        sums[:] = 0
        in_parts(entry, parts, _moments, (x[pixels], shift, sums))
        for c in range(channels):
            first, second = _both_sums(sums, parts, channels, c, size // channels)
            variance[own][c] = max(second - first * first, 0)
            mean[own][c] += first
            scale[c] = weight[c] / np.sqrt(variance[own][c] + eps)
        arguments = (x[pixels], mean[own], scale, bias, residual[pixels], relu, out[pixels])
        in_parts(entry, parts, _normalise, arguments)


@jit(allocates=True)
def gradients(
    entry,
    parts,
    gradient,
    x,
    weight,
    bias,
    eps,
    mean,
    variance,
    mask,
    output,
    masked,
    of_weight,
    of_bias,
    out,
):
    """From the gradient of what `normalise` wrote to that of its input, to `out`, both of x's
    shape.

    `mask`: which gradients ReLU let through, by `output` where that needs it: then the gradients
    let through, which are the residual's, go to `masked`. `mean`, `variance`: as written. The sums
    over all groups of weight's and bias's gradients are added to `of_weight` and `of_bias`.
    """
    channels, groups = len(weight), len(mean) // len(weight)
    size = len(x) // groups
    scale, shift, slope = (
        np.empty(channels, np.float32),
        np.empty(channels, np.float32),
        np.empty(channels, np.float32),
    )
    sums = np.empty(parts * 2 * channels)
    for group in range(groups):
        own = slice(group * channels, (group + 1) * channels)
        pixels = slice(group * size, (group + 1) * size)
        for c in range(channels):
            scale[c] = weight[c] / np.sqrt(variance[own][c] + eps)
        sums[:] = 0
        known = (x[pixels], mean[own], scale, bias, mask)
        in_parts(
            entry,
            parts,
            _gradient_sums,
            (gradient[pixels], *known, output[pixels], masked[pixels], sums),
        )
        for c in range(channels):
            first, second = _both_sums(sums, parts, channels, c, size // channels)
            inverse = 1 / np.sqrt(variance[own][c] + eps)
            of_bias[c] += first * (size // channels)
            of_weight[c] += second * (size // channels) * inverse
            shift[c], slope[c] = first, second * inverse * inverse
        let_through = masked[pixels] if mask == MASK_BY_OUTPUT else gradient[pixels]
        in_parts(entry, parts, _input_gradient, (let_through, *known, shift, slope, out[pixels]))


@jit()
def add(entry, parts, a, b, out):
    """out = a + b, of any shape whose size is a multiple of `LANES`."""
    in_parts(entry, parts, _add, (a, b, out))


@inline_jit()
def _both_sums(sums, parts, channels, c, rows):
    """A channel's two sums over all parts, over the number of rows."""
    first = second = 0.0
    for part in range(parts):
        first += sums[2 * part * channels + c]
        second += sums[(2 * part + 1) * channels + c]
    return first / rows, second / rows

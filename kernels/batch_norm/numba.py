"""BatchNorm in training, fused with the residual sum and ReLU after it, for CPUs.

Unfused, each of the three passes over a tensor larger than the caches. Fused, the forward takes one
pass for the statistics and one for the output; the backward one for the sums and one for the
gradient.

Shapes: G groups, each with its own statistics; R rows (images times pixels) a group; C channels, a
multiple of `LANES`. Tensors are flat: (G · R · C,), float32, or bfloat16 as uint16. Per-channel
vectors are (C,) float32. Sums are float64, of partial sums over `STRIP` rows in float32.
Multithreading (`entry`, `part`, `parts`): see `compiler.threads.in_parts`. Part kernels work on one
group: (R · C,).
"""

import numpy as np
from numba import types
from numba.core.errors import TypingError
from numba.extending import overload

from ..compiler.half_precision import bfloat16_bits, from_bfloat16
from ..compiler.jit import inline_jit, jit
from ..compiler.threads import in_parts
from ..compiler.vector import broadcast, load, multiply_add, prefetch, select, store

LANES = 16
"""Channels in a vector."""
STRIP = 64
"""Rows summed in float32 before the sum moves to float64."""
AHEAD = 2048
"""Prefetch distance, in elements: the hardware prefetcher alone does not saturate the memory."""
NO_MASK, MASK_BY_INPUT, MASK_BY_OUTPUT = range(3)
"""How ReLU masks gradients: not at all; where the normalised input, recomputed, is at most 0; or
where the stored output is at most 0."""


def _values(array, at):
    """Load `LANES` elements from `at`, as float32."""
    raise NotImplementedError("compiled code only")


def _put(array, at, values):
    """Store `LANES` float32 values from `at`, rounded to the array's dtype."""
    raise NotImplementedError("compiled code only")


@overload(_values, jit_options={"forceinline": True})
def _choose_values(array, at):
    if array.dtype == types.float32:
        return lambda array, at: load(array, at, LANES)
    if array.dtype == types.uint16:
        return lambda array, at: from_bfloat16(load(array, at, LANES))
    raise TypingError(f"BatchNorm takes float32 or bfloat16 (as uint16), got {array.dtype}.")


@overload(_put, jit_options={"forceinline": True})
def _choose_put(array, at, values):
    if array.dtype == types.float32:
        return lambda array, at, values: store(array, at, values)
    return lambda array, at, values: store(array, at, bfloat16_bits(values))


@inline_jit(allocates=True)
def _moments(part, parts, x, shift, sums):
    """Sum x - shift and (x - shift)² over a part's rows, into its row of `sums`.

    `x` (R · C,); `shift` (C,) float32; `sums` (parts · 2 · C,) float64, the first sums then the
    second.
    """
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
    """Compute out = (x - mean) · scale + bias + residual, then ReLU if `relu`.

    `x`, `out` (R · C,); `residual` (R · C,) or empty; `mean`, `scale`, `bias` (C,) float32.
    """
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
                value = select(value < np.float32(0), zero, value)  # keeps NaN
            _put(out, at, value)


@inline_jit(allocates=True)
def _gradient_sums(part, parts, gradient, x, mean, scale, bias, mask, output, masked, sums):
    """Sum the masked gradient, and it times (x - mean), over a part's rows, into its row of `sums`.

    `gradient`, `x` (R · C,); `mean`, `scale`, `bias` (C,) float32; `sums` (parts · 2 · C,) float64.
    With MASK_BY_OUTPUT, `output` (R · C,) is read and the masked gradient is written to `masked`
    (R · C,); otherwise both may be empty.
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
    """Compute out = scale · (gradient - shift - slope · (x - mean)).

    `gradient`, `x`, `out` (R · C,); the others (C,) float32. The gradient is masked here only with
    MASK_BY_INPUT.
    """
    channels = len(mean)
    zero = broadcast(np.float32(0), LANES)
    begin, end = _rows(part, parts, x, channels)
    for row in range(begin, end):
        for c in range(0, channels, LANES):
            at = row * channels + c
            prefetch(gradient, at + AHEAD)
            prefetch(x, at + AHEAD)
            factor = load(scale, c, LANES)
            value, grad = _values(x, at) - load(mean, c, LANES), _values(gradient, at)
            if mask == MASK_BY_INPUT:
                grad = select(
                    multiply_add(value, factor, load(bias, c, LANES)) <= np.float32(0), zero, grad
                )
            _put(out, at, (grad - load(shift, c, LANES) - load(slope, c, LANES) * value) * factor)


@inline_jit()
def _add(part, parts, a, b, out):
    """Compute out = a + b for a part of flat arrays."""
    begin, end = _rows(part, parts, a, LANES)
    for at in range(begin * LANES, end * LANES, LANES):
        prefetch(a, at + AHEAD)
        prefetch(b, at + AHEAD)
        _put(out, at, _values(a, at) + _values(b, at))


@inline_jit()
def _rows(part, parts, x, channels):
    """First row of a part, and the first after it."""
    rows = len(x) // channels
    return rows * part // parts, rows * (part + 1) // parts


@inline_jit()
def _flush(partial, total):
    """Add `partial` float32 to `total` float64, and set it to zero."""
    for i in range(len(partial)):
        total[i] += partial[i]
        partial[i] = 0


@jit(allocates=True)
def normalise(entry, parts, x, weight, bias, eps, residual, relu, mean, variance, out):
    """BatchNorm in training, plus `residual` unless that is empty, then ReLU if `relu`.

    Reads `x` (G · R · C,), `weight` and `bias` (C,) float32, `eps`, and `residual`, of x's shape or
    empty. Writes `out`, of x's shape, and each group's `mean` and biased `variance`, (G · C,)
    float32.
    """
    channels, groups = len(weight), len(mean) // len(weight)
    size = len(x) // groups
    scale, sums = np.empty(channels, np.float32), np.empty(parts * 2 * channels)
    for group in range(groups):
        own = slice(group * channels, (group + 1) * channels)
        pixels = slice(group * size, (group + 1) * size)
        # Shift by the first row, so that E[x²] - E[x]² does not cancel.
        shift = mean[own]
        for c in range(0, channels, LANES):
            store(shift, c, _values(x, group * size + c))
        # First pass: the moments.
        sums[:] = 0
        in_parts(entry, parts, _moments, (x[pixels], shift, sums))
        for c in range(channels):
            first, second = _means(sums, parts, channels, c, size // channels)
            variance[own][c] = max(second - first * first, 0)
            mean[own][c] += first
            scale[c] = weight[c] / np.sqrt(variance[own][c] + eps)
        # Second pass: the output.
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
    """Backward of `normalise`: from `gradient`, that of its output, to `out`, that of its input.

    `gradient`, `x`, `out` (G · R · C,); `weight`, `bias` (C,) float32; `mean`, `variance` (G · C,)
    float32, as `normalise` wrote them. `mask`: how ReLU masks the gradient. With MASK_BY_OUTPUT,
    `output` is the forward's and the masked gradient, which is the residual's, is written to
    `masked`. The gradients of weight and bias are added to `of_weight` and `of_bias` (C,).
    """
    channels, groups = len(weight), len(mean) // len(weight)
    size = len(x) // groups
    scale = np.empty(channels, np.float32)
    shift = np.empty(channels, np.float32)
    slope = np.empty(channels, np.float32)
    sums = np.empty(parts * 2 * channels)
    for group in range(groups):
        own = slice(group * channels, (group + 1) * channels)
        pixels = slice(group * size, (group + 1) * size)
        for c in range(channels):
            scale[c] = weight[c] / np.sqrt(variance[own][c] + eps)
        # First pass: the sums.
        sums[:] = 0
        known = (x[pixels], mean[own], scale, bias, mask)
        in_parts(
            entry,
            parts,
            _gradient_sums,
            (gradient[pixels], *known, output[pixels], masked[pixels], sums),
        )
        for c in range(channels):
            first, second = _means(sums, parts, channels, c, size // channels)
            inverse = 1 / np.sqrt(variance[own][c] + eps)
            of_bias[c] += first * (size // channels)
            of_weight[c] += second * (size // channels) * inverse
            shift[c], slope[c] = first, second * inverse * inverse
        # Second pass: the input's gradient.
        passed = masked[pixels] if mask == MASK_BY_OUTPUT else gradient[pixels]
        in_parts(entry, parts, _input_gradient, (passed, *known, shift, slope, out[pixels]))


@jit()
def add(entry, parts, a, b, out):
    """Compute out = a + b: flat arrays of one size, a multiple of `LANES`."""
    in_parts(entry, parts, _add, (a, b, out))


@inline_jit()
def _means(sums, parts, channels, c, rows):
    """A channel's two sums over all parts, divided by the number of rows."""
    first = second = 0.0
    for part in range(parts):
        first += sums[2 * part * channels + c]
        second += sums[(2 * part + 1) * channels + c]
    return first / rows, second / rows

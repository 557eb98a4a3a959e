"""The six Triton kernels of BatchNorm; `triton` launches them.

Common arguments: tensors are channels-last, flat (G · R · C,): `groups` G, each with its own
statistics; `rows` R, the images of a group times their pixels; `channels` C. A program has a tile
of TILE_CHANNELS channels and `chunk` rows of one group, a multiple of TILE_ROWS; there are `chunks`
of these a group, and `tiles` of channels. EVEN: C is a multiple of TILE_CHANNELS. DEEP: vectors of
16 bytes that a thread has of a tile, whose rows it sums without exchanging them with others.

Programs are numbered in the order of memory. `moments` and `gradient_sums` go upward, `normalise`
and `input_gradient` downward, so that these start with what the L2 cache still holds.

Arithmetic and sums are float32. `partials` (2, G, chunks, C) holds what the programs of a pass
found; `statistics` and `gradient_means` join it, without an atomic sum, so that the result is the
same every time.

Shape suffixes: R rows of a tile, C its channels, S slots (rows that different threads sum), G
groups, P chunks.
"""

import triton
import triton.language as tl

NO_MASK = tl.constexpr(0)
MASK_BY_INPUT = tl.constexpr(1)
MASK_BY_OUTPUT = tl.constexpr(2)
"""How ReLU masks gradients: as in the Numba kernels."""


SAMPLES = tl.constexpr(8)
"""Rows of a chunk near whose mean its moments are summed: one that lies far from all others moves
it by an eighth."""


@triton.jit
def _place(
    number, rows, channels, chunk, chunks, tiles, TILE_CHANNELS: tl.constexpr
):  # fmt: skip
    """The place of a program's tile in the tensor.

    Returns (group, chunk, c (C,), c's mask (C,), first element as int64, rows in the chunk).
    """
    tile = number % tiles
    part = (number // tiles) % chunks
    group = number // (tiles * chunks)
    first = part * chunk
    c = tile * TILE_CHANNELS + tl.arange(0, TILE_CHANNELS)
    begin = (group.to(tl.int64) * rows + first) * channels
    return group, part, c, c < channels, begin, tl.minimum(chunk, rows - first)


@triton.jit
def _tile(r, c, inside, start, count, channels, EVEN: tl.constexpr):
    """Offsets from the chunk's first element of a tile's elements (R, C), and their mask."""
    row = start + r
    offset = row[:, None] * channels + c[None, :]
    mask = (row < count)[:, None]
    if not EVEN:
        mask = mask & inside[None, :]
    return offset, mask


@triton.jit
def _sum_rows(values, DEEP: tl.constexpr):
    """Sum (R, C) over the rows that one thread holds: (S, C)."""
    R: tl.constexpr = values.shape[0]
    C: tl.constexpr = values.shape[1]
    return tl.sum(tl.reshape(values, (DEEP, R // DEEP, C)), 0)


@triton.jit
def _load_channels(vector, c, inside, EVEN: tl.constexpr):
    """Load per-channel numbers (C,)."""
    if EVEN:
        return tl.load(vector + c)
    else:
        return tl.load(vector + c, mask=inside, other=0.0)


@triton.jit(do_not_specialize=["rows", "chunk", "chunks", "tiles", "groups"])
def moments(
    x, partials, groups, rows, channels, chunk, chunks, tiles,
    TILE_ROWS: tl.constexpr, TILE_CHANNELS: tl.constexpr, EVEN: tl.constexpr, DEEP: tl.constexpr,
):  # fmt: skip
    """Each chunk's mean and sum of squares about it, into `partials`."""
    group, part, c, inside, begin, count = _place(
        tl.program_id(0), rows, channels, chunk, chunks, tiles, TILE_CHANNELS
    )
    x += begin
    r = tl.arange(0, TILE_ROWS)
    # Shift by the mean of a few rows, so that E[x²] - E[x]² does not cancel. Every thread reads its
    # own channels of them: a sum over warps, through shared memory, is as slow as reading 16 tiles.
    shift = tl.zeros((TILE_CHANNELS,), tl.float32)
    for sample in tl.static_range(SAMPLES):
        row = x + sample * count // SAMPLES * channels
        shift += _load_channels(row, c, inside, EVEN).to(tl.float32) / SAMPLES
    first = tl.zeros((TILE_ROWS // DEEP, TILE_CHANNELS), tl.float32)
    second = tl.zeros((TILE_ROWS // DEEP, TILE_CHANNELS), tl.float32)
    for start in range(0, count, TILE_ROWS):
        offset, mask = _tile(r, c, inside, start, count, channels, EVEN)
        values = tl.load(x + offset, mask=mask, other=0.0).to(tl.float32)
        values = tl.where(mask, values - shift[None, :], 0.0)
        first += _sum_rows(values, DEEP)
        second += _sum_rows(values * values, DEEP)
    away = tl.sum(first, 0) / count.to(tl.float32)
    squares = tl.maximum(tl.sum(second, 0) - tl.sum(first, 0) * away, 0.0)
    squares = tl.where(away == away, squares, away)  # maximum drops NaN
    place = (group * chunks + part).to(tl.int64) * channels
    half = (groups * chunks).to(tl.int64) * channels
    tl.store(partials + place + c, shift + away, mask=inside)
    tl.store(partials + half + place + c, squares, mask=inside)


@triton.jit
def _load_partials(
    partials, first_group, c, inside, groups, channels, chunks,
    GROUPS: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Load both partial results (G, P, C) of the groups from `first_group` on, zero outside.

    Returns (first, second, part (1, P, 1)).
    """
    g = first_group + tl.arange(0, GROUPS)[:, None, None]
    part = tl.arange(0, CHUNKS)[None, :, None]
    offset = (g * chunks + part) * channels + c[None, None, :]
    mask = (g < groups) & (part < chunks) & inside[None, None, :]
    half = groups * chunks * channels
    first = tl.load(partials + offset, mask=mask, other=0.0)
    second = tl.load(partials + half + offset, mask=mask, other=0.0)
    return first, second, part


@triton.jit(do_not_specialize=["rows", "chunk", "chunks", "groups"])
def statistics(
    partials, mean, inverse, running_mean, running_var, batches,
    momentum, eps, groups, rows, channels, chunk, chunks,
    GROUPS: tl.constexpr, CHUNKS: tl.constexpr, CHANNELS: tl.constexpr, COUNTED: tl.constexpr,
):  # fmt: skip
    """Join the moments: each group's `mean` and `inverse` deviation (G, C).

    Moves the running statistics to the mean of the groups' individual updates, and adds 1 to
    `batches` if COUNTED. CHUNKS: `chunks`, rounded up to a power of two.
    """
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inside = c < channels
    all_means = tl.zeros((CHANNELS,), tl.float32)
    all_variances = tl.zeros((CHANNELS,), tl.float32)
    size = rows.to(tl.float32)
    for first_group in range(0, groups, GROUPS):
        means, squares, part = _load_partials(
            partials, first_group, c, inside, groups, channels, chunks, GROUPS, CHUNKS
        )
        count = tl.minimum(tl.maximum(rows - part * chunk, 0), chunk).to(tl.float32)
        # Chan's formula: squares about the chunk's own mean, and the means' distance from the
        # group's.
        group_mean = tl.sum(means * count, 1) / size
        away = means - group_mean[:, None, :]
        variance = tl.sum(squares + count * away * away, 1) / size
        g = first_group + tl.arange(0, GROUPS)[:, None]
        offset = g * channels + c[None, :]
        mask = (g < groups) & inside[None, :]
        tl.store(mean + offset, group_mean, mask=mask)
        tl.store(inverse + offset, tl.div_rn(1.0, tl.sqrt_rn(variance + eps)), mask=mask)
        all_means += tl.sum(tl.where(mask, group_mean, 0.0), 0)
        all_variances += tl.sum(tl.where(mask, variance, 0.0), 0)
    before = tl.load(running_mean + c, mask=inside, other=0.0)
    after = before + momentum * (all_means / groups - before)
    tl.store(running_mean + c, after, mask=inside)
    before = tl.load(running_var + c, mask=inside, other=0.0)
    # As in torch, the running variance is unbiased, while the batch's is not.
    unbiased = all_variances / groups * (size / (rows - 1))
    tl.store(running_var + c, before + momentum * (unbiased - before), mask=inside)
    if COUNTED and tl.program_id(0) == 0:
        tl.store(batches, tl.load(batches) + 1)


@triton.jit
def _scale_and_means(weight, bias, mean, inverse, group, channels, c, inside, EVEN: tl.constexpr):
    """A group's scale, bias and mean (C,)."""
    own = group.to(tl.int64) * channels
    scale = _load_channels(weight, c, inside, EVEN)
    scale *= _load_channels(inverse + own, c, inside, EVEN)
    centre = _load_channels(mean + own, c, inside, EVEN)
    return scale[None, :], _load_channels(bias, c, inside, EVEN)[None, :], centre[None, :]


@triton.jit(do_not_specialize=["rows", "chunk", "chunks", "tiles"])
def normalise(
    x, residual, weight, bias, mean, inverse, out, rows, channels, chunk, chunks, tiles,
    HAS_RESIDUAL: tl.constexpr, RELU: tl.constexpr,
    TILE_ROWS: tl.constexpr, TILE_CHANNELS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Compute out = (x - mean) · weight · inverse + bias + residual, then ReLU if RELU."""
    group, _, c, inside, begin, count = _place(
        tl.num_programs(0) - 1 - tl.program_id(0),
        rows, channels, chunk, chunks, tiles, TILE_CHANNELS,
    )  # fmt: skip
    scale, shift, centre = _scale_and_means(
        weight, bias, mean, inverse, group, channels, c, inside, EVEN
    )
    x += begin
    residual += begin
    out += begin
    r = tl.arange(0, TILE_ROWS)
    for start in range(0, count, TILE_ROWS):
        offset, mask = _tile(r, c, inside, start, count, channels, EVEN)
        value = tl.load(x + offset, mask=mask, other=0.0).to(tl.float32) - centre
        value = tl.fma(value, scale, shift)
        if HAS_RESIDUAL:
            value += tl.load(residual + offset, mask=mask, other=0.0).to(tl.float32)
        if RELU:
            value = tl.where(value < 0, 0.0, value)  # keeps NaN
        tl.store(out + offset, value.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows", "chunk", "chunks", "tiles", "groups"])
def gradient_sums(
    gradient, x, output, masked, weight, bias, mean, inverse, partials,
    groups, rows, channels, chunk, chunks, tiles,
    MASK: tl.constexpr,
    TILE_ROWS: tl.constexpr, TILE_CHANNELS: tl.constexpr, EVEN: tl.constexpr, DEEP: tl.constexpr,
):  # fmt: skip
    """Each chunk's sums of the masked gradient and of it times (x - mean), into `partials`.

    With MASK_BY_OUTPUT, `output` is read and the masked gradient is written to `masked`.
    """
    group, part, c, inside, begin, count = _place(
        tl.program_id(0), rows, channels, chunk, chunks, tiles, TILE_CHANNELS
    )
    scale, shift, centre = _scale_and_means(
        weight, bias, mean, inverse, group, channels, c, inside, EVEN
    )
    x += begin
    gradient += begin
    output += begin
    masked += begin
    r = tl.arange(0, TILE_ROWS)
    first = tl.zeros((TILE_ROWS // DEEP, TILE_CHANNELS), tl.float32)
    second = tl.zeros((TILE_ROWS // DEEP, TILE_CHANNELS), tl.float32)
    for start in range(0, count, TILE_ROWS):
        offset, mask = _tile(r, c, inside, start, count, channels, EVEN)
        slope = tl.load(gradient + offset, mask=mask, other=0.0)
        if MASK == MASK_BY_OUTPUT:
            after = tl.load(output + offset, mask=mask, other=0.0)
            slope = tl.where(after.to(tl.float32) <= 0, 0.0, slope).to(gradient.dtype.element_ty)
            tl.store(masked + offset, slope, mask=mask)
        value = tl.load(x + offset, mask=mask, other=0.0).to(tl.float32) - centre
        slope = slope.to(tl.float32)
        if MASK == MASK_BY_INPUT:
            slope = tl.where(tl.fma(value, scale, shift) <= 0, 0.0, slope)
        first += _sum_rows(slope, DEEP)
        second += _sum_rows(tl.where(mask, slope * value, 0.0), DEEP)
    place = (group * chunks + part).to(tl.int64) * channels
    half = (groups * chunks).to(tl.int64) * channels
    tl.store(partials + place + c, tl.sum(first, 0), mask=inside)
    tl.store(partials + half + place + c, tl.sum(second, 0), mask=inside)


@triton.jit(do_not_specialize=["rows", "chunks", "groups"])
def gradient_means(
    partials, inverse, shift, slope, of_weight, of_bias, groups, rows, channels, chunks,
    GROUPS: tl.constexpr, CHUNKS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Join the gradient's sums: each group's `shift` and `slope` (G, C) of its input's gradient.

    Writes the gradients of weight and bias (C,), sums over the groups. CHUNKS: as in `statistics`.
    """
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inside = c < channels
    weights = tl.zeros((CHANNELS,), tl.float32)
    biases = tl.zeros((CHANNELS,), tl.float32)
    size = rows.to(tl.float32)
    for first_group in range(0, groups, GROUPS):
        first, second, _ = _load_partials(
            partials, first_group, c, inside, groups, channels, chunks, GROUPS, CHUNKS
        )
        first = tl.sum(first, 1)
        second = tl.sum(second, 1)
        g = first_group + tl.arange(0, GROUPS)[:, None]
        offset = g * channels + c[None, :]
        mask = (g < groups) & inside[None, :]
        factor = tl.load(inverse + offset, mask=mask, other=0.0)
        tl.store(shift + offset, first / size, mask=mask)
        tl.store(slope + offset, second / size * factor * factor, mask=mask)
        biases += tl.sum(first, 0)
        weights += tl.sum(second * factor, 0)
    tl.store(of_weight + c, weights, mask=inside)
    tl.store(of_bias + c, biases, mask=inside)


@triton.jit(do_not_specialize=["rows", "chunk", "chunks", "tiles"])
def input_gradient(
    gradient, x, weight, bias, mean, inverse, shift, slope, out,
    rows, channels, chunk, chunks, tiles,
    MASK: tl.constexpr,
    TILE_ROWS: tl.constexpr, TILE_CHANNELS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Compute out = weight · inverse · (gradient - shift - slope · (x - mean)).

    The gradient is masked here only with MASK_BY_INPUT.
    """
    group, _, c, inside, begin, count = _place(
        tl.num_programs(0) - 1 - tl.program_id(0),
        rows, channels, chunk, chunks, tiles, TILE_CHANNELS,
    )  # fmt: skip
    scale, constant, centre = _scale_and_means(
        weight, bias, mean, inverse, group, channels, c, inside, EVEN
    )
    own = group.to(tl.int64) * channels
    level = _load_channels(shift + own, c, inside, EVEN)[None, :]
    factor = _load_channels(slope + own, c, inside, EVEN)[None, :]
    x += begin
    gradient += begin
    out += begin
    r = tl.arange(0, TILE_ROWS)
    for start in range(0, count, TILE_ROWS):
        offset, mask = _tile(r, c, inside, start, count, channels, EVEN)
        value = tl.load(x + offset, mask=mask, other=0.0).to(tl.float32) - centre
        grad = tl.load(gradient + offset, mask=mask, other=0.0).to(tl.float32)
        if MASK == MASK_BY_INPUT:
            grad = tl.where(tl.fma(value, scale, constant) <= 0, 0.0, grad)
        grad = (grad - level - factor * value) * scale
        tl.store(out + offset, grad.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows", "chunk", "chunks", "tiles"])
def fork_gradient(
    gradient, residual, out, rows, channels, chunk, chunks, tiles, height, width,
    STRIDE: tl.constexpr,
    TILE_ROWS: tl.constexpr, TILE_CHANNELS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Compute out = gradient, plus `residual` at every STRIDE-th row and column of pixels.

    `gradient` and `out` hold images of `height` x `width` pixels, `rows` in all, as one group;
    `residual` images of their pixels at multiples of STRIDE.
    """
    _, part, c, inside, begin, count = _place(
        tl.program_id(0), rows, channels, chunk, chunks, tiles, TILE_CHANNELS
    )
    r = tl.arange(0, TILE_ROWS)
    for start in range(0, count, TILE_ROWS):
        offset, mask = _tile(r, c, inside, start, count, channels, EVEN)
        total = tl.load(gradient + begin + offset, mask=mask, other=0.0).to(tl.float32)
        pixel = part * chunk + start + r
        x = pixel % width
        line = pixel // width  # of all images' lines
        y = line % height
        line = line // height * tl.cdiv(height, STRIDE) + y // STRIDE
        pixel = line.to(tl.int64) * tl.cdiv(width, STRIDE) + x // STRIDE
        taken = mask & ((x % STRIDE == 0) & (y % STRIDE == 0))[:, None]
        place = residual + pixel[:, None] * channels + c[None, :]
        total += tl.load(place, mask=taken, other=0.0).to(tl.float32)
        tl.store(out + begin + offset, total.to(out.dtype.element_ty), mask=mask)

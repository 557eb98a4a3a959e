"""The three Triton kernels of augmentation: `gray_sums`, `colour` and `blur`; `triton.augment`
launches them.

Levels are whole numbers in float32, raised by 2**23 during the jitter, and every operation rounds
where torchvision's uint8 operators do. `gray_sums` and `colour` must be compiled with
`enable_fp_fusion=False`: a fused multiply-add could move a gray pixel's blend across the whole
number at which it is truncated.

Common arguments: `views` uint8 (V, N, S, S, 3) with its strides; `parameters` float32 (V, N,
VIEW_FLOATS), the views' columns of the plan, with its strides; `box` float32 (boxes, 4), the masked
boxes of the first `boxes` views; `first_view` the number of the launch's first view, v · N + n;
`batch` N; `out` (V, N, S, S, 3) dense.

Shape suffixes: G groups, P pixels of a group (16; 8 in `blur`), Y and X rows and columns of a blur
tile, K rows or columns of the tile with its halo, C a tile's width of columns among these.
"""

import math

import triton
import triton.language as tl

from .. import plan, views
from .triton_colour import CONTRAST, gray_level, invert, jitter_once, lower, round_even, to_byte
from .triton_pixels import load_levels, store_pixels

FLIP = tl.constexpr(plan.FLIP)
JITTER = tl.constexpr(plan.JITTER)
ORDER = tl.constexpr(plan.ORDER)
FACTORS = tl.constexpr(plan.FACTORS)
GRAY = tl.constexpr(plan.GRAY)
BLUR_SIGMA = tl.constexpr(plan.BLUR_SIGMA)
SOLARIZE = tl.constexpr(plan.SOLARIZE)
LIGHTING = tl.constexpr(plan.LIGHTING)
MEAN_RED = tl.constexpr(views.IMAGENET_MEAN[0])
MEAN_GREEN = tl.constexpr(views.IMAGENET_MEAN[1])
MEAN_BLUE = tl.constexpr(views.IMAGENET_MEAN[2])
DEVIATION_RED = tl.constexpr(views.IMAGENET_STD[0])
DEVIATION_GREEN = tl.constexpr(views.IMAGENET_STD[1])
LOG2_E = tl.constexpr(math.log2(math.e))
DEVIATION_BLUE = tl.constexpr(views.IMAGENET_STD[2])
HALO = tl.constexpr(16)
"""Rows and columns around a blur tile: at least the radius of the widest blur (15); 16 bytes of
levels, so that loads stay aligned."""
TILE = tl.constexpr(32)
"""Side of a blur tile in pixels. With the halo it is 64, a power of two as `tl.dot` needs."""


@triton.jit
def _finish(
    level, lighting, masked, MEAN: tl.constexpr, DEVIATION: tl.constexpr, DTYPE: tl.constexpr
):
    """Light whole levels and convert them to the output's dtype: normalised and masked, or clamped
    and rounded for uint8."""
    if DTYPE == tl.uint8:  # noqa: SIM300
        level = tl.minimum(tl.maximum(level + 255 * lighting + 0.5, 0.0), 255.0)
        return level.to(tl.int32).to(tl.uint8)
    else:
        offset = lighting * (1 / DEVIATION) - MEAN / DEVIATION
        return tl.where(masked, 0.0, level * (1 / (255 * DEVIATION)) + offset).to(DTYPE)


@triton.jit
def _lighting(row, stride_pc):
    """What is added to this view's red, green and blue, of levels scaled to 0..1."""
    light = row + LIGHTING * stride_pc
    return tl.load(light), tl.load(light + stride_pc), tl.load(light + 2 * stride_pc)


@triton.jit
def _masked(box, stride_box, stride_side, view, boxes, y, x):
    """Whether the pixels (y, x) are in this view's masked box; the first `boxes` views have one."""
    sides = box + view.to(tl.int64) * stride_box
    has_box = view < boxes
    x1 = tl.load(sides, mask=has_box, other=0.0)
    y1 = tl.load(sides + stride_side, mask=has_box, other=0.0)
    x2 = tl.load(sides + 2 * stride_side, mask=has_box, other=0.0)
    y2 = tl.load(sides + 3 * stride_side, mask=has_box, other=0.0)
    x, y = x.to(tl.float32), y.to(tl.float32)
    inside = (x >= tl.floor(x1)) & (x < tl.ceil(x2)) & (y >= tl.floor(y1)) & (y < tl.ceil(y2))
    return inside & has_box


@triton.jit
def _row(parameters, stride_v, stride_n, view, batch):
    """Pointer to this view's parameters."""
    return (
        parameters
        + (view // batch).to(tl.int64) * stride_v
        + (view % batch).to(tl.int64) * stride_n
    )


@triton.jit(do_not_specialize=["first_view", "batch"])
def gray_sums(
    views, stride_v, stride_n, stride_y, stride_x, stride_c,
    parameters, stride_pv, stride_pn, stride_pc,
    sums, first_view, batch,
    S: tl.constexpr, GROUPS: tl.constexpr, VECTOR_LOADS: tl.constexpr,
):  # fmt: skip
    """Pass 1: sum the gray levels of jittered views, as they are when contrast has its turn.

    `sums` (views a launch, programs a view) int32: a sum over each program's groups. Grid (programs
    a view, views a launch).
    """
    # 1. Views without jitter need no sums.
    view = first_view + tl.program_id(1)
    row = _row(parameters, stride_pv, stride_pn, view, batch)
    if tl.load(row + JITTER * stride_pc) == 0:
        return
    source = (
        views + (view // batch).to(tl.int64) * stride_v + (view % batch).to(tl.int64) * stride_n
    )
    # 2. Load this program's groups. A mirrored view has the same sums.
    group_G = tl.program_id(0) * GROUPS + tl.arange(0, GROUPS)
    red, green, blue, live_GP = load_levels(
        source, stride_y, stride_x, stride_c, group_G, False, S, VECTOR_LOADS, False
    )
    # 3. The jitter operations before contrast.
    reached = 0
    for step in range(4):
        operation = tl.load(row + (ORDER + step) * stride_pc).to(tl.int32)
        reached = tl.where(operation == CONTRAST, 1, reached)
        if reached == 0:
            factor = tl.load(row + (FACTORS + operation) * stride_pc)
            red, green, blue = jitter_once(red, green, blue, operation, factor, 0.0)
    # 4. Whole gray levels of 2048 pixels sum exactly in float32.
    gray = tl.where(live_GP, lower(gray_level(red, green, blue)), 0.0)
    place = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(sums + place, tl.sum(tl.sum(gray, 1), 0).to(tl.int32))


@triton.jit(do_not_specialize=["first_view", "batch", "boxes"])
def colour(
    views, stride_v, stride_n, stride_y, stride_x, stride_c,
    parameters, stride_pv, stride_pn, stride_pc,
    box, stride_box, stride_side, boxes,
    sums, levels, out, first_view, batch,
    S: tl.constexpr, GROUPS: tl.constexpr, SUMS: tl.constexpr, PITCH: tl.constexpr,
    VECTOR_LOADS: tl.constexpr, VECTOR_STORES: tl.constexpr,
    FLIPPED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Pass 2: colour jitter and gray. An unblurred view is then finished, a blurred one's levels
    are stored for pass 3.

    `sums` as `gray_sums` leaves them. `levels` (views a launch, 3, S, PITCH) uint8, pixel x in
    column HALO + x. `SUMS`: the programs a view, rounded up to a power of two. Grid (programs a
    view, views a launch).
    """
    # 1. Load this program's groups, mirrored where the plan says so.
    DTYPE: tl.constexpr = out.dtype.element_ty
    view = first_view + tl.program_id(1)
    row = _row(parameters, stride_pv, stride_pn, view, batch)
    source = (
        views + (view // batch).to(tl.int64) * stride_v + (view % batch).to(tl.int64) * stride_n
    )
    group_G = tl.program_id(0) * GROUPS + tl.arange(0, GROUPS)
    flip = tl.load(row + FLIP * stride_pc) != 0
    red, green, blue, _ = load_levels(
        source, stride_y, stride_x, stride_c, group_G, flip, S, VECTOR_LOADS, FLIPPED
    )
    # 2. Colour jitter, with contrast's mean from the sums of pass 1; then gray.
    if tl.load(row + JITTER * stride_pc) != 0:
        part = tl.arange(0, SUMS)
        own_sums = sums + tl.program_id(1) * tl.num_programs(0)
        total = tl.sum(tl.load(own_sums + part, mask=part < tl.num_programs(0), other=0), 0)
        mean = tl.div_rn(total.to(tl.float32), tl.full((), S * S, tl.float32))
        for step in range(4):
            operation = tl.load(row + (ORDER + step) * stride_pc).to(tl.int32)
            factor = tl.load(row + (FACTORS + operation) * stride_pc)
            red, green, blue = jitter_once(red, green, blue, operation, factor, mean)
    if tl.load(row + GRAY * stride_pc) != 0:
        gray = gray_level(red, green, blue)
        red, green, blue = gray, gray, gray

    # 3. A blurred view's levels go to the workspace, any other view to the output.
    ROW_GROUPS: tl.constexpr = (S + 15) // 16
    y_G = group_G // ROW_GROUPS
    x_G = group_G % ROW_GROUPS * 16
    if tl.load(row + BLUR_SIGMA * stride_pc) > 0:
        # Columns right of the view are written too, so that every access has 16 bytes; pass 3 gives
        # them weight 0.
        plane = levels + tl.program_id(1).to(tl.int64) * (3 * S * PITCH)
        address = plane + (y_G * PITCH + HALO + x_G)[:, None] + tl.arange(0, 16)[None, :]
        mask = (y_G < S)[:, None]
        tl.store(address, to_byte(red), mask=mask)
        tl.store(address + S * PITCH, to_byte(green), mask=mask)
        tl.store(address + 2 * S * PITCH, to_byte(blue), mask=mask)
    else:
        red, green, blue = lower(red), lower(green), lower(blue)
        if tl.load(row + SOLARIZE * stride_pc) != 0:
            red, green, blue = invert(red), invert(green), invert(blue)
        masked = tl.full((GROUPS, 16), False, tl.int1)
        if MASKED:
            x_GP = x_G[:, None] + tl.arange(0, 16)[None, :]
            masked = _masked(box, stride_box, stride_side, view, boxes, y_G[:, None], x_GP)
        light_red, light_green, light_blue = _lighting(row, stride_pc)
        store_pixels(
            out + view.to(tl.int64) * (S * S * 3),
            y_G,
            x_G,
            _finish(red, light_red, masked, MEAN_RED, DEVIATION_RED, DTYPE),
            _finish(green, light_green, masked, MEAN_GREEN, DEVIATION_GREEN, DTYPE),
            _finish(blue, light_blue, masked, MEAN_BLUE, DEVIATION_BLUE, DTYPE),
            S,
            VECTOR_STORES,
        )


@triton.jit
def _taps(offset, exponent, radius, scale):
    """Weights of the Gaussian at whole `offset`s from its centre, times `scale`; float32, zero
    beyond `radius`. `exponent`: of 2, at an offset of 1."""
    return tl.where(tl.abs(offset) <= radius, tl.exp2(offset * offset * exponent) * scale, 0.0)


@triton.jit
def _halves(x):
    """Split float32 into a sum of two float16, which keeps 22 bits of it."""
    high = x.to(tl.float16)
    return high, (x - high.to(tl.float32)).to(tl.float16)


@triton.jit
def _column_weights(source_K, x_X, edge, exponent, radius, scale, S: tl.constexpr):
    """Weights of the columns `source_K` in the blurred columns `x_X`, both float32: two float16
    (K, X), see `_halves`.

    Reflection at the left and right edge is in the weights, so that loads stay contiguous: a column
    counts for itself and for its mirror images at column 0 and column S - 1. `edge`: whether the
    blurred columns are near one.
    """
    source_K1, x_1X = source_K[:, None], x_X[None, :]
    weights_KX = _taps(source_K1 - x_1X, exponent, radius, scale)
    if edge:
        left_KX = _taps(-source_K1 - x_1X, exponent, radius, scale)
        right_KX = _taps(2 * (S - 1) - source_K1 - x_1X, exponent, radius, scale)
        weights_KX += tl.where(source_K1 > 0, left_KX, 0.0)
        weights_KX += tl.where(source_K1 < S - 1, right_KX, 0.0)
        weights_KX = tl.where((source_K1 >= 0) & (source_K1 < S), weights_KX, 0.0)
    return _halves(weights_KX)


@triton.jit
def _of_pairs(place):
    """The column at each place: of four, the first and the third come first, since the two levels
    at even bytes of a word are a pair of float16 after one operation on bits."""
    return place // 4 * 4 + place % 2 * 2 + place // 2 % 2


@triton.jit
def _blur_columns(
    words, source_K, rows_high, rows_low, columns_high, columns_low, blurred_YX, PITCH: tl.constexpr
):
    """Blur TILE columns of levels in both directions, and add what they give to `blurred_YX`.

    `words` points to four levels an int32; `source_K` are the rows to read. `rows_high`, `rows_low`
    (Y, K) and `columns_high`, `columns_low` (C, X) are the weights, two float16 each. Returns
    float32 (Y, X).
    """
    # 1. Load K rows of C columns, in the order of `_of_pairs`. By words, since the compiler would
    # move single bytes through shared memory one by one.
    word = tl.load(words + source_K[:, None] * (PITCH // 4) + tl.arange(0, TILE // 4)[None, :])
    # Whole levels up to 255 are exact in float16, where these bits are 1024 + level.
    even = (word & 0x00FF00FF) | 0x64006400
    odd = ((word >> 8) & 0x00FF00FF) | 0x64006400
    pairs = tl.join(even, odd)
    halves = tl.join(pairs, pairs >> 16).to(tl.int16)
    levels_KC = tl.reshape(halves, (TILE + 2 * HALO, TILE)).to(tl.float16, bitcast=True) - 1024.0
    # 2. Vertical: (Y, K) weights times (K, C) levels.
    vertical_YC = tl.dot(rows_high, levels_KC)
    vertical_YC = tl.dot(rows_low, levels_KC, vertical_YC)
    # 3. Horizontal: (Y, C) times (C, X) weights. The product of the two low halves is left out.
    high, low = _halves(vertical_YC)
    blurred_YX = tl.dot(low, columns_high, blurred_YX)
    blurred_YX = tl.dot(high, columns_low, blurred_YX)
    return tl.dot(high, columns_high, blurred_YX)


@triton.jit(do_not_specialize=["first_view", "batch", "boxes"])
def blur(
    parameters, stride_pv, stride_pn, stride_pc,
    box, stride_box, stride_side, boxes,
    levels, out, first_view, batch,
    S: tl.constexpr, PITCH: tl.constexpr, TILES: tl.constexpr,
    VECTOR_STORES: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Pass 3: blur, solarise, light, normalise, mask and store the blurred views, `TILES` tiles of
    a column each program.

    `levels` as `colour` leaves them. Grid (columns of tiles, views a launch, parts of a column).

    Each direction is a product with a banded matrix on the tensor cores. Weights and half-blurred
    levels are split into two float16 each, so that the sums are as precise as in float32.
    """
    # 1. Views without blur were finished by pass 2.
    DTYPE: tl.constexpr = out.dtype.element_ty
    view = first_view + tl.program_id(1)
    row = _row(parameters, stride_pv, stride_pn, view, batch)
    sigma = tl.load(row + BLUR_SIGMA * stride_pc)
    if sigma <= 0:
        return
    # 2. The Gaussian. Its radius in float64: rounded to float32, 3·sigma slightly above a whole
    # number may fall on it and lose a tap.
    radius = tl.ceil(sigma.to(tl.float64) * 3.0).to(tl.float32)
    middle = (tl.arange(0, 2 * HALO) - HALO).to(tl.float32)
    exponent = -0.5 * LOG2_E / (sigma * sigma)
    scale = 1.0 / tl.sum(_taps(middle, exponent, radius, 1.0), 0)

    # 3. Banded weight matrices. All tiles share those of the rows. The tile's columns with their
    # halo are in two halves of TILE columns, from x - HALO and from x + HALO on.
    out_T = tl.arange(0, TILE)
    around_K = tl.arange(0, TILE + 2 * HALO) - HALO
    offset_YK = around_K.to(tl.float32)[None, :] - out_T.to(tl.float32)[:, None]
    rows_high, rows_low = _halves(_taps(offset_YK, exponent, radius, scale))
    x = tl.program_id(0) * TILE
    edge = (x < HALO) | (x + TILE + HALO > S)
    x_X = (x + out_T).to(tl.float32)
    column_C = (x + _of_pairs(out_T)).to(tl.float32)
    left_high, left_low = _column_weights(column_C - HALO, x_X, edge, exponent, radius, scale, S)
    right_high, right_low = _column_weights(column_C + HALO, x_X, edge, exponent, radius, scale, S)

    # 4. Where to read and to write.
    solarize = tl.load(row + SOLARIZE * stride_pc) != 0
    light_red, light_green, light_blue = _lighting(row, stride_pc)
    words = (levels + tl.program_id(1).to(tl.int64) * (3 * S * PITCH) + tl.program_id(0) * TILE).to(
        tl.pointer_type(tl.int32)
    )
    target = out + view.to(tl.int64) * (S * S * 3)
    # Groups of 8 pixels: each of the two warps' 64 threads has two of a tile's 128.
    PIXELS: tl.constexpr = 8
    GROUPS: tl.constexpr = TILE * TILE // PIXELS
    y_G = tl.arange(0, GROUPS) // (TILE // PIXELS)
    x_G = tl.program_id(0) * TILE + tl.arange(0, GROUPS) % (TILE // PIXELS) * PIXELS
    x_GP = x_G[:, None] + tl.arange(0, PIXELS)[None, :]
    # float16 holds whole levels exactly, in half the registers.
    red = tl.zeros((TILE, TILE), tl.float16)
    green = red
    # 5. Tiles from top to bottom, one channel after the other in one loop: unrolled, the three
    # would not fit in the registers.
    first = tl.program_id(2) * TILES
    last = tl.minimum(first + TILES, (S + TILE - 1) // TILE)
    for step in range(first * 3, last * 3):
        top, channel = step // 3 * TILE, step % 3
        # Rows are reflected in their addresses. Rows beyond the reflection's reach are clamped:
        # they only feed output rows that are not stored.
        source_K = tl.abs(around_K + top)
        source_K = tl.where(source_K >= S, 2 * (S - 1) - source_K, source_K)
        source_K = tl.maximum(source_K, 0)
        own_words = words + channel * (S * PITCH // 4)
        level = tl.zeros((TILE, TILE), tl.float32)
        level = _blur_columns(
            own_words, source_K, rows_high, rows_low, left_high, left_low, level, PITCH
        )
        level = _blur_columns(
            own_words + TILE // 4,
            source_K,
            rows_high,
            rows_low,
            right_high,
            right_low,
            level,
            PITCH,
        )
        blue = round_even(level).to(tl.float16)
        # Chosen by the channel. Shifted along, `red, green = green, blue`, they came out wrong on
        # hardware: Triton 3.6 and 3.8 take variables that hand values to one another for equal.
        red = tl.where(channel == 0, blue, red)
        green = tl.where(channel == 1, blue, green)
        # 6. After the third channel, finish and store the tile.
        if channel == 2:
            red_GP = tl.reshape(red, (GROUPS, PIXELS)).to(tl.float32)
            green_GP = tl.reshape(green, (GROUPS, PIXELS)).to(tl.float32)
            blue_GP = tl.reshape(blue, (GROUPS, PIXELS)).to(tl.float32)
            if solarize:
                red_GP, green_GP, blue_GP = invert(red_GP), invert(green_GP), invert(blue_GP)
            masked = tl.full((GROUPS, PIXELS), False, tl.int1)
            if MASKED:
                masked = _masked(
                    box, stride_box, stride_side, view, boxes, (y_G + top)[:, None], x_GP
                )
            store_pixels(
                target,
                y_G + top,
                x_G,
                _finish(red_GP, light_red, masked, MEAN_RED, DEVIATION_RED, DTYPE),
                _finish(green_GP, light_green, masked, MEAN_GREEN, DEVIATION_GREEN, DTYPE),
                _finish(blue_GP, light_blue, masked, MEAN_BLUE, DEVIATION_BLUE, DTYPE),
                S,
                VECTOR_STORES,
            )

"""The Triton kernels of max-pooling, 3 x 3 with stride 2 and padding 1, of channels-last tensors.

Shape suffixes: P pixels of a tile, C its channels.
"""

import triton
import triton.language as tl


@triton.jit
def _pixels(number, height, width, PIXELS: tl.constexpr):
    """Image, row and column of a program's pixels, each (P,)."""
    pixel_P = number * PIXELS + tl.arange(0, PIXELS)
    line_P = pixel_P // width
    return line_P // height, line_P % height, pixel_P % width


@triton.jit(do_not_specialize=["pixels", "height", "width", "out_height", "out_width"])
def pool(
    x, out, tap, pixels, height, width, out_height, out_width,
    CHANNELS: tl.constexpr, TILE_CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Write each window's maximum to `out`, and its place in the window, 0 to 8, to `tap`.

    Of equal values the first counts; a NaN is the maximum, as in torch. `pixels`: of `out`.
    """
    image_P, row_P, column_P = _pixels(tl.program_id(0), out_height, out_width, PIXELS)
    c_C = tl.program_id(1) * TILE_CHANNELS + tl.arange(0, TILE_CHANNELS)
    live_PC = (image_P * out_height * out_width < pixels)[:, None] & (c_C < CHANNELS)[None, :]
    best_PC = tl.full((PIXELS, TILE_CHANNELS), float("-inf"), tl.float32)
    # Where all are -inf, the first inside.
    first_P = tl.where(row_P == 0, 3, 0) + tl.where(column_P == 0, 1, 0)
    place_PC = tl.zeros((PIXELS, TILE_CHANNELS), tl.int32) + first_P[:, None]
    for number in tl.static_range(9):
        y_P = 2 * row_P - 1 + number // 3
        x_P = 2 * column_P - 1 + number % 3
        inside_P = (y_P >= 0) & (y_P < height) & (x_P >= 0) & (x_P < width)
        offset_P = ((image_P.to(tl.int64) * height + y_P) * width + x_P) * CHANNELS
        value_PC = tl.load(
            x + offset_P[:, None] + c_C[None, :],
            mask=live_PC & inside_P[:, None],
            other=float("-inf"),
        ).to(tl.float32)
        more_PC = (value_PC > best_PC) | (value_PC != value_PC)
        best_PC = tl.where(more_PC, value_PC, best_PC)
        place_PC = tl.where(more_PC, number, place_PC)
    offset_P = (tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)).to(tl.int64) * CHANNELS
    offset_PC = offset_P[:, None] + c_C[None, :]
    tl.store(out + offset_PC, best_PC.to(out.dtype.element_ty), mask=live_PC)
    tl.store(tap + offset_PC, place_PC.to(tl.uint8), mask=live_PC)


@triton.jit(do_not_specialize=["pixels", "height", "width", "out_height", "out_width"])
def pool_gradient(
    gradient, tap, out, pixels, height, width, out_height, out_width,
    CHANNELS: tl.constexpr, TILE_CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Sum for each pixel the gradients of the windows, at most four, whose maximum it is.

    `pixels` are those of `out`, the input's gradient.
    """
    image_P, row_P, column_P = _pixels(tl.program_id(0), height, width, PIXELS)
    c_C = tl.program_id(1) * TILE_CHANNELS + tl.arange(0, TILE_CHANNELS)
    live_PC = (image_P * height * width < pixels)[:, None] & (c_C < CHANNELS)[None, :]
    total_PC = tl.zeros((PIXELS, TILE_CHANNELS), tl.float32)
    for number in tl.static_range(4):
        # Windows of rows (y + 1) // 2 and, where that is another, y // 2.
        y_P = (row_P + 1) // 2 - number // 2
        x_P = (column_P + 1) // 2 - number % 2
        own_y_P = row_P - 2 * y_P + 1
        own_x_P = column_P - 2 * x_P + 1
        inside_P = (y_P >= 0) & (y_P < out_height) & (x_P >= 0) & (x_P < out_width)
        inside_P = inside_P & (own_y_P < 3) & (own_x_P < 3)
        offset_P = ((image_P.to(tl.int64) * out_height + y_P) * out_width + x_P) * CHANNELS
        mask_PC = live_PC & inside_P[:, None]
        offset_PC = offset_P[:, None] + c_C[None, :]
        place_PC = tl.load(tap + offset_PC, mask=mask_PC, other=255).to(tl.int32)
        value_PC = tl.load(gradient + offset_PC, mask=mask_PC, other=0.0).to(tl.float32)
        own_P = own_y_P * 3 + own_x_P
        total_PC += tl.where(place_PC == own_P[:, None], value_PC, 0.0)
    offset_P = (tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)).to(tl.int64) * CHANNELS
    tl.store(
        out + offset_P[:, None] + c_C[None, :], total_PC.to(out.dtype.element_ty), mask=live_PC
    )

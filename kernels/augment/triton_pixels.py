"""Loads and stores of RGB pixels by 16 bytes, split into one tensor a channel, for Triton kernels.

Pixels are handled in groups of 16 or 8 that never cross a row. 16 pixels of uint8 are 48 bytes:
three 16-byte loads of one thread. Splitting them into channels, and joining them again, happens in
that thread's registers, by `tl.split` and `tl.join`, which cost no instruction and no shared
memory. Views that are not dense, or whose rows are not a multiple of 16 pixels, are accessed byte
by byte.

Shape suffixes: G groups, P pixels of a group.
"""

import triton
import triton.language as tl

from .triton_colour import raise_byte


@triton.jit
def _split4(x):
    """Split (G, 4) into its four columns (G,)."""
    even, odd = tl.split(tl.reshape(x, (x.shape[0], 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def _join4(first, second, third, fourth):
    """Join four (G,) as columns: (G, 4)."""
    return tl.reshape(tl.join(tl.join(first, third), tl.join(second, fourth)), (first.shape[0], 4))


@triton.jit
def _split16(x_GP):
    """Split (G, 16) into its columns (G,), indexed [pixel % 4][pixel // 4]."""
    even, odd = tl.split(tl.reshape(x_GP, (x_GP.shape[0], 8, 2)))
    zeros, twos = tl.split(tl.reshape(even, (x_GP.shape[0], 4, 2)))
    ones, threes = tl.split(tl.reshape(odd, (x_GP.shape[0], 4, 2)))
    return _split4(zeros), _split4(ones), _split4(twos), _split4(threes)


@triton.jit
def _split8(x_GP):
    """Split (G, 8) into its columns (G,), indexed [pixel % 2][pixel // 2]."""
    even, odd = tl.split(tl.reshape(x_GP, (x_GP.shape[0], 4, 2)))
    return _split4(even), _split4(odd)


@triton.jit
def _join_pixels(pixel0, pixel1, pixel2, pixel3):
    """Join every fourth pixel, (G, 4) each, in order: raised levels (G, 16)."""
    joined = tl.join(tl.join(pixel0, pixel2), tl.join(pixel1, pixel3))
    return raise_byte(tl.reshape(joined, (pixel0.shape[0], 16)))


@triton.jit
def _swap(flip, a, b):
    """(b, a) where `flip`, (a, b) elsewhere."""
    return tl.where(flip, b, a), tl.where(flip, a, b)


@triton.jit
def _load_dense(view, pixel_G, live_G, flip, FLIPPED: tl.constexpr):
    """Load the 16 pixels from each `pixel_G` on: red, green, blue, raised levels (G, 16).

    `view` points to dense uint8; groups that are not `live_G` read 0. `flip` reverses the order
    within each group, in kernels compiled as `FLIPPED`.
    """
    # 1. Twelve words of four bytes, in three 16-byte loads: a0..a3, b0..b3, c0..c3. The three read
    # the same cache lines, so that the last two find them in the L1 cache.
    words = (
        view.to(tl.pointer_type(tl.int32)) + (pixel_G // 4 * 3)[:, None] + tl.arange(0, 4)[None, :]
    )
    live = live_G[:, None]
    a0, a1, a2, a3 = _split4(tl.load(words, mask=live, other=0))
    b0, b1, b2, b3 = _split4(tl.load(words + 4, mask=live, other=0))
    c0, c1, c2, c3 = _split4(tl.load(words + 8, mask=live, other=0))
    # 2. Four pixels are three words: rgbr gbrg brgb. Flipped, the four triples of words reverse.
    if FLIPPED:
        a0, c1 = _swap(flip, a0, c1)
        a1, c2 = _swap(flip, a1, c2)
        a2, c3 = _swap(flip, a2, c3)
        a3, b2 = _swap(flip, a3, b2)
        b0, b3 = _swap(flip, b0, b3)
        b1, c0 = _swap(flip, b1, c0)
    word0 = _join4(a0, a3, b2, c1)
    word1 = _join4(a1, b0, b3, c2)
    word2 = _join4(a2, b1, c0, c3)
    # 3. Bytes of the words: pixel 4 i + k is column i of red_k, green_k, blue_k.
    red0, green0, blue0 = word0 & 255, (word0 >> 8) & 255, (word0 >> 16) & 255
    red1, green1, blue1 = (word0 >> 24) & 255, word1 & 255, (word1 >> 8) & 255
    red2, green2, blue2 = (word1 >> 16) & 255, (word1 >> 24) & 255, word2 & 255
    red3, green3, blue3 = (word2 >> 8) & 255, (word2 >> 16) & 255, (word2 >> 24) & 255
    # 4. Flipped, the four pixels of a triple reverse too.
    if FLIPPED:
        red0, red3 = _swap(flip, red0, red3)
        red1, red2 = _swap(flip, red1, red2)
        green0, green3 = _swap(flip, green0, green3)
        green1, green2 = _swap(flip, green1, green2)
        blue0, blue3 = _swap(flip, blue0, blue3)
        blue1, blue2 = _swap(flip, blue1, blue2)
    return (
        _join_pixels(red0, red1, red2, red3),
        _join_pixels(green0, green1, green2, green3),
        _join_pixels(blue0, blue1, blue2, blue3),
    )


@triton.jit
def load_levels(
    view, stride_y, stride_x, stride_c, group_G, flip,
    S: tl.constexpr, VECTOR_LOADS: tl.constexpr, FLIPPED: tl.constexpr,
):  # fmt: skip
    """Load groups of 16 pixels of one view: red, green, blue, raised levels (G, 16), and which of
    the pixels exist, bool (G, 16).

    `view` points to uint8 (S, S, 3) with the strides given, in bytes. `group_G` counts groups along
    rows; the last group of a row reaches beyond it where S is not a multiple of 16. `flip` mirrors
    the view, in kernels compiled as `FLIPPED`. `VECTOR_LOADS` needs a dense view, see
    `triton._dense`.
    """
    ROW_GROUPS: tl.constexpr = (S + 15) // 16
    y_G, column_G = group_G // ROW_GROUPS, group_G % ROW_GROUPS
    live_G = y_G < S
    x_GP = column_G[:, None] * 16 + tl.arange(0, 16)[None, :]
    live_GP = live_G[:, None] & (x_GP < S)
    if VECTOR_LOADS:
        if FLIPPED:
            column_G = tl.where(flip, ROW_GROUPS - 1 - column_G, column_G)
        red, green, blue = _load_dense(
            view, (y_G * ROW_GROUPS + column_G) * 16, live_G, flip, FLIPPED
        )
    else:
        if FLIPPED:
            x_GP = tl.where(flip, S - 1 - x_GP, x_GP)
        pixel = view + y_G[:, None].to(tl.int64) * stride_y + x_GP.to(tl.int64) * stride_x
        red = raise_byte(tl.load(pixel, mask=live_GP, other=0).to(tl.int32))
        green = raise_byte(tl.load(pixel + stride_c, mask=live_GP, other=0).to(tl.int32))
        blue = raise_byte(tl.load(pixel + 2 * stride_c, mask=live_GP, other=0).to(tl.int32))
    return red, green, blue, live_GP


@triton.jit
def _element(channels, INDEX: tl.constexpr):
    """Element INDEX of a group in memory order, RGB by pixel: (G,). `channels`: the results of
    `_split8` or `_split16` for red, green, blue."""
    STEP: tl.constexpr = len(channels[0])
    return channels[INDEX % 3][INDEX // 3 % STEP][INDEX // 3 // STEP]


@triton.jit
def _quad(channels, START: tl.constexpr, STEP: tl.constexpr):
    """Four elements, STEP apart from START on: (G, 4)."""
    return _join4(
        _element(channels, START),
        _element(channels, START + STEP),
        _element(channels, START + 2 * STEP),
        _element(channels, START + 3 * STEP),
    )


@triton.jit
def _vector(channels, START: tl.constexpr, LANES: tl.constexpr):
    """LANES adjacent elements from START on: (G, LANES)."""
    # Each quad has every (LANES / 4)-th element, so that joining the quads restores order.
    if LANES == 4:
        values = _quad(channels, START, 1)
    elif LANES == 8:
        values = tl.join(_quad(channels, START, 2), _quad(channels, START + 1, 2))
    else:
        even = tl.join(_quad(channels, START, 4), _quad(channels, START + 2, 4))
        odd = tl.join(_quad(channels, START + 1, 4), _quad(channels, START + 3, 4))
        values = tl.join(even, odd)
    return tl.reshape(values, (values.shape[0], LANES))


@triton.jit
def _element_or_first(vectors, INDEX: tl.constexpr):
    """A vector of a tuple; the first where there is none."""
    return vectors[INDEX if len(vectors) > INDEX else 0]


@triton.jit
def _four(vectors, START: tl.constexpr):
    """Stack four vectors (G, L), see `_stack`: (G, L, 2, 2)."""
    return tl.join(
        tl.join(_element_or_first(vectors, START), _element_or_first(vectors, START + 1)),
        tl.join(_element_or_first(vectors, START + 2), _element_or_first(vectors, START + 3)),
    )


@triton.jit
def _stack(vectors):
    """Stack 3, 6 or 12 vectors (G, L) to (G, V, L), V 4, 8 or 16; others repeat the first."""
    G: tl.constexpr = vectors[0].shape[0]
    L: tl.constexpr = vectors[0].shape[1]
    if len(vectors) == 3:
        x = tl.permute(_four(vectors, 0), (0, 3, 2, 1))
        return tl.reshape(x, (G, 4, L))
    elif len(vectors) == 6:
        x = tl.join(_four(vectors, 0), _four(vectors, 4))
        return tl.reshape(tl.permute(x, (0, 4, 3, 2, 1)), (G, 8, L))
    else:
        x = tl.join(
            tl.join(_four(vectors, 0), _four(vectors, 4)),
            tl.join(_four(vectors, 8), _four(vectors, 12)),
        )
        return tl.reshape(tl.permute(x, (0, 5, 4, 3, 2, 1)), (G, 16, L))


@triton.jit
def store_pixels(out, y_G, x_G, red, green, blue, S: tl.constexpr, VECTOR_STORES: tl.constexpr):
    """Store groups of 8 or 16 pixels, each beginning at row `y_G` and column `x_G`.

    `red`, `green`, `blue` (G, P) of the dtype of `out`, which points to dense (S, S, 3). Pixels
    beyond the view are not stored. `VECTOR_STORES`: by 16 bytes; S must be a multiple of 16.
    """
    pixel_G = y_G * S + x_G
    live_G = (y_G < S) & (x_G < S)
    if VECTOR_STORES:
        PIXELS: tl.constexpr = red.shape[1]
        BITS: tl.constexpr = out.dtype.element_ty.primitive_bitwidth
        # Elements a store: 16 bytes, but 8 for groups of 8 pixels of uint8, which are 24 bytes.
        LANES: tl.constexpr = 8 if BITS * PIXELS == 64 else 128 // BITS
        if PIXELS == 16:
            channels = (_split16(red), _split16(green), _split16(blue))
        else:
            channels = (_split8(red), _split8(green), _split8(blue))
        VECTORS: tl.constexpr = 3 * PIXELS // LANES
        if PIXELS == 16:
            # One layout change to a thread a vector, so that a warp writes whole cache lines.
            # Between two groups' vectors are 1, 2 or 4 that do not exist: shapes are powers of two.
            vectors = ()  # type: ignore[var-annotated]
            for vector in tl.static_range(VECTORS):
                vectors = vectors + (_vector(channels, vector * LANES, LANES),)  # type: ignore[assignment]  # noqa: RUF005
            values = _stack(vectors)
            place = tl.arange(0, values.shape[1])[None, :, None]
            address = out + pixel_G[:, None, None] * 3 + place * LANES
            address += tl.arange(0, LANES)[None, None, :]
            tl.store(address, values, mask=live_G[:, None, None] & (place < VECTORS))
        else:
            address = out + pixel_G[:, None] * 3 + tl.arange(0, LANES)[None, :]
            for vector in tl.static_range(VECTORS):
                values = _vector(channels, vector * LANES, LANES)
                tl.store(address + vector * LANES, values, mask=live_G[:, None])
    else:
        column_P = tl.arange(0, red.shape[1])[None, :]
        address = out + (pixel_G[:, None] + column_P) * 3
        live_GP = live_G[:, None] & (x_G[:, None] + column_P < S)
        tl.store(address, red, mask=live_GP)
        tl.store(address + 1, green, mask=live_GP)
        tl.store(address + 2, blue, mask=live_GP)

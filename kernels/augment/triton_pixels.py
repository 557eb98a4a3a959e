"""Groups of pixels between device memory, three bytes or numbers a pixel, and registers, one tensor
a channel.

Pixels are handled in groups of 16 or 8 that never cross a row. 16 pixels are 48 bytes, three
16-byte loads of one thread, and the split into channels and back happens in that thread's
registers, by splits and joins that cost no instruction and no shared memory. Views of which a row
is no multiple of 16 pixels, or whose pixels do not lie densely, are read byte by byte instead.

Suffixes: G groups, P pixels of a group.
"""

import triton
import triton.language as tl


@triton.jit
def _split4(x):
    """(G, 4) -> four (G,)."""
    even, odd = tl.split(tl.reshape(x, (x.shape[0], 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def _join4(first, second, third, fourth):
    """Four (G,) -> (G, 4)."""
    return tl.reshape(tl.join(tl.join(first, third), tl.join(second, fourth)), (first.shape[0], 4))


@triton.jit
def _split16(x_GP):
    """(G, 16) -> sixteen (G,), as [pixel % 4][pixel // 4]."""
    even, odd = tl.split(tl.reshape(x_GP, (x_GP.shape[0], 8, 2)))
    zeros, twos = tl.split(tl.reshape(even, (x_GP.shape[0], 4, 2)))
    ones, threes = tl.split(tl.reshape(odd, (x_GP.shape[0], 4, 2)))
    return _split4(zeros), _split4(ones), _split4(twos), _split4(threes)


@triton.jit
def _split8(x_GP):
    """(G, 8) -> eight (G,), as [pixel % 2][pixel // 2]."""
    even, odd = tl.split(tl.reshape(x_GP, (x_GP.shape[0], 4, 2)))
    return _split4(even), _split4(odd)


@triton.jit
def _join_pixels(pixel0, pixel1, pixel2, pixel3):
    """Every fourth pixel, (G, 4) each -> (G, 16) float32."""
    joined = tl.join(tl.join(pixel0, pixel2), tl.join(pixel1, pixel3))
    return tl.reshape(joined, (pixel0.shape[0], 16)).to(tl.float32)


@triton.jit
def _swap(flip, a, b):
    """(b, a) where flip else (a, b)."""
    return tl.where(flip, b, a), tl.where(flip, a, b)


@triton.jit
def _load_dense(view, pixel_G, live_G, flip, FLIPPED: tl.constexpr):
    """Levels of the 16 pixels from `pixel_G` on: three float32 (G, 16). `flip` turns the order
    within each group."""
    words = (
        view.to(tl.pointer_type(tl.int32)) + (pixel_G // 4 * 3)[:, None] + tl.arange(0, 4)[None, :]
    )
    live = live_G[:, None]
    a0, a1, a2, a3 = _split4(tl.load(words, mask=live, other=0))
    b0, b1, b2, b3 = _split4(tl.load(words + 4, mask=live, other=0))
    c0, c1, c2, c3 = _split4(tl.load(words + 8, mask=live, other=0))
    # Four pixels are three words: rgbr gbrg brgb.
    if FLIPPED:
        a0, c1 = _swap(flip, a0, c1)
        a1, c2 = _swap(flip, a1, c2)
        a2, c3 = _swap(flip, a2, c3)
        a3, b2 = _swap(flip, a3, b2)
        b0, b3 = _swap(flip, b0, b3)
        b1, c0 = _swap(flip, b1, c0)
    word0, word1, word2 = _join4(a0, a3, b2, c1), _join4(a1, b0, b3, c2), _join4(a2, b1, c0, c3)
    red0, green0, blue0 = word0 & 255, (word0 >> 8) & 255, (word0 >> 16) & 255
    red1, green1, blue1 = (word0 >> 24) & 255, word1 & 255, (word1 >> 8) & 255
    red2, green2, blue2 = (word1 >> 16) & 255, (word1 >> 24) & 255, word2 & 255
    red3, green3, blue3 = (word2 >> 8) & 255, (word2 >> 16) & 255, (word2 >> 24) & 255
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
    """Levels of one view's groups, three float32 (G, 16), and which of those pixels there are, bool
    (G, 16)."""
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
        red = tl.load(pixel, mask=live_GP, other=0).to(tl.float32)
        green = tl.load(pixel + stride_c, mask=live_GP, other=0).to(tl.float32)
        blue = tl.load(pixel + 2 * stride_c, mask=live_GP, other=0).to(tl.float32)
    return red, green, blue, live_GP


@triton.jit
def _element(channels, INDEX: tl.constexpr):
    """Element INDEX of a group as it lies in memory, (G,); `channels` as `_split8` or `_split16`
    gives each."""
    STEP: tl.constexpr = len(channels[0])
    return channels[INDEX % 3][INDEX // 3 % STEP][INDEX // 3 // STEP]


@triton.jit
def _quad(channels, START: tl.constexpr, STEP: tl.constexpr):
    """Four elements, STEP apart from START on, (G, 4)."""
    return _join4(
        _element(channels, START),
        _element(channels, START + STEP),
        _element(channels, START + 2 * STEP),
        _element(channels, START + 3 * STEP),
    )


@triton.jit
def store_pixels(out, y_G, x_G, red, green, blue, S: tl.constexpr, VECTOR_STORES: tl.constexpr):
    """Write groups of pixels (G, 8 or 16), of out's dtype, from row y and column x on."""
    pixel_G = y_G * S + x_G
    live_G = (y_G < S) & (x_G < S)
    if VECTOR_STORES:
        GROUPS: tl.constexpr = red.shape[0]
        PIXELS: tl.constexpr = red.shape[1]
        BITS: tl.constexpr = out.dtype.element_ty.primitive_bitwidth
        # Elements in 16 bytes; 8 bytes where a group of 8 pixels has no more to share out evenly.
        LANES: tl.constexpr = 8 if BITS * PIXELS == 64 else 128 // BITS
        if PIXELS == 16:
            channels = (_split16(red), _split16(green), _split16(blue))
        else:
            channels = (_split8(red), _split8(green), _split8(blue))
        address = out + pixel_G[:, None] * 3 + tl.arange(0, LANES)[None, :]
        for vector in tl.static_range(3 * PIXELS // LANES):
            # Every LANES / 4th element goes in one quad, so that the joins leave them in order.
            if LANES == 4:
                values = _quad(channels, vector * LANES, 1)
            elif LANES == 8:
                values = tl.join(
                    _quad(channels, vector * LANES, 2), _quad(channels, vector * LANES + 1, 2)
                )
            else:
                even = tl.join(
                    _quad(channels, vector * LANES, 4), _quad(channels, vector * LANES + 2, 4)
                )
                odd = tl.join(
                    _quad(channels, vector * LANES + 1, 4), _quad(channels, vector * LANES + 3, 4)
                )
                values = tl.join(even, odd)
            values = tl.reshape(values, (GROUPS, LANES))
            tl.store(address + vector * LANES, values, mask=live_G[:, None])
    else:
        column_P = tl.arange(0, red.shape[1])[None, :]
        address = out + (pixel_G[:, None] + column_P) * 3
        live_GP = live_G[:, None] & (x_G[:, None] + column_P < S)
        tl.store(address, red, mask=live_GP)
        tl.store(address + 1, green, mask=live_GP)
        tl.store(address + 2, blue, mask=live_GP)

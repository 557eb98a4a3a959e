"""Decodes a region of a baseline JPEG to RGB in compiled code, without the GIL.

`decode_region` takes 8-bit Huffman-coded baseline JPEGs, gray or YCbCr with luma sampled 1x1, 2x1
or 2x2, in a single sequential scan: nearly every photograph. The pixels equal libjpeg-turbo's bit
for bit, with its accurate DCT and fancy upsampling. Everything else returns NOT_PLAIN and is
decoded by libjpeg-turbo, so that a single decoder decides what counts as corrupt;
`decode_reference` is that decoder.

The stream is read from its beginning, since each code's position depends on the codes before it.
Only the blocks of the region are transformed to pixels.

Terms (MCU, zigzag order and others) are explained in `markers`. Rectangles in pixels are (y, x,
rows, columns); the rectangle in MCUs is (x1, y1, x2, y2), its end excluded.
"""

from typing import NamedTuple

import numpy as np
import simplejpeg

from ..compiler.jit import inline_jit, jit
from ..compiler.vector import broadcast, convert, load, store
from ..compiler.vector_shuffle import store_interleaved
from .entropy import DUMP_SLOT, END_OF_BLOCK, READ_MARGIN, TABLE_SIZE, is_wild, read_block, unstuff
from .pixels import (
    LANES,
    PAD,
    inverse_dct_flat,
    inverse_dct_pair,
    store_rgb,
    upsample_h2v1,
    upsample_h2v2,
)
from .segments import (
    AC_TABLE,
    DC_TABLE,
    LAST_DC,
    OFFSET,
    QUANTISATION,
    QUANTISATION_STRIDE,
    STRIDE,
    H,
    V,
    read_segments,
)

DECODED, NOT_PLAIN = range(2)
"""Results of `decode_region`: the pixels are there, or a library must decode the file."""
MCU_BLOCKS = 6
"""Most blocks in an MCU: with luma sampled 2x2, four of Y, one each of Cb and Cr."""
BLOCK_STRIDE = 96
"""int16 from one block to the next: 64 coefficients, the dump slot, the flag IS_FLAT, padding."""
IS_FLAT = DUMP_SLOT + 1
"""Place in a block's memory of the flag that it has no AC coefficients."""
_U = np.uint64


def decode_reference(data: bytes) -> np.ndarray:
    """Decode a whole image by libjpeg-turbo: (H, W, 3) uint8. ValueError at its first warning."""
    return simplejpeg.decode_jpeg(data, "RGB", strict=True)


class JpegScratch(NamedTuple):
    """One thread's working memory."""

    clean: np.ndarray
    """(bytes of the largest file + READ_MARGIN,) uint8: the entropy-coded data without stuffed
    bytes and restart markers."""
    restarts: np.ndarray
    """(65536,) int64: where in `clean` restart intervals begin."""
    tables: np.ndarray
    """(8 · TABLE_SIZE,) int32: look-up tables of the four DC codes, then of the four AC codes."""
    quantisation: np.ndarray
    """(4 · QUANTISATION_STRIDE,) int32: four tables in zigzag order; 0 from 64 on."""
    planes: np.ndarray
    """uint8: levels of the region's blocks, a plane for each component."""
    block: np.ndarray
    """(2 · MCU_BLOCKS · BLOCK_STRIDE,) int16: dequantised coefficients of two MCUs. A block's AC
    part is 0 until it is read."""
    frame: np.ndarray
    """(4, 8) int64: a row for each component, with the columns of `segments`."""
    region: np.ndarray
    """(4,) int64: y, x, rows and columns of the decoded region, where a caller asks for them."""


@jit(allocates=True)
def make_jpeg_scratch(file_bytes, pixels):
    """Allocate working memory for files of up to `file_bytes` and regions of up to `pixels`, in
    whole blocks."""
    return JpegScratch(
        np.zeros(file_bytes + READ_MARGIN, np.uint8),
        np.zeros(1 << 16, np.int64),
        np.zeros(8 * TABLE_SIZE, np.int32),
        np.zeros(4 * QUANTISATION_STRIDE, np.int32),
        np.zeros(3 * pixels + 8192, np.uint8),
        np.zeros(2 * MCU_BLOCKS * BLOCK_STRIDE, np.int16),
        np.zeros((4, 8), np.int64),
        np.zeros(4, np.int64),
    )


@inline_jit()
def _sampling(frame, components):
    """Sampling factors (h, v) of the luma; (0, 0) where the sampling is not plain.

    Plain are 1x1, 2x1 and 2x2 with chroma sampled 1x1, and a single component sampled 1x1.
    """
    h, v = frame[0, H], frame[0, V]
    if components == 1 and h * v != 1:
        return 0, 0
    for c in range(1, components):
        if frame[c, H] != 1 or frame[c, V] != 1:
            return 0, 0
    return (h, v) if (h == 1 and v == 1) or (h == 2 and (v == 1 or v == 2)) else (0, 0)


@inline_jit(forceinline=True)
def _mcu_span(begin, length, factor, mcus):
    """MCUs (first, past the last) that hold the pixels begin .. begin + length - 1 of an axis, and
    the neighbours that upsampling reads.

    `factor`: the luma's sampling factor on this axis; `mcus`: MCUs along it.
    """
    margin = factor if factor > 1 else 0
    last = begin + length - 1 + margin
    return max(begin - margin, 0) // (8 * factor), min(last // (8 * factor) + 1, mcus)


@inline_jit()
def _lay_out_planes(frame, components, region):
    """Set OFFSET and STRIDE of each component for the MCUs of `region`; returns the bytes of
    `planes` that they take. Resets LAST_DC."""
    x1, y1, x2, y2 = region
    total = PAD
    for c in range(components):
        stride = 8 * (x2 - x1) * frame[c, H] + 2 * PAD
        frame[c, OFFSET] = total + PAD
        frame[c, STRIDE] = stride
        frame[c, LAST_DC] = 0
        total += 8 * (y2 - y1) * frame[c, V] * stride
    return total + LANES + PAD


@inline_jit()
def _decode_scan(
    data,
    clean,
    size,
    restarts,
    interval,
    mcu_columns,
    mcu_rows,
    region,
    components,
    scratch,
):
    """Decode all MCUs of the scan, those in `region` to levels; returns whether the scan is valid.

    `data` uint8: the file, which holds the Huffman codes' symbols. `clean` uint8: the scan's `size`
    bytes, with `restarts` restart markers, one each `interval` MCUs (0 for none). `region` (x1, y1,
    x2, y2) of `mcu_columns` by `mcu_rows` MCUs. Levels go to `scratch.planes` as `_lay_out_planes`
    has set.
    """
    frame = scratch.frame
    tables = scratch.tables
    quantisation = scratch.quantisation
    block = scratch.block
    planes = scratch.planes
    x1, y1, x2, y2 = region
    bits, count, at = _U(0), _U(0), _U(0)  # the bit reader, see `entropy.refill`
    mcus_left = interval
    restarts_passed = 0
    wild = 0  # not 0 after a DC coefficient that takes too many bits
    # Blocks are transformed in pairs. `pending` is the place in `block` of one that has no partner
    # yet, -1 for none. While it waits, the next MCU is read into the other half of `block`, which
    # begins with block number `half`.
    half = 0
    pending, pending_at, pending_stride = -1, 0, 0
    for my in range(mcu_rows):
        for mx in range(mcu_columns):
            # 1. Restart interval: it must end where the marker stood; the next begins at a whole
            # byte, with DC predictions of 0.
            if interval and mcus_left == 0:
                if (
                    restarts_passed >= restarts
                    or np.int64(at) - np.int64(count >> _U(3)) != scratch.restarts[restarts_passed]
                ):
                    return False
                at = _U(scratch.restarts[restarts_passed])
                bits, count = _U(0), _U(0)
                for c in range(components):
                    frame[c, LAST_DC] = 0
                mcus_left = interval
                restarts_passed += 1
            mcus_left -= 1

            # 2. Read the MCU's blocks: each component's in turn, row by row.
            number = half
            for c in range(components):
                q = QUANTISATION_STRIDE * frame[c, QUANTISATION]
                dc = frame[c, DC_TABLE] * TABLE_SIZE
                ac = frame[c, AC_TABLE] * TABLE_SIZE
                for _ in range(frame[c, V] * frame[c, H]):
                    bits, count, at, difference, end = read_block(
                        clean,
                        bits,
                        count,
                        at,
                        data,
                        tables,
                        dc,
                        ac,
                        quantisation,
                        q,
                        block,
                        BLOCK_STRIDE * number,
                    )
                    if end == _U(0):
                        return False
                    value = frame[c, LAST_DC] + difference
                    frame[c, LAST_DC] = value
                    coefficient = value * quantisation[q]
                    wild |= is_wild(coefficient)
                    block[BLOCK_STRIDE * number] = coefficient
                    block[BLOCK_STRIDE * number + IS_FLAT] = end == _U(2 + END_OF_BLOCK)
                    number += 1

            # 3. Inside the region, transform them to levels; elsewhere clear them.
            if x1 <= mx < x2 and y1 <= my < y2:
                number = half
                for c in range(components):
                    h, v, stride = frame[c, H], frame[c, V], frame[c, STRIDE]
                    for by in range(v):
                        for bx in range(h):
                            to = frame[c, OFFSET] + 8 * (
                                ((my - y1) * v + by) * stride + (mx - x1) * h + bx
                            )
                            source = BLOCK_STRIDE * number
                            if block[source + IS_FLAT]:
                                inverse_dct_flat(np.int64(block[source]), planes, to, stride)
                            elif pending < 0:
                                pending, pending_at, pending_stride = source, to, stride
                            else:
                                inverse_dct_pair(
                                    block,
                                    pending,
                                    source,
                                    planes,
                                    pending_at,
                                    pending_stride,
                                    to,
                                    stride,
                                )
                                pending = -1
                            number += 1
                half = MCU_BLOCKS if 0 <= pending < MCU_BLOCKS * BLOCK_STRIDE else 0
            else:
                for i in range(half, number):
                    store(block, BLOCK_STRIDE * i, broadcast(np.int16(0), 32))
                    store(block, BLOCK_STRIDE * i + 32, broadcast(np.int16(0), 32))

            # 4. A refill reads up to 8 bytes ahead; farther beyond the end, the data was too short.
            if np.int64(at) > size + 8 or wild:
                return False
    if pending >= 0:
        inverse_dct_pair(
            block, pending, pending, planes, pending_at, pending_stride, pending_at, pending_stride
        )
    # Valid if all bytes and restart markers are used up; bits left in the last byte are padding.
    return np.int64(at) - np.int64(count >> _U(3)) == size and restarts_passed == restarts


@inline_jit()
def _extend_edges(planes, offset, stride, rows, left, right):
    """Repeat the sample at column `left` to its left and the one at `right` to its right, in each
    row; -1 for neither."""
    for row in range(rows):
        at = offset + row * stride
        if left >= 0:
            planes[at + left - 1] = planes[at + left]
        if right >= 0:
            planes[at + right + 1] = planes[at + right]


@inline_jit()
def _convert_region(scratch, components, h, v, height, width, corner, y, x, rows, columns, out):
    """Upsample and convert the region's levels to RGB: `out` flat (rows · columns · 3,) uint8.

    (`h`, `v`): the luma's sampling; (`height`, `width`): the image, pixels; `corner` (x, y): the
    image's pixel at which the planes begin; (`y`, `x`, `rows`, `columns`): the region, pixels.
    """
    frame, planes = scratch.frame, scratch.planes
    half_height, half_width = (height + 1) // 2, (width + 1) // 2
    chroma_x, chroma_y = corner[0] // h, corner[1] // v
    # 1. Upsampling in x reads one sample on either side; beyond the image's edges it is repeated.
    # In y the same is done by clamping row numbers, below.
    if h == 2:
        left = 0 if chroma_x == 0 else -1
        right = half_width - 1 - chroma_x if x + columns == width else -1
        for c in range(1, 3):
            chroma_rows = (frame[2, OFFSET] - frame[1, OFFSET]) // frame[1, STRIDE]
            _extend_edges(planes, frame[c, OFFSET], frame[c, STRIDE], chroma_rows, left, right)
    for row in range(rows):
        # 2. Where the row's samples are. With v == 2 it lies between two chroma rows, of which the
        # near one counts three times.
        pixel_y = y + row
        luma_at = frame[0, OFFSET] + (pixel_y - corner[1]) * frame[0, STRIDE] + x - corner[0]
        near = far = pixel_y - corner[1]
        if v == 2:
            near = pixel_y // 2
            far = min(max(near + 2 * (pixel_y & 1) - 1, 0), half_height - 1) - chroma_y
            near -= chroma_y
        stride = frame[1, STRIDE]
        first = x // h - chroma_x
        blue_near = frame[1, OFFSET] + near * stride + first
        blue_far = frame[1, OFFSET] + far * stride + first
        red_near = frame[2, OFFSET] + near * stride + first
        red_far = frame[2, OFFSET] + far * stride + first
        # 3. `LANES` pixels at a time; the last vector's surplus is overwritten by the next row.
        for column in range(0, columns, LANES):
            to = 3 * (row * columns + column)
            levels = load(planes, luma_at + column, LANES)
            if components == 1:
                store_interleaved(out, to, levels, levels, levels)
                continue
            luma = convert(levels, np.int16)
            at = column // h
            if h == 1:
                blue = convert(load(planes, blue_near + at, LANES), np.int16)
                red = convert(load(planes, red_near + at, LANES), np.int16)
            elif v == 1:
                blue = upsample_h2v1(planes, blue_near + at)
                red = upsample_h2v1(planes, red_near + at)
            else:
                blue = upsample_h2v2(planes, blue_near + at, blue_far + at)
                red = upsample_h2v2(planes, red_near + at, red_far + at)
            store_rgb(luma, blue, red, out, to)


@jit()
def decode_region(data, size, height, width, y, x, rows, columns, scratch, out):
    """Decode the region (y, x, rows, columns), pixels, of a JPEG into `out`: DECODED or NOT_PLAIN.

    `data` uint8, at least `size` bytes: the file. (`height`, `width`): the image's size, pixels; a
    file of another size is NOT_PLAIN. The region must lie inside the image; y and x must be even.
    `scratch`: a `JpegScratch`; a file or region that does not fit in it is NOT_PLAIN. `out` uint8,
    flat, at least 3 (rows · columns + LANES): receives (rows, columns, 3) RGB, and is undefined
    after NOT_PLAIN. The scan is read to its end, so that damage outside the region is noticed too.
    """
    # 1. Headers; they must describe the image that the caller planned for.
    begin, file_height, file_width, components, interval = read_segments(data, size, scratch)
    if begin == 0 or file_height != height or file_width != width:
        return NOT_PLAIN
    if len(scratch.clean) < size + READ_MARGIN:
        return NOT_PLAIN
    frame = scratch.frame
    h, v = _sampling(frame, components)
    if h == 0 or (h == 2 and width < 6):  # libjpeg upsamples narrow images by another rule
        return NOT_PLAIN
    # 2. The MCUs that the region needs, and room for their levels.
    mcu_columns = (width + 8 * h - 1) // (8 * h)
    mcu_rows = (height + 8 * v - 1) // (8 * v)
    x1, x2 = _mcu_span(x, columns, h, mcu_columns)
    y1, y2 = _mcu_span(y, rows, v, mcu_rows)
    region = x1, y1, x2, y2
    if _lay_out_planes(frame, components, region) > len(scratch.planes):
        return NOT_PLAIN
    # 3. Entropy-coded data to levels.
    clean_size, restarts = unstuff(data, begin, size, scratch.clean, scratch.restarts)
    scratch.block[:] = 0
    if clean_size < 0 or not _decode_scan(
        data,
        scratch.clean,
        clean_size,
        restarts,
        interval,
        mcu_columns,
        mcu_rows,
        region,
        components,
        scratch,
    ):
        return NOT_PLAIN
    # 4. Levels to RGB.
    corner = 8 * h * x1, 8 * v * y1
    _convert_region(scratch, components, h, v, height, width, corner, y, x, rows, columns, out)
    return DECODED

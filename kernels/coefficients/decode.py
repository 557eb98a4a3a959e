"""Reads a region of a record to RGB in compiled code, without the GIL.

Two readers of one format: `decode_record` runs on any CPU, `decode_record_avx512` needs AVX-512
with VBMI2 (`has_vbmi2`). Both check every offset, so that any bytes are safe, and yield the same
pixels: libjpeg-turbo's for the JPEG that the record was made from. `record.unpack` is the slow way,
to coefficients.

Rectangles in pixels are (y, x, rows, columns); the rectangle in MCUs is (x1, y1, x2, y2), its end
excluded.
"""

from typing import NamedTuple

import numpy as np

from ..compiler.jit import inline_jit, jit
from ..compiler.vector import broadcast, convert, load, select, store
from ..compiler.vector_gather import count_bits, trailing_zeros
from ..jpeg.checksum import crc32c
from ..jpeg.decode import DECODED, NOT_PLAIN
from ..jpeg.entropy import NATURAL_ORDER
from ..jpeg.pixels import inverse_dct_flat, inverse_dct_four, inverse_dct_pair
from ..jpeg.planes import convert_region, lay_out_planes, mcu_span
from ..jpeg.segments import OFFSET, STRIDE, H, V
from .avx512 import (
    first_values,
    high_part,
    join_values,
    load_values,
    place_values,
    store_coefficients,
)
from .bits import load_u64
from .record import CHECKED, ESCAPE, GRAY, HEADER_SIZE, MAGIC, MARGIN, VERSION, YCBCR

_U = np.uint64
_MAGIC = int.from_bytes(MAGIC, "little")
_BITMAP = np.array([(1 << min(8 * n, 63)) - 1 for n in range(16)], np.uint64)
"""By the bytes of a bitmap: its bits. The 64th stands for no coefficient."""
_SHIFTS = np.outer(np.arange(9), np.arange(8)).astype(np.uint64).reshape(-1)
"""By width w, from 8 w on: the bits before each of eight values."""
QUEUE = 4
"""Most blocks whose inverse DCT is done at once."""


class RecordScratch(NamedTuple):
    """One thread's working memory."""

    planes: np.ndarray
    """uint8: levels of the region's blocks, a plane for each component."""
    block: np.ndarray
    """(QUEUE · 64,) int16: dequantised coefficients, natural order, of blocks that wait for their
    inverse DCT."""
    queue: np.ndarray
    """(2 · QUEUE,) int64: where in `planes` they go, then the strides there."""
    dequantisation: np.ndarray
    """(3 · 64,) int16: the components' tables in natural order."""
    values: np.ndarray
    """(144,) uint8: a block's values, and room for a vector after each part."""
    frame: np.ndarray
    """(4, 8) int64: a row for each component, with the columns of `jpeg.segments`."""


@jit(allocates=True)
def make_record_scratch(pixels):
    """Allocate working memory for regions of up to `pixels`, in whole blocks."""
    return RecordScratch(
        np.zeros(3 * pixels + 8192, np.uint8),
        np.zeros(64 * QUEUE, np.int16),
        np.zeros(2 * QUEUE, np.int64),
        np.zeros(3 * 64, np.int16),
        np.zeros(144, np.uint8),
        np.zeros((4, 8), np.int64),
    )


@inline_jit(forceinline=True)
def _low(word):
    return np.int64(word & _U(0xFFFFFFFF))


@inline_jit(forceinline=True)
def _high(word):
    return np.int64(word >> _U(32))


@inline_jit()
def _read_header(record, size, height, width, scratch):
    """Check a record of an image of this size: (components, MCUs down, MCUs across, MCUs of a
    chunk, end of the chunks), zeros where its pixels cannot be read from it.

    Writes sampling and quantisation to the `RecordScratch`.
    """
    bad = 0, 0, 0, 0, 0
    if size < HEADER_SIZE + MARGIN:
        return bad
    # Offsets are those of `record.HEADER_DTYPE`.
    identity, description = load_u64(record, 0), load_u64(record, 8)
    sides, ends = load_u64(record, 16), load_u64(record, 24)
    colours = record[36]
    if _low(identity) != _MAGIC or _high(description) != size:
        return bad
    if _low(description) & 0xFFFF != VERSION:
        return bad
    if _low(sides) & 0xFFFF != height or _low(sides) >> 16 != width:
        return bad
    components, chunk = _low(description) >> 16 & 255, _low(description) >> 24
    if components != (3 if colours == YCBCR else 1) or colours not in (GRAY, YCBCR):
        return bad
    h, v = np.int64(record[20]) >> 4, np.int64(record[20]) & 15
    if components == 1:
        if h != 1 or v != 1:
            return bad
    elif (
        record[21] != 0x11
        or record[22] != 0x11
        or not ((h == 1 and v == 1) or (h == 2 and v in (1, 2)))
    ):
        return bad
    if chunk == 0 or height < 1 or width < 1 or (h == 2 and width < 6):
        return bad
    down, across = (height + 8 * v - 1) // (8 * v), (width + 8 * h - 1) // (8 * h)
    entries = down * ((across + chunk - 1) // chunk) + 1
    data, end = _low(ends), _high(ends)
    if data != HEADER_SIZE + 128 * components + 4 * entries or data > end or end > size - MARGIN:
        return bad
    if crc32c(record[CHECKED:], size - CHECKED) != _high(identity):
        return bad
    frame = scratch.frame
    for i in range(components):
        frame[i, H], frame[i, V] = (h, v) if i == 0 else (1, 1)
        for k in range(64):
            step = load_u64(record, HEADER_SIZE + 128 * i + 2 * k) & _U(0xFFFF)
            scratch.dequantisation[64 * i + np.int64(NATURAL_ORDER[k])] = np.int64(step)
    return components, down, across, chunk, end


@inline_jit(forceinline=True)
def _chunk_at(record, components, entry, end):
    """(begin, end) of a chunk; (0, -1), which no block lies in, where the offsets are damaged."""
    word = load_u64(record, HEADER_SIZE + 128 * components + 4 * entry)
    begin, limit = _low(word), _high(word)
    return (begin, limit) if HEADER_SIZE <= begin <= limit <= end else (0, -1)


@inline_jit(forceinline=True)
def _unpack(record, at, count, width, values, to):
    """Write `count` values of `width` bits from byte `at` of a record on to `values` from `to` on,
    eight at a time: up to seven more are written."""
    shifts = load(_SHIFTS, 8 * width, 8)
    half = np.uint8(1 << (width - 1))
    mask = np.uint8((2 << (width - 1)) - 1)
    for i in range(0, count, 8):
        word = broadcast(load_u64(record, at), 8)
        code = convert(word >> shifts, np.uint8) & mask
        value = (code ^ half) - half
        store(values, to + i, select(value < np.uint8(128), value + np.uint8(width < 8), value))
        at += width


@inline_jit(forceinline=True)
def _open_block(record, head, at, last):
    """What a block's three bytes and bitmap say: (bitmap, begin of the first part, values in it,
    their width, begin of the second part, width there, its end, high bytes, DC, end of the
    payload). `head`, `at`: its three bytes and its payload; `last`: DC of the block before."""
    word = np.int64(load_u64(record, head))
    change = ((word & 255) ^ 128) - 128
    bitmap_bytes, split = min(word >> 8 & 15, 8), word >> 12 & 63
    first, rest = (word >> 18 & 7) + 1, (word >> 21 & 7) + 1
    wide = first < rest
    if wide:
        first = 8
    if change == ESCAPE:
        last = np.int64(np.int16(load_u64(record, at) & _U(0xFFFF)))
        at += 2
    else:
        last += change
    bitmap = load_u64(record, at) & _BITMAP[bitmap_bytes]
    at += bitmap_bytes
    second = at + ((split * first + 7) >> 3)
    end = second + ((max(count_bits(bitmap) - split, 0) * rest + 7) >> 3)
    high, after = 0, end
    if wide:
        high = np.int64(record[end])
        after += 1 + high
    return bitmap, at, split, first, second, rest, end, high, last, after


@inline_jit(forceinline=True)
def _read_block(record, head, at, last, outside, table, to, stride, scratch, waiting):
    """Read a block on any CPU: (end of its payload, DC, blocks that wait).

    `outside`: only pass over it. `table`: where in `dequantisation` its component's table is. `to`,
    `stride`: its place in `planes`. The other arguments as for `_open_block`.
    """
    block, planes, queue = scratch.block, scratch.planes, scratch.queue
    dequantisation, values = scratch.dequantisation, scratch.values
    bitmap, at, split, first, second, rest, end, high, last, after = _open_block(
        record, head, at, last
    )
    if outside:
        return after, last, waiting
    dc = np.int64(np.int16(last * np.int64(dequantisation[table])))
    if bitmap == _U(0):
        inverse_dct_flat(dc, planes, to, stride)
        return after, last, waiting
    slot = 64 * waiting
    number = count_bits(bitmap)
    _unpack(record, at, split, first, values, 0)
    _unpack(record, second, number - split, rest, values, split)
    left = bitmap
    for i in range(number):
        place = np.int64(NATURAL_ORDER[trailing_zeros(left) + 1])
        left &= left - _U(1)
        value = np.int64(np.int8(values[i]))
        block[slot + place] = value * np.int64(dequantisation[table + place])
    left = bitmap
    for i in range(min(high, number)):
        place = np.int64(NATURAL_ORDER[trailing_zeros(left) + 1])
        left &= left - _U(1)
        value = np.int64(np.int8(record[end + 1 + i])) << 8
        block[slot + place] += value * np.int64(dequantisation[table + place])
    block[slot] = dc
    queue[waiting], queue[QUEUE + waiting] = to, stride
    waiting += 1
    if waiting == 2:
        inverse_dct_pair(block, 0, 64, planes, queue[0], queue[QUEUE], queue[1], queue[QUEUE + 1])
        waiting = 0
    return after, last, waiting


@inline_jit(forceinline=True)
def _read_block_avx512(record, head, at, last, outside, table, to, stride, scratch, waiting):
    """`_read_block` by AVX-512."""
    block, planes, queue = scratch.block, scratch.planes, scratch.queue
    dequantisation = scratch.dequantisation
    bitmap, at, split, first, second, rest, end, high, last, after = _open_block(
        record, head, at, last
    )
    if outside:
        return after, last, waiting
    dc = np.int64(np.int16(last * np.int64(dequantisation[table])))
    if bitmap == _U(0):
        inverse_dct_flat(dc, planes, to, stride)
        return after, last, waiting
    values = join_values(load_values(record, at, first), load_values(record, second, rest), split)
    added = broadcast(np.int16(0), 64)
    if high:
        high_bytes = first_values(load(record, end + 1, 64), high)
        added = high_part(place_values(high_bytes, bitmap))
    placed = place_values(values, bitmap)
    store_coefficients(placed, added, dc, dequantisation, table, block, 64 * waiting)
    queue[waiting], queue[QUEUE + waiting] = to, stride
    waiting += 1
    if waiting == QUEUE:
        inverse_dct_four(block, planes, queue)
        waiting = 0
    return after, last, waiting


@inline_jit(forceinline=True)
def _read(avx512, record, head, at, last, outside, table, to, stride, scratch, waiting):
    """`_read_block`, or by AVX-512 where `avx512` is not None: Numba drops the other branch."""
    if avx512 is None:
        return _read_block(record, head, at, last, outside, table, to, stride, scratch, waiting)
    return _read_block_avx512(record, head, at, last, outside, table, to, stride, scratch, waiting)


@inline_jit(forceinline=True)
def _finish(avx512, scratch, waiting):
    """Inverse DCT of the blocks that wait, if any do."""
    block, queue = scratch.block, scratch.queue
    if waiting == 0:
        return
    if avx512 is None:
        to, stride = queue[0], queue[QUEUE]
        inverse_dct_pair(block, 0, 0, scratch.planes, to, stride, to, stride)
    else:
        for i in range(waiting, QUEUE):
            queue[i], queue[QUEUE + i] = queue[0], queue[QUEUE]
            store(block, 64 * i, load(block, 0, 64))
        inverse_dct_four(block, scratch.planes, queue)


@inline_jit()
def _read_rows(avx512, record, region, components, across, chunk, end, scratch):
    """Read the blocks of `region` to levels; returns the blocks that wait for their inverse DCT, -1
    where a chunk is damaged.

    `across`: MCUs of the image; `chunk`: of a chunk; `end`: where the chunks end. Levels go to
    `scratch.planes` as `lay_out_planes` has set.
    """
    frame = scratch.frame
    x1, y1, x2, y2 = region
    h, v = frame[0, H], frame[0, V]
    luma_stride, chroma_stride = frame[0, STRIDE], frame[1, STRIDE]
    mcu_blocks = h * v + components - 1
    chunks = (across + chunk - 1) // chunk
    waiting = 0
    for my in range(y1, y2):
        luma_row = frame[0, OFFSET] + 8 * ((my - y1) * v * luma_stride - x1 * h)
        chroma_row = 8 * ((my - y1) * chroma_stride - x1)
        for number in range(x1 // chunk, (x2 - 1) // chunk + 1):
            # 1. The chunk: three bytes a block, then the payloads.
            head, limit = _chunk_at(record, components, my * chunks + number, end)
            first, past = chunk * number, min(chunk * (number + 1), across)
            at = head + 3 * mcu_blocks * (past - first)
            luma, blue, red = 0, 0, 0  # DC of the blocks before
            # 2. Its MCUs up to the region's right edge.
            for mx in range(first, min(past, x2)):
                outside = mx < x1
                for b in range(h * v):
                    if at > limit:
                        return -1
                    to = luma_row + 8 * (mx * h + (b & (h - 1)) + (b >> (h - 1)) * luma_stride)
                    at, luma, waiting = _read(
                        avx512,
                        record,
                        head,
                        at,
                        luma,
                        outside,
                        0,
                        to,
                        luma_stride,
                        scratch,
                        waiting,
                    )
                    head += 3
                if components == 1:
                    continue
                to = chroma_row + 8 * mx
                if at > limit:
                    return -1
                at, blue, waiting = _read(
                    avx512,
                    record,
                    head,
                    at,
                    blue,
                    outside,
                    64,
                    to + frame[1, OFFSET],
                    chroma_stride,
                    scratch,
                    waiting,
                )
                if at > limit:
                    return -1
                at, red, waiting = _read(
                    avx512,
                    record,
                    head + 3,
                    at,
                    red,
                    outside,
                    128,
                    to + frame[2, OFFSET],
                    chroma_stride,
                    scratch,
                    waiting,
                )
                head += 6
            # 3. Read to its end, it must end where the next one begins.
            if at > limit or (x2 >= past and at != limit):
                return -1
    return waiting


@inline_jit()
def _decode(avx512, record, size, height, width, y, x, rows, columns, scratch, out):
    """`decode_record` by one of the readers."""
    components, down, across, chunk, end = _read_header(record, size, height, width, scratch)
    if components == 0:
        return NOT_PLAIN
    frame = scratch.frame
    h, v = frame[0, H], frame[0, V]
    x1, x2 = mcu_span(x, columns, h, across)
    y1, y2 = mcu_span(y, rows, v, down)
    region = x1, y1, x2, y2
    if lay_out_planes(frame, components, region) > len(scratch.planes):
        return NOT_PLAIN
    scratch.block[:] = 0  # `inverse_dct_pair` leaves it so
    waiting = _read_rows(avx512, record, region, components, across, chunk, end, scratch)
    if waiting < 0:
        return NOT_PLAIN
    _finish(avx512, scratch, waiting)
    corner = 8 * h * x1, 8 * v * y1
    convert_region(scratch, components, h, v, height, width, corner, y, x, rows, columns, out)
    return DECODED


@jit()
def decode_record(record, size, height, width, y, x, rows, columns, scratch, out):
    """Decode the region (y, x, rows, columns), pixels, of a record: DECODED or NOT_PLAIN.

    `record` uint8, `size` bytes. (`height`, `width`): the image's size, pixels. The region must lie
    inside the image; y and x must be even. `scratch`: a `RecordScratch`. `out` uint8, flat, at
    least 3 (rows · columns + LANES): receives (rows, columns, 3) RGB, and is undefined after
    NOT_PLAIN. A record that is damaged, of another size, without pixels of its own or too large for
    `scratch` is NOT_PLAIN: the JPEG that it gives back, if any, is for a library.
    """
    return _decode(None, record, size, height, width, y, x, rows, columns, scratch, out)


@jit()
def decode_record_avx512(record, size, height, width, y, x, rows, columns, scratch, out):
    """`decode_record` where `has_vbmi2`."""
    return _decode(0, record, size, height, width, y, x, rows, columns, scratch, out)

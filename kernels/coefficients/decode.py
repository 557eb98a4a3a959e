"""Reads a region of a record to RGB in compiled code, without the GIL.

Two readers of one format: `decode_record` runs on any CPU, `decode_record_avx512` needs AVX-512
with VBMI2 (`has_vbmi2`). Both check every offset, so that any bytes are safe, and yield the same
pixels: libjpeg-turbo's for the JPEG that the record was made from. `unpack` is the slow way, to
coefficients. They take the arguments of `jpeg.decode.decode_region`, so that a caller can have any
of them by address.

Rectangles in pixels are (y, x, rows, columns); the rectangle in MCUs is (x1, y1, x2, y2), its end
excluded.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..compiler.bits import load_little_endian
from ..compiler.jit import inline_jit, jit
from ..jpeg.checksum import crc32c
from ..jpeg.decode import DECODED, NOT_PLAIN
from ..jpeg.entropy import NATURAL_ORDER
from ..jpeg.planes import (
    Picture,
    convert_row,
    lay_out_planes,
    mcu_span,
    ring_row,
    sampling,
)
from ..jpeg.segments import STRIDE, H, V
from .read_block import finish_blocks, finish_blocks_avx512, read_block, read_block_avx512
from .record import CHECKED, GRAY, HEADER_SIZE, MAGIC, MARGIN, TABLE_BYTES, VERSION, YCBCR

_U = np.uint64
_MAGIC = int.from_bytes(MAGIC, "little")


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

    Writes sampling and quantisation to the `JpegScratch`.
    """
    bad = 0, 0, 0, 0, 0
    if size < HEADER_SIZE + MARGIN:
        return bad
    # 1. The header; offsets are those of `record.HEADER_DTYPE`.
    identity, description = load_little_endian(record, 0), load_little_endian(record, 8)
    sides, ends = load_little_endian(record, 16), load_little_endian(record, 24)
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
    frame = scratch.frame
    for i in range(components):
        frame[i, H], frame[i, V] = record[20 + i] >> 4, record[20 + i] & 15
    h, v = sampling(frame, components)
    if h == 0 or (h == 2 and width < 6):  # libjpeg upsamples narrow images by another rule
        return bad
    if chunk == 0 or height < 1 or width < 1:
        return bad
    # 2. The places of the index and the chunks.
    down, across = (height + 8 * v - 1) // (8 * v), (width + 8 * h - 1) // (8 * h)
    entries = down * ((across + chunk - 1) // chunk) + 1
    data, end = _low(ends), _high(ends)
    begin = HEADER_SIZE + TABLE_BYTES * components
    if data != begin + 4 * entries or data > end or end > size - MARGIN:
        return bad
    if crc32c(record[CHECKED:], size - CHECKED) != _high(identity):
        return bad
    # 3. Quantisation tables.
    for i in range(components):
        for k in range(64):
            step = load_little_endian(record, HEADER_SIZE + TABLE_BYTES * i + 2 * k) & _U(0xFFFF)
            scratch.factors[64 * i + np.int64(NATURAL_ORDER[k])] = np.int64(step)
    return components, down, across, chunk, end


@inline_jit(forceinline=True)
def _chunk_at(record, components, entry, end):
    """(begin, end) of a chunk; (0, -1), which no block lies in, where the offsets are damaged."""
    word = load_little_endian(record, HEADER_SIZE + TABLE_BYTES * components + 4 * entry)
    begin, limit = _low(word), _high(word)
    return (begin, limit) if HEADER_SIZE <= begin <= limit <= end else (0, -1)


def _make_decode(read: Any, finish: Any) -> Callable[..., Any]:
    """Make `decode_record` of the functions that read blocks and finish those that wait."""

    @inline_jit()
    def read_rows(record, picture, across, chunk, end, scratch):
        """Read the blocks of a `planes.Picture` to pixels; False where a chunk is damaged.

        `across`: MCUs of the image; `chunk`: of a chunk; `end`: where the chunks end.
        """
        frame, components = scratch.frame, picture.components
        x1, y1, x2, y2 = picture.mcus
        h, v = frame[0, H], frame[0, V]
        luma_stride, chroma_stride = frame[0, STRIDE], frame[1, STRIDE]
        mcu_blocks = h * v + components - 1
        chunks = (across + chunk - 1) // chunk
        for my in range(y1, y2):
            luma_row = ring_row(my, picture, frame, 0) - 8 * x1 * h
            blue_row = ring_row(my, picture, frame, 1) - 8 * x1
            red_row = ring_row(my, picture, frame, 2) - 8 * x1
            waiting = 0
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
                            return False
                        to = luma_row + 8 * (mx * h + (b & (h - 1)) + (b >> (h - 1)) * luma_stride)
                        at, luma, waiting = read(
                            record, head, at, luma, outside, 0, to, luma_stride, scratch, waiting
                        )
                        head += 3
                    if components == 1:
                        continue
                    if at > limit:
                        return False
                    at, blue, waiting = read(
                        record, head, at, blue, outside, 64, blue_row + 8 * mx,
                        chroma_stride, scratch, waiting,
                    )  # fmt: skip
                    if at > limit:
                        return False
                    at, red, waiting = read(
                        record, head + 3, at, red, outside, 128, red_row + 8 * mx,
                        chroma_stride, scratch, waiting,
                    )  # fmt: skip
                    head += 6
                # 3. Read to its end, it must end where the next one begins.
                if at > limit or (x2 >= past and at != limit):
                    return False
            finish(scratch, waiting)
            convert_row(scratch, picture, my)
        return True

    @inline_jit()
    def decode(record, size, height, width, y, x, rows, columns, scratch, out):
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
        picture = Picture(height, width, y, x, rows, columns, region, components, out)
        return DECODED if read_rows(record, picture, across, chunk, end, scratch) else NOT_PLAIN

    return decode


_portable = _make_decode(read_block, finish_blocks)
_by_avx512 = _make_decode(read_block_avx512, finish_blocks_avx512)


@jit()
def decode_record(record, size, height, width, y, x, rows, columns, scratch, out, table, i):
    """Decode the region (y, x, rows, columns), pixels, of a record: DECODED or NOT_PLAIN.

    `record` uint8, `size` bytes. (`height`, `width`): the image's size, pixels. The region must lie
    inside the image; y and x must be even. `scratch`: a `JpegScratch`. `out` uint8, flat, at least
    3 (rows · columns + LANES): receives (rows, columns, 3) RGB, and is undefined after NOT_PLAIN.
    `table`, `i`: those of JPEGs; a record has no checkpoints. A record that is damaged, of another
    size, without pixels of its own or too large for `scratch` is NOT_PLAIN: the JPEG that it gives
    back, if any, is for a library.
    """
    return _portable(record, size, height, width, y, x, rows, columns, scratch, out)


@jit()
def decode_record_avx512(record, size, height, width, y, x, rows, columns, scratch, out, table, i):
    """`decode_record` where `has_vbmi2`."""
    return _by_avx512(record, size, height, width, y, x, rows, columns, scratch, out)

"""A part of a baseline JPEG to RGB in compiled code, without the GIL, equal to libjpeg's exact
settings to the bit.

`decode_region` is for the plain case, which nearly every photograph is: 8-bit Huffman-coded
baseline JPEG, gray or YCbCr with luma sampled 1x1, 2x1 or 2x2, all in one scan, every code and
marker as it should be. Whatever else turns up it leaves to a library, so that damage is judged by
that alone; `decode_reference` is such a library.

All of the stream is read, since codes follow each other; only the blocks of the region are turned
to pixels.
"""

from typing import NamedTuple

import numpy as np
import simplejpeg

from ..compiler.jit import inline_jit, jit
from ..compiler.vector import broadcast, convert, first_lane, load, store
from ..compiler.vector_shuffle import store_interleaved
from ..headers import u16
from .entropy import END, LONG, ROOM, TABLE, build_table, read_block
from .pixels import (
    LANES,
    PAD,
    put_flat_block,
    put_rgb,
    put_two_blocks,
    upsampled_across,
    upsampled_both,
)

DECODED, NOT_PLAIN = range(2)
"""What `decode_region` returns: pixels, or that a library should have a look."""
MCU, BLOCK, FLAT = 6, 96, 65
"""Blocks that an MCU has at most; int16 that a block takes, and which of them says that it is DC
alone."""
_U = np.uint64


def decode_reference(data: bytes) -> np.ndarray:
    """(H, W, 3) uint8: the whole image by libjpeg-turbo; ValueError at its first warning."""
    return simplejpeg.decode_jpeg(data, "RGB", strict=True)


class JpegScratch(NamedTuple):
    """One thread's working memory."""

    clean: np.ndarray
    """(bytes of the largest file + ROOM,) uint8: the entropy-coded data without stuffed bytes and
    restart markers."""
    restarts: np.ndarray
    """(n,) int64: where in `clean` restart intervals begin."""
    tables: np.ndarray
    """(8 · (TABLE + LONG),) int32: four DC tables, then four AC tables."""
    quantisation: np.ndarray
    """(4 · 256,) int32, in zigzag order; 0 from 64 on."""
    planes: np.ndarray
    """uint8: samples of the region's blocks, by component."""
    block: np.ndarray
    """(2 · MCU · BLOCK,) int16: the coefficients of two MCUs; 0 where there is none to be read."""
    frame: np.ndarray
    """(4, 8) int64: by component, h, v, quantisation, DC and AC table, offset in `planes`, row
    stride, last DC."""


@jit(allocates=True)
def make_jpeg_scratch(file_bytes, pixels):
    """Working memory for files of up to `file_bytes` and regions of up to `pixels`, rounded up to
    whole blocks."""
    return JpegScratch(
        np.zeros(file_bytes + ROOM, np.uint8),
        np.zeros(1 << 16, np.int64),
        np.zeros(8 * (TABLE + LONG), np.int32),
        np.zeros(4 * 256, np.int32),
        np.zeros(3 * pixels + 8192, np.uint8),
        np.zeros(2 * MCU * BLOCK, np.int16),
        np.zeros((4, 8), np.int64),
    )


@inline_jit()
def _says(data, at, word):
    for i in range(len(word)):
        if data[at + i] != word[i]:
            return False
    return True


_JFIF, _ADOBE = np.frombuffer(b"JFIF\0", np.uint8), np.frombuffer(b"Adobe", np.uint8)
_H, _V, _QUANTISATION, _DC, _AC, _OFFSET, _STRIDE, _LAST = range(8)


@inline_jit()
def _read_headers(data, size, scratch):
    """Everything up to the scan: (position of its data or 0, height, width, components, restart
    interval)."""
    frame, tables, quantisation = scratch.frame, scratch.tables, scratch.quantisation
    height, width, components, interval, jfif, adobe = 0, 0, 0, 0, False, -1
    seen_tables, seen_quantisation = 0, 0
    bad = 0, 0, 0, 0, 0
    if size < 4 or u16(data, 0) != 0xFFD8:
        return bad
    i = 2
    while i + 4 <= size:
        if data[i] != 0xFF:
            return bad
        marker = data[i + 1]
        if marker == 0xFF:  # a fill byte
            i += 1
            continue
        length = u16(data, i + 2)
        begin, end = i + 4, i + 2 + length
        if length < 2 or end > size or marker < 0xC0 or 0xD0 <= marker <= 0xD9:
            return bad
        if marker == 0xDB:
            while begin < end:
                number = np.int64(data[begin])
                if number > 3 or begin + 65 > end:  # 16-bit tables have a high nibble
                    return bad
                for k in range(64):
                    quantisation[256 * number + k] = data[begin + 1 + k]
                seen_quantisation |= 1 << number
                begin += 65
        elif marker == 0xC4:
            while begin < end:
                number, count = np.int64(data[begin]), 0
                if number & 0xEC or begin + 17 > end:
                    return bad
                for k in range(16):
                    count += np.int64(data[begin + 1 + k])
                if count > 256 or begin + 17 + count > end:
                    return bad
                place = (number >> 4) * 4 + (number & 3)
                if not build_table(data, begin + 1, number >= 16, tables, place * (TABLE + LONG)):
                    return bad
                seen_tables |= 1 << place
                begin += 17 + count
        elif marker == 0xC0 or marker == 0xC1:
            if length < 11:
                return bad
            components = np.int64(data[begin + 5])
            if (
                components * 3 + 8 != length
                or data[begin] != 8
                or (components != 1 and components != 3)
                or height
            ):
                return bad
            height, width = u16(data, begin + 1), u16(data, begin + 3)
            for c in range(components):
                at = begin + 6 + 3 * c
                frame[c, _H], frame[c, _V], frame[c, _QUANTISATION] = (
                    data[at + 1] >> 4,
                    data[at + 1] & 15,
                    data[at + 2],
                )
                if (components == 3 and data[at] != c + 1 and not jfif and adobe != 1) or data[
                    at + 2
                ] > 3:
                    return bad
                frame[c, _LAST] = data[at]
        elif 0xC2 <= marker <= 0xCF:
            return bad
        elif marker == 0xDD:
            if length != 4:
                return bad
            interval = u16(data, begin)
        elif marker == 0xE0 and length >= 16 and _says(data, begin, _JFIF):
            if data[begin + 5] != 1:  # a version that libjpeg warns of
                return bad
            jfif = True
        elif marker == 0xEE and length >= 14 and _says(data, begin, _ADOBE):
            adobe = np.int64(data[begin + 11])
        elif marker == 0xDA:
            if (
                length < 8
                or length != 6 + 2 * components
                or data[begin] != components
                or not height
                or not width
            ):
                return bad
            if components == 3 and adobe != 1 and adobe != -1 and not jfif:
                return bad
            for c in range(components):
                selector = np.int64(data[begin + 2 + 2 * c])
                if data[begin + 1 + 2 * c] != frame[c, _LAST] or selector & 0xCC:
                    return bad
                frame[c, _DC], frame[c, _AC] = selector >> 4, 4 + (selector & 15)
                wanted = 1 << frame[c, _DC] | 1 << frame[c, _AC]
                if (
                    seen_tables & wanted != wanted
                    or not seen_quantisation >> frame[c, _QUANTISATION] & 1
                ):
                    return bad
            spectrum = begin + 1 + 2 * components  # a scan of all coefficients, in whole
            if data[spectrum] != 0 or data[spectrum + 1] != 63 or data[spectrum + 2] != 0:
                return bad
            return end, height, width, components, interval
        i = end
    return bad


@inline_jit()
def _unstuff(data, begin, size, clean, restarts):
    """The scan's data without stuffed bytes, followed by zeros: (bytes, restart markers), or -1
    where it is not plain.

    Restart markers must be numbered in turn; an end-of-image marker must follow the scan.
    """
    at, to, count = begin, 0, 0
    while True:
        while at + 64 <= size:  # copy 32 bytes, go on behind the first 0xFF of them
            chunk = load(data, at, 32)
            store(clean, to, chunk)
            step = first_lane(chunk == np.uint8(0xFF))
            at, to = at + step, to + step
            if step < 32:
                break
        while at < size and data[at] != 0xFF:
            clean[to] = data[at]
            at, to = at + 1, to + 1
        if at + 1 >= size:
            return -1, 0
        following = data[at + 1]
        if following == 0:
            clean[to] = 0xFF
            to += 1
        elif following == 0xD0 + (count & 7) and count < len(restarts):
            restarts[count] = to
            count += 1
        elif following == 0xD9:
            break
        else:
            return -1, 0
        at += 2
    clean[to : to + 64] = 0
    return to, count


@inline_jit()
def _sampling(frame, components):
    """(h, v) of the luma where the other components are sampled once; (0, 0) where the sampling is
    not plain."""
    h, v = frame[0, _H], frame[0, _V]
    if components == 1 and h * v != 1:
        return 0, 0
    for c in range(1, components):
        if frame[c, _H] != 1 or frame[c, _V] != 1:
            return 0, 0
    return (h, v) if (h == 1 and v == 1) or (h == 2 and (v == 1 or v == 2)) else (0, 0)


@inline_jit()
def _decode_scan(
    data, clean, size, restarts, interval, across, down, region, components, whole, scratch
):
    """Every block of the scan; of the MCUs in `region` (x1, y1, x2, y2) to the planes. False where
    it ends badly.

    Unless `whole`, no further than the region's last row.
    """
    frame, tables, quantisation, block, planes = (
        scratch.frame,
        scratch.tables,
        scratch.quantisation,
        scratch.block,
        scratch.planes,
    )
    bits, count, at = _U(0), _U(0), _U(0)
    x1, y1, x2, y2 = region
    until, done = interval, 0
    # Blocks are transformed in pairs; while one waits for the next, an MCU goes to the block
    # memory's other half.
    first, waiting, waits_at, waits_stride = 0, -1, 0, 0
    for my in range(down if whole else y2):
        for mx in range(across):
            if interval and until == 0:
                if (
                    done >= restarts
                    or np.int64(at) - np.int64(count >> _U(3)) != scratch.restarts[done]
                ):
                    return False
                at, bits, count = _U(scratch.restarts[done]), _U(0), _U(0)
                for c in range(components):
                    frame[c, _LAST] = 0
                until, done = interval, done + 1
            until -= 1
            inside = x1 <= mx < x2 and y1 <= my < y2
            number = first
            for c in range(components):
                h, v, q = frame[c, _H], frame[c, _V], 256 * frame[c, _QUANTISATION]
                dc, ac = frame[c, _DC] * (TABLE + LONG), frame[c, _AC] * (TABLE + LONG)
                for _ in range(v * h):
                    bits, count, at, difference, k = read_block(
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
                        BLOCK * number,
                    )
                    if k == _U(0):
                        return False
                    value = frame[c, _LAST] + difference
                    frame[c, _LAST] = value
                    block[BLOCK * number] = value * quantisation[q]
                    block[BLOCK * number + FLAT] = k == _U(2 + END)
                    number += 1
            if inside:
                number = first
                for c in range(components):
                    h, v, stride = frame[c, _H], frame[c, _V], frame[c, _STRIDE]
                    for by in range(v):
                        for bx in range(h):
                            to = frame[c, _OFFSET] + 8 * (
                                ((my - y1) * v + by) * stride + (mx - x1) * h + bx
                            )
                            source = BLOCK * number
                            if block[source + FLAT]:
                                put_flat_block(np.int64(block[source]), planes, to, stride)
                            elif waiting < 0:
                                waiting, waits_at, waits_stride = source, to, stride
                            else:
                                put_two_blocks(
                                    block,
                                    waiting,
                                    source,
                                    planes,
                                    waits_at,
                                    waits_stride,
                                    to,
                                    stride,
                                )
                                waiting = -1
                            number += 1
                first = MCU if 0 <= waiting < MCU * BLOCK else 0
            else:
                for i in range(first, number):
                    store(block, BLOCK * i, broadcast(np.int16(0), 32))
                    store(block, BLOCK * i + 32, broadcast(np.int16(0), 32))
            if np.int64(at) > size + 8:
                return False
    if waiting >= 0:
        put_two_blocks(
            block, waiting, waiting, planes, waits_at, waits_stride, waits_at, waits_stride
        )
    if not whole:
        return True
    # All that is left must be the last byte's filling.
    return np.int64(at) - np.int64(count >> _U(3)) == size and done == restarts


@inline_jit(forceinline=True)
def _span(begin, length, factor, blocks):
    """The MCUs (first, past the last) that hold samples begin .. begin + length - 1, and what
    upsampling looks at."""
    margin = factor if factor > 1 else 0
    last = begin + length - 1 + margin
    return max(begin - margin, 0) // (8 * factor), min(last // (8 * factor) + 1, blocks)


@inline_jit()
def _lay_out(frame, components, region):
    """Offsets and strides of the components' samples in the planes; returns the bytes that they
    take."""
    x1, y1, x2, y2 = region
    total = PAD
    for c in range(components):
        stride = 8 * (x2 - x1) * frame[c, _H] + 2 * PAD
        frame[c, _OFFSET], frame[c, _STRIDE], frame[c, _LAST] = total + PAD, stride, 0
        total += 8 * (y2 - y1) * frame[c, _V] * stride
    return total + LANES + PAD


@inline_jit()
def _extend_edges(planes, offset, stride, rows, left, right):
    """Repeat the image's first and last column of samples, those at `left` and `right` (-1 for
    neither), outwards."""
    for row in range(rows):
        at = offset + row * stride
        if left >= 0:
            planes[at + left - 1] = planes[at + left]
        if right >= 0:
            planes[at + right + 1] = planes[at + right]


@inline_jit()
def _convert_region(scratch, components, h, v, height, width, corner, y, x, rows, columns, out):
    """The region's samples to RGB in `out`; `corner` (x, y) of the planes in pixels."""
    frame, planes = scratch.frame, scratch.planes
    half_height, half_width = (height + 1) // 2, (width + 1) // 2
    chroma_x, chroma_y = corner[0] // h, corner[1] // v
    if h == 2:
        left = 0 if chroma_x == 0 else -1
        right = half_width - 1 - chroma_x if x + columns == width else -1
        for c in range(1, 3):
            stored = (frame[2, _OFFSET] - frame[1, _OFFSET]) // frame[1, _STRIDE]
            _extend_edges(planes, frame[c, _OFFSET], frame[c, _STRIDE], stored, left, right)
    for row in range(rows):
        pixel_y = y + row
        luma_at = frame[0, _OFFSET] + (pixel_y - corner[1]) * frame[0, _STRIDE] + x - corner[0]
        near = far = pixel_y - corner[1]
        if v == 2:
            near = pixel_y // 2
            far = min(max(near + 2 * (pixel_y & 1) - 1, 0), half_height - 1) - chroma_y
            near -= chroma_y
        stride, chroma = frame[1, _STRIDE], x // h - chroma_x
        blue_near, blue_far = (
            frame[1, _OFFSET] + near * stride + chroma,
            frame[1, _OFFSET] + far * stride + chroma,
        )
        red_near, red_far = (
            frame[2, _OFFSET] + near * stride + chroma,
            frame[2, _OFFSET] + far * stride + chroma,
        )
        for column in range(0, columns, LANES):
            to = 3 * (row * columns + column)
            levels = load(planes, luma_at + column, LANES)
            if components == 1:
                store_interleaved(out, to, levels, levels, levels)
                continue
            luma, at = convert(levels, np.int16), column // h
            if h == 1:
                blue = convert(load(planes, blue_near + at, LANES), np.int16)
                red = convert(load(planes, red_near + at, LANES), np.int16)
            elif v == 1:
                blue, red = (
                    upsampled_across(planes, blue_near + at),
                    upsampled_across(planes, red_near + at),
                )
            else:
                blue = upsampled_both(planes, blue_near + at, blue_far + at)
                red = upsampled_both(planes, red_near + at, red_far + at)
            put_rgb(luma, blue, red, out, to)


@jit()
def decode_region(data, size, height, width, y, x, rows, columns, whole, scratch, out):
    """Decode the part (y, x, rows, columns) of a JPEG of `size` bytes into `out`, in libjpeg's own
    levels.

    `data` uint8, at least `size` bytes; (`height`, `width`): the image's, else it is NOT_PLAIN; the
    region lies in it, y and x are even. `out` uint8, flat, at least 3 (rows columns + LANES); it
    then holds (rows, columns, 3). `scratch` with room for the file and the region. Returns DECODED,
    or NOT_PLAIN with `out` undefined. Unless `whole`, the stream is read no further than it must
    be, so that damage below the region goes unseen.
    """
    begin, its_height, its_width, components, interval = _read_headers(data, size, scratch)
    if begin == 0 or its_height != height or its_width != width or len(scratch.clean) < size + ROOM:
        return NOT_PLAIN
    frame = scratch.frame
    h, v = _sampling(frame, components)
    if h == 0 or (h == 2 and width < 6):  # libjpeg upsamples narrow images otherwise
        return NOT_PLAIN
    across, down = (width + 8 * h - 1) // (8 * h), (height + 8 * v - 1) // (8 * v)
    (x1, x2), (y1, y2) = _span(x, columns, h, across), _span(y, rows, v, down)
    region = x1, y1, x2, y2
    if _lay_out(frame, components, region) > len(scratch.planes):
        return NOT_PLAIN
    clean_size, restarts = _unstuff(data, begin, size, scratch.clean, scratch.restarts)
    scratch.block[:] = 0
    if clean_size < 0 or not _decode_scan(
        data,
        scratch.clean,
        clean_size,
        restarts,
        interval,
        across,
        down,
        region,
        components,
        whole,
        scratch,
    ):
        return NOT_PLAIN
    corner = 8 * h * x1, 8 * v * y1
    _convert_region(scratch, components, h, v, height, width, corner, y, x, rows, columns, out)
    return DECODED

"""Segments of a JPEG up to its scan: quantisation and Huffman tables, frame and scan header.

Every check here mirrors one of libjpeg's. A file that fails any of them is left to libjpeg-turbo,
see `decode.NOT_PLAIN`.
"""

import numpy as np

from ..compiler.jit import inline_jit
from ..headers import is_ordinary, u16
from .entropy import TABLE_SIZE, build_code_table, build_table, lengthen_entries
from .markers import (
    APP0,
    APP14,
    DHT,
    DQT,
    DRI,
    PREFIX,
    SOF0,
    SOF1,
    SOF2,
    SOI,
    SOS,
)

H, V, QUANTISATION, DC_TABLE, AC_TABLE, OFFSET, STRIDE, LAST_DC = range(8)
"""Columns of `JpegScratch.frame`, which has a row for each component: horizontal and vertical
sampling factor, number of the quantisation table, of the DC and the AC table (0..3 and 4..7),
offset and row stride in `JpegScratch.planes`, DC value of the block before."""
QUANTISATION_STRIDE = 256
"""int32 from one quantisation table to the next. 64 are the table, the others stay 0 and take the
look-ups of out-of-range coefficients."""

_JFIF = np.frombuffer(b"JFIF\0", np.uint8)
_ADOBE = np.frombuffer(b"Adobe", np.uint8)


@inline_jit()
def _starts_with(data, at, word):
    """Whether the bytes of `data` from `at` on are those of `word`."""
    for i in range(len(word)):
        if data[at + i] != word[i]:
            return False
    return True


@inline_jit()
def _read_quantisation_tables(data, begin, end, quantisation):
    """Read a DQT segment; returns a bit for each table read, or -1 where it is not plain.

    `quantisation` (4 · QUANTISATION_STRIDE,) int32, in zigzag order.
    """
    tables_read = 0
    while begin < end:
        number = np.int64(data[begin])
        if number > 3 or begin + 65 > end:  # a 16-bit table has 1 in the high nibble
            return -1
        for k in range(64):
            if data[begin + 1 + k] == 0:
                return -1
            quantisation[QUANTISATION_STRIDE * number + k] = data[begin + 1 + k]
        tables_read |= 1 << number
        begin += 65
    return tables_read


@inline_jit()
def _read_huffman_tables(data, begin, end, tables, with_values):
    """Read a DHT segment; returns a bit for each table read (0..3 DC, 4..7 AC), or -1 where it is
    not plain.

    `tables` (8 · TABLE_SIZE,) int32.
    """
    tables_read = 0
    while begin < end:
        selector = np.int64(data[begin])  # the class (0 DC, 1 AC) << 4 | the number
        symbols = 0
        if selector & 0xEC or begin + 17 > end:
            return -1
        for k in range(16):
            symbols += np.int64(data[begin + 1 + k])
        if symbols > 256 or begin + 17 + symbols > end:
            return -1
        place = (selector >> 4) * 4 + (selector & 3)
        to = place * TABLE_SIZE
        if with_values:
            built = build_table(data, begin + 1, selector >= 16, tables, to)
        else:
            built = build_code_table(data, begin + 1, selector >= 16, tables, to)
        if not built:
            return -1
        tables_read |= 1 << place
        begin += 17 + symbols
    return tables_read


@inline_jit()
def _read_frame_header(data, begin, length, is_ycbcr, frame):
    """Read an SOF0 or SOF1 segment: (height, width, components), zeros where it is not plain.

    Writes sampling and quantisation of the components to `frame` (4, 8) int64, and for the scan
    header their identifiers to LAST_DC. Unless `is_ycbcr`, identifiers other than 1, 2, 3 may mean
    RGB.
    """
    bad = 0, 0, 0
    if length < 11:
        return bad
    components = np.int64(data[begin + 5])
    if components * 3 + 8 != length or data[begin] != 8:  # 8 bits a sample
        return bad
    if components != 1 and components != 3:
        return bad
    for c in range(components):
        at = begin + 6 + 3 * c
        if components == 3 and data[at] != c + 1 and not is_ycbcr:
            return bad
        if data[at + 2] > 3:
            return bad
        frame[c, H] = data[at + 1] >> 4
        frame[c, V] = data[at + 1] & 15
        frame[c, QUANTISATION] = data[at + 2]
        frame[c, LAST_DC] = data[at]
    height = u16(data, begin + 1)
    width = u16(data, begin + 3)
    if height == 0 or width == 0:
        return bad
    return height, width, components


@inline_jit()
def _read_scan_header(data, begin, length, components, huffman_read, quantisation_read, frame):
    """Read an SOS segment: whether it is one sequential scan of all components, with tables that
    have been read.

    `huffman_read` and `quantisation_read`: a bit for each table. Writes the components' Huffman
    tables to `frame` (4, 8) int64.
    """
    if length < 8 or length != 6 + 2 * components or data[begin] != components:
        return False
    for c in range(components):
        identifier = data[begin + 1 + 2 * c]
        selector = np.int64(data[begin + 2 + 2 * c])  # the DC table << 4 | the AC table
        if identifier != frame[c, LAST_DC] or selector & 0xCC:
            return False
        frame[c, DC_TABLE] = selector >> 4
        frame[c, AC_TABLE] = 4 + (selector & 15)
        needed = 1 << frame[c, DC_TABLE] | 1 << frame[c, AC_TABLE]
        if huffman_read & needed != needed:
            return False
        if not quantisation_read >> frame[c, QUANTISATION] & 1:
            return False
    # A single sequential scan: Ss=0, Se=63, Ah=Al=0.
    at = begin + 1 + 2 * components
    return data[at] == 0 and data[at + 1] == 63 and data[at + 2] == 0


@inline_jit()
def read_segments(data, size, scratch, with_values):
    """Read all segments up to the scan: (position of its data, height, width, components, restart
    interval), zeros where any is not plain.

    `data` uint8, at least `size` bytes. The restart interval is in MCUs, 0 for none. Tables and
    components go to the `JpegScratch`. `with_values`: whether look-up tables hold values, see
    `build_table`; else they are those of `build_code_table`.
    """
    frame = scratch.frame
    height, width, components, interval = 0, 0, 0, 0
    jfif, adobe = False, -1  # whether APP0 was seen, and APP14's colour transform
    huffman_read, quantisation_read = 0, 0
    bad = 0, 0, 0, 0, 0
    if size < 4 or data[0] != PREFIX or data[1] != SOI:
        return bad
    i = 2
    while i + 4 <= size:
        # One segment: PREFIX, the marker, two bytes of length, the content from `begin` to `end`.
        if data[i] != PREFIX:
            return bad
        marker = data[i + 1]
        if marker == PREFIX:  # a fill byte
            i += 1
            continue
        length = u16(data, i + 2)
        begin, end = i + 4, i + 2 + length
        if length < 2 or end > size or not (marker == SOS or is_ordinary(marker)):
            return bad

        if marker == DQT:
            tables_read = _read_quantisation_tables(data, begin, end, scratch.quantisation)
            if tables_read < 0:
                return bad
            quantisation_read |= tables_read
        elif marker == DHT:
            tables_read = _read_huffman_tables(data, begin, end, scratch.tables, with_values)
            if tables_read < 0:
                return bad
            huffman_read |= tables_read
        elif marker in (SOF0, SOF1):
            if height:  # a second frame
                return bad
            is_ycbcr = jfif or adobe == 1
            height, width, components = _read_frame_header(data, begin, length, is_ycbcr, frame)
            if height == 0:
                return bad
        elif marker == SOF2:  # progressive
            return bad
        elif marker == DRI:
            if length != 4:
                return bad
            interval = u16(data, begin)
        elif marker == APP0 and length >= 16 and _starts_with(data, begin, _JFIF):
            if data[begin + 5] != 1:  # libjpeg warns of any other major version
                return bad
            jfif = True
        elif marker == APP14 and length >= 14 and _starts_with(data, begin, _ADOBE):
            adobe = np.int64(data[begin + 11])
        elif marker == SOS:
            if height == 0:
                return bad
            if components == 3 and adobe != 1 and adobe != -1 and not jfif:  # stored as RGB
                return bad
            if not _read_scan_header(
                data, begin, length, components, huffman_read, quantisation_read, frame
            ):
                return bad
            for c in range(components if with_values else 0):
                q = QUANTISATION_STRIDE * frame[c, QUANTISATION]
                table = TABLE_SIZE * frame[c, AC_TABLE]
                lengthen_entries(scratch.tables, table, scratch.quantisation, q)
            return end, height, width, components, interval
        # Any other segment, such as EXIF or a comment, is skipped.
        i = end
    return bad

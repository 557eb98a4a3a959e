"""The record: one JPEG's coefficients and segments. docs/coefficients.md specifies it.

A record is little-endian: header, quantisation tables, index, chunks, segments. A chunk holds up to
`CHUNK` MCUs of an MCU row: three bytes a block, then the blocks' payloads. Chunks do not depend on
one another, so that a crop reads those that it touches. The segments are the JPEG's own bytes
between its entropy-coded data, from which the file is made again, byte for byte.
"""

from typing import NamedTuple

import numpy as np

from ..compiler.jit import inline_jit, jit
from ..errors import MaskCoError
from ..jpeg.checksum import file_checksum
from .bits import leading_zeros, load_u64
from .jpeg_file import JpegFile, NotTranscodable, parse_jpeg
from .scans import read_coefficients, write_scan_data

MAGIC = b"MFCO"
VERSION = 1
"""Bump when the layout changes."""
CHUNK = 32
"""MCUs of a chunk that the writer makes."""
MARGIN = 256
"""Bytes that follow the chunks at least: readers take whole vectors."""
MAX_RECORD = (1 << 32) - 1
"""Largest record: offsets take 32 bits."""
MAX_BLOCK = 3 + 2 + 8 + 63 + 1 + 63
"""Most bytes of a block: its three, DC, the bitmap, low bytes, the count and high bytes."""
HEADER_DTYPE = np.dtype(
    [
        ("magic", "S4"),
        ("checksum", "<u4"),
        ("version", "<u2"),
        ("components", "u1"),
        ("chunk", "u1"),
        ("size", "<u4"),
        ("height", "<u2"),
        ("width", "<u2"),
        ("sampling", "u1", (4,)),
        ("data", "<u4"),
        ("segments", "<u4"),
        ("jpeg_size", "<u4"),
        ("colours", "u1"),
        ("reserved", "u1", (27,)),
    ]
)
CHECKED = 8
"""First byte that the checksum covers."""
HEADER_SIZE = HEADER_DTYPE.itemsize
assert HEADER_SIZE == 64

ONLY_JPEG, GRAY, YCBCR = range(3)
"""`colours`: pixels are those of the JPEG that the record gives back; or they follow from the
coefficients as those of a gray or a YCbCr JPEG by libjpeg's default rules."""
ESCAPE = -128
"""DC change that stands for a DC of 16 bits in the payload."""
COEFFICIENT_BITS = 14
"""Dequantised coefficients of `colours` other than ONLY_JPEG fit, as for `jpeg.entropy`."""
_U = np.uint64


class BadRecord(MaskCoError):
    """A record is damaged. The message is a reason of a few words, equal for equal causes."""


class Record(NamedTuple):
    """A record's header, and its coefficients by component."""

    header: np.void
    blocks: np.ndarray
    """(n, 64) int16 in zigzag order: all components' blocks, row by row, as `scans` has them."""


@inline_jit(forceinline=True)
def _width(value):
    """Bits that a value which is not 0 takes: 1..2^(w-1) and -2^(w-1)..-1 below eight, -128..127
    with eight; 9 for more."""
    if value > 127 or value < -128:
        return 9
    if value > 64 or value < -64:
        return 8
    magnitude = value - 1 if value > 0 else -value - 1
    return 65 - leading_zeros(_U(magnitude))


@inline_jit()
def _put_values(out, at, values, begin, end, width):
    """Write values `begin` to `end` at `width` bits each from byte `at` of `out` on; returns the
    byte after them."""
    word, filled = 0, 0
    for i in range(begin, end):
        low = ((values[i] + 128) & 255) - 128
        code = (low - 1 if low > 0 and width < 8 else low) & ((1 << width) - 1)
        word |= code << filled
        filled += width
        if filled >= 8:
            out[at] = word & 255
            at += 1
            word >>= 8
            filled -= 8
    if filled:
        out[at] = word
        at += 1
    return at


@inline_jit()
def _choose_widths(widths, number, high, suffix):
    """The cheapest split of a block's values: (values in the first part, its width, the rest's).

    `widths` (number,) of `_width`; `high`: values with a high byte. `suffix` (65,): working memory.
    """
    suffix[number] = 2 if high else 1
    for i in range(number - 1, -1, -1):
        suffix[i] = max(suffix[i + 1], min(widths[i], 8))
    best, split, first, rest, prefix = 1 << 30, 0, 1, 1, 1
    for i in range(number + 1):
        width = 8 if high else max(prefix, suffix[i])
        cost = ((i * width + 7) >> 3) + (((number - i) * suffix[i] + 7) >> 3)
        if cost < best and i >= high:
            best, split, first, rest = cost, i, width, suffix[i]
        if i < number:
            prefix = max(prefix, min(widths[i], 8))
    return split, first, rest


@jit(allocates=True)
def _pack_chunks(blocks, layout, down, across, chunk, index, out, at):
    """Write all chunks of `blocks` into `out` from `at` on, and their offsets to `index`;
    returns where they end.

    `blocks` (n · 64,) int16 as in `Record`. `layout` (c, 4) int64: first block, blocks across, h
    and v of each component. `down`, `across`: MCUs.
    """
    values, widths = np.zeros(64, np.int64), np.zeros(64, np.int64)
    suffix, last = np.zeros(65, np.int64), np.zeros(4, np.int64)
    mcu_blocks = 0
    for c in range(len(layout)):
        mcu_blocks += layout[c, 2] * layout[c, 3]
    entry = 0
    for my in range(down):
        for begin in range(0, across, chunk):
            index[entry] = at
            entry += 1
            end = min(begin + chunk, across)
            head, at = at, at + 3 * mcu_blocks * (end - begin)
            last[:] = 0
            for mx in range(begin, end):
                for c in range(len(layout)):
                    h, v = layout[c, 2], layout[c, 3]
                    for b in range(h * v):
                        row, column = my * v + b // h, mx * h + b % h
                        block = 64 * (layout[c, 0] + row * layout[c, 1] + column)
                        dc = np.int64(blocks[block])
                        mask, number, bitmap, high = _U(0), 0, 0, 0
                        for k in range(1, 64):
                            value = np.int64(blocks[block + k])
                            if value:
                                mask |= _U(1) << _U(k - 1)
                                values[number] = value
                                widths[number] = _width(value)
                                number += 1
                                bitmap = (k + 7) // 8
                                if widths[number - 1] == 9:
                                    high = number
                        split, first, rest = _choose_widths(widths, number, high, suffix)
                        change = dc - last[c]
                        last[c] = dc
                        escapes = change < -127 or change > 127
                        word = ESCAPE & 255 if escapes else change & 255
                        word |= bitmap << 8 | split << 12 | (rest - 1) << 21
                        if not high:
                            word |= (first - 1) << 18
                        out[head] = word & 255
                        out[head + 1] = word >> 8 & 255
                        out[head + 2] = word >> 16
                        head += 3
                        if escapes:
                            out[at] = dc & 255
                            out[at + 1] = dc >> 8 & 255
                            at += 2
                        for b8 in range(bitmap):
                            out[at + b8] = np.int64(mask >> _U(8 * b8)) & 255
                        at += bitmap
                        at = _put_values(out, at, values, 0, split, first)
                        at = _put_values(out, at, values, split, number, rest)
                        if high:
                            out[at] = high
                            for i in range(high):
                                low = ((values[i] + 128) & 255) - 128
                                out[at + 1 + i] = (values[i] - low) >> 8 & 255
                            at += 1 + high
    index[entry] = at
    return at


@jit(allocates=True)
def _unpack_chunks(record, layout, down, across, chunk, index, blocks):
    """The inverse of `_pack_chunks`, for any bytes; returns whether the chunks are sound.

    `index`: the offsets, which must not descend and end MARGIN bytes before the record.
    """
    last = np.zeros(4, np.int64)
    mcu_blocks = 0
    for c in range(len(layout)):
        mcu_blocks += layout[c, 2] * layout[c, 3]
    entry = 0
    for my in range(down):
        for begin in range(0, across, chunk):
            head, limit = np.int64(index[entry]), np.int64(index[entry + 1])
            entry += 1
            end = min(begin + chunk, across)
            at = head + 3 * mcu_blocks * (end - begin)
            last[:] = 0
            for mx in range(begin, end):
                for c in range(len(layout)):
                    h, v = layout[c, 2], layout[c, 3]
                    for b in range(h * v):
                        if at > limit:
                            return False
                        row, column = my * v + b // h, mx * h + b % h
                        block = 64 * (layout[c, 0] + row * layout[c, 1] + column)
                        word = np.int64(load_u64(record, head))
                        head += 3
                        change = ((word & 255) ^ 128) - 128
                        bitmap, split = min(word >> 8 & 15, 8), word >> 12 & 63
                        first, rest = (word >> 18 & 7) + 1, (word >> 21 & 7) + 1
                        high = first < rest
                        if high:
                            first = 8
                        if change == ESCAPE:
                            last[c] = np.int64(np.int16(load_u64(record, at) & _U(0xFFFF)))
                            at += 2
                        else:
                            last[c] += change
                        blocks[block] = last[c]
                        mask = load_u64(record, at)
                        at += bitmap
                        second = at + ((split * first + 7) >> 3)
                        number = 0
                        for k in range(1, 64):
                            if k > 8 * bitmap or mask >> _U(k - 1) & _U(1) == _U(0):
                                continue
                            width = first if number < split else rest
                            place = at if number < split else second
                            bit = (number if number < split else number - split) * width
                            code = np.int64(load_u64(record, place + (bit >> 3)) >> _U(bit & 7))
                            half = 1 << (width - 1)
                            value = ((code & (2 * half - 1)) ^ half) - half
                            if value >= 0 and width < 8:
                                value += 1
                            blocks[block + k] = value
                            number += 1
                        at = second + ((max(number - split, 0) * rest + 7) >> 3)
                        if high:
                            count, number = np.int64(record[at]), 0
                            for k in range(1, 64):
                                if k > 8 * bitmap or mask >> _U(k - 1) & _U(1) == _U(0):
                                    continue
                                if number < count:
                                    byte = np.int64(np.int8(record[at + 1 + number]))
                                    blocks[block + k] += byte << 8
                                number += 1
                            at += 1 + count
            if at != limit:
                return False
    return True


def pack(data: bytes) -> bytes:
    """The record of a JPEG; NotTranscodable where the file cannot be made from it again.

    The scans are written once more and compared, and so are the record's coefficients.
    """
    file = parse_jpeg(data)
    blocks = read_coefficients(file, data)
    if max(file.height, file.width) >= 1 << 16:
        raise NotTranscodable("too large")
    lengths, pieces, at = [], [], 0
    for scan in file.scans:
        if (
            write_scan_data(file, scan, blocks, scan.end - scan.begin)
            != data[scan.begin : scan.end]
        ):
            raise NotTranscodable("entropy coding of another encoder")
        lengths.append(scan.end - scan.begin)
        pieces.append(data[at : scan.begin])
        at = scan.end
    pieces.append(data[at:])
    counts = [len(lengths), *lengths, *map(len, pieces)]
    segments = np.array(counts, "<u4").tobytes() + b"".join(pieces)
    record = _assemble(file, blocks, segments, len(data))
    if not np.array_equal(unpack(record, file), blocks):
        raise NotTranscodable("coefficients differ")
    return record


def _assemble(file: JpegFile, blocks: np.ndarray, segments: bytes, jpeg_size: int) -> bytes:
    """The record of these coefficients and segments."""
    layout, (down, across) = _layout(file), file.mcus
    entries = down * -(-across // CHUNK) + 1
    begin = HEADER_SIZE + 128 * len(layout) + 4 * entries
    room = begin + MAX_BLOCK * len(blocks) + MARGIN + len(segments)
    if room > MAX_RECORD:
        raise NotTranscodable("too large")
    out, index = np.zeros(room, np.uint8), np.zeros(entries, np.uint32)
    end = _pack_chunks(blocks.reshape(-1), layout, down, across, CHUNK, index, out, begin)
    size = end + max(len(segments), MARGIN)
    header = np.zeros((), HEADER_DTYPE)
    header["magic"], header["version"], header["chunk"] = MAGIC, VERSION, CHUNK
    header["components"], header["size"] = len(layout), size
    header["height"], header["width"] = file.height, file.width
    for c, (_, _, h, v) in enumerate(layout.tolist()):
        header["sampling"][c] = h << 4 | v
    header["data"], header["segments"], header["jpeg_size"] = begin, end, jpeg_size
    header["colours"] = _colours(file, blocks)
    tables = file.quantisation.astype("<u2").tobytes()
    head = header.tobytes() + tables + index.astype("<u4").tobytes()
    out[:begin] = np.frombuffer(head, np.uint8)
    out[end : end + len(segments)] = np.frombuffer(segments, np.uint8)
    return with_checksum(out[:size].tobytes())


def with_checksum(record: bytes) -> bytes:
    """The record with the checksum of its bytes."""
    found = _checksum(record)
    return record[: CHECKED - 4] + found.to_bytes(4, "little") + record[CHECKED:]


def _checksum(record: bytes) -> int:
    return int(file_checksum(np.frombuffer(record, np.uint8)[CHECKED:]))


def _layout(file: JpegFile) -> np.ndarray:
    """(components, 4) int64: first block, blocks across, h and v of each."""
    rows, first = [], 0
    for c in range(len(file.components)):
        down, across = file.blocks(c)
        rows.append((first, across, *file.sampling(c)))
        first += down * across
    return np.array(rows, np.int64)


def _colours(file: JpegFile, blocks: np.ndarray) -> int:
    """How pixels follow from the coefficients; the caller makes sure that a file of three
    components is YCbCr."""
    factors = [file.sampling(c) for c in range(len(file.components))]
    plain = {1: [(1, 1)], 3: [(1, 1), (2, 1), (2, 2)]}.get(len(factors), [])
    if factors[0] not in plain or any(factor != (1, 1) for factor in factors[1:]):
        return ONLY_JPEG
    if factors[0][0] == 2 and file.width < 6:  # libjpeg upsamples narrow images by another rule
        return ONLY_JPEG
    first = 0
    for c, quantisation in enumerate(file.quantisation):
        down, across = file.blocks(c)
        mine = blocks[first : first + down * across]
        extremes = np.stack([mine.min(0), mine.max(0)]).astype(np.int64) * quantisation
        if extremes.min() < -(1 << COEFFICIENT_BITS - 1) or extremes.max() >> COEFFICIENT_BITS - 1:
            return ONLY_JPEG
        first += down * across
    return GRAY if len(factors) == 1 else YCBCR


def read_header(record: bytes) -> np.void:
    """The header of a record, whose checksum is right; BadRecord otherwise."""
    if len(record) < HEADER_SIZE + MARGIN:
        raise BadRecord("cut short")
    header = np.frombuffer(record, HEADER_DTYPE, 1)[0]
    if header["magic"] != MAGIC or header["version"] != VERSION:
        raise BadRecord("no record, or one of another version")
    if header["size"] != len(record):
        raise BadRecord("cut short")
    if header["checksum"] != _checksum(record):
        raise BadRecord("wrong checksum")
    return header


def give_back(record: bytes) -> bytes:
    """The JPEG that a record was made from, byte for byte; BadRecord where it is damaged."""
    header = read_header(record)
    begin = int(header["segments"])
    if not HEADER_SIZE <= begin <= len(record) - 4:
        raise BadRecord("damaged")
    scans = int(np.frombuffer(record, "<u4", 1, begin)[0])
    if begin + 4 * (2 * scans + 2) > len(record):
        raise BadRecord("damaged")
    counts = np.frombuffer(record, "<u4", 2 * scans + 1, begin + 4).tolist()
    lengths, sizes = counts[:scans], counts[scans:]
    if sum(lengths) + sum(sizes) != header["jpeg_size"] or sum(lengths) > 64 * len(record):
        raise BadRecord("damaged")
    pieces, at = [], begin + 4 * (2 * scans + 2)
    for size in sizes:
        pieces.append(record[at : at + size])
        at += size
    try:
        # The file without entropy-coded data has the same segments.
        file = parse_jpeg(b"".join(pieces))
    except NotTranscodable as error:
        raise BadRecord("damaged") from error
    if at > len(record) or len(file.scans) != scans:
        raise BadRecord("damaged")
    blocks = unpack(record, file)
    made = [pieces[0]]
    for scan, length, piece in zip(file.scans, lengths, pieces[1:]):
        entropy = write_scan_data(file, scan, blocks, length)
        if entropy is None or len(entropy) != length:
            raise BadRecord("damaged")
        made += [entropy, piece]
    return b"".join(made)


def unpack(record: bytes, file: JpegFile) -> np.ndarray:
    """The coefficients of a record of `file`, (n, 64) int16; BadRecord where it is damaged."""
    header, layout, (down, across) = read_header(record), _layout(file), file.mcus
    factors = [h << 4 | v for _, _, h, v in layout.tolist()]
    if (header["height"], header["width"], header["sampling"][: len(factors)].tolist()) != (
        file.height,
        file.width,
        factors,
    ) or header["components"] != len(factors):
        raise BadRecord("damaged")
    index = _index(record, header, down, across)
    blocks = np.zeros((sum(h * v for *_, h, v in layout.tolist()) * down * across, 64), np.int16)
    encoded = np.frombuffer(record, np.uint8)
    chunk = int(header["chunk"])
    if not _unpack_chunks(encoded, layout, down, across, chunk, index, blocks.reshape(-1)):
        raise BadRecord("damaged")
    return blocks


def _index(record: bytes, header: np.void, down: int, across: int) -> np.ndarray:
    """The offsets of the chunks and their end, (n + 1,) uint32; BadRecord where they do not fit."""
    if not header["chunk"]:
        raise BadRecord("damaged")
    entries = down * -(-across // int(header["chunk"])) + 1
    begin = HEADER_SIZE + 128 * int(header["components"])
    if header["data"] != begin + 4 * entries or header["data"] > header["segments"]:
        raise BadRecord("damaged")
    if header["segments"] + MARGIN > len(record):
        raise BadRecord("damaged")
    index = np.frombuffer(record, "<u4", entries, begin)
    ascending = (np.diff(index.astype(np.int64)) >= 0).all()
    if not ascending or index[0] != header["data"] or index[-1] != header["segments"]:
        raise BadRecord("damaged")
    return index

"""Makes the record of a JPEG."""

import numpy as np

from ..compiler.bits import leading_zeros
from ..compiler.jit import inline_jit, jit
from ..jpeg.entropy import COEFFICIENT_BITS
from .block_order import H, V, block_at, block_order, count_mcu_blocks
from .jpeg_file import JpegFile, NotTranscodable, parse_jpeg
from .read_scan import read_coefficients
from .record import (
    CHUNK,
    ESCAPE,
    GRAY,
    HEADER_DTYPE,
    HEADER_SIZE,
    MAGIC,
    MARGIN,
    MAX_RECORD,
    ONLY_JPEG,
    TABLE_BYTES,
    VERSION,
    YCBCR,
    count_chunks,
    with_checksum,
)
from .unpack import unpack
from .write_scan import write_scan_data

MAX_BLOCK = 3 + 2 + 8 + 63 + 1 + 63
"""Most bytes of a block: its three, DC, the bitmap, low bytes, the count and high bytes."""
_U = np.uint64


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


@inline_jit(forceinline=True)
def _low_byte(value):
    """The int8 that a value ends with."""
    return ((value + 128) & 255) - 128


@inline_jit()
def _put_values(out, at, values, begin, end, width):
    """Write values `begin` to `end` at `width` bits each from byte `at` of `out` on; returns the
    byte after them."""
    word, filled = 0, 0
    for i in range(begin, end):
        low = _low_byte(values[i])
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


@inline_jit()
def _pack_block(blocks, block, last, out, head, at, values, widths, suffix):
    """Write the block whose first coefficient is at `block`: its three bytes at `head`, its payload
    from `at` on; returns where that ends. `last`: DC of the block before. The last three: working
    memory."""
    # 1. Its values, their widths and the bitmap.
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
    # 2. The three bytes.
    dc = np.int64(blocks[block])
    change = dc - last
    escapes = change < -127 or change > 127
    word = ESCAPE & 255 if escapes else change & 255
    word |= bitmap << 8 | split << 12 | (rest - 1) << 21
    if not high:
        word |= (first - 1) << 18
    out[head] = word & 255
    out[head + 1] = word >> 8 & 255
    out[head + 2] = word >> 16
    # 3. The payload.
    if escapes:
        out[at] = dc & 255
        out[at + 1] = dc >> 8 & 255
        at += 2
    for i in range(bitmap):
        out[at + i] = np.int64(mask >> _U(8 * i)) & 255
    at += bitmap
    at = _put_values(out, at, values, 0, split, first)
    at = _put_values(out, at, values, split, number, rest)
    if high:
        out[at] = high
        for i in range(high):
            out[at + 1 + i] = (values[i] - _low_byte(values[i])) >> 8 & 255
        at += 1 + high
    return at


@jit(allocates=True)
def _pack_chunks(blocks, order, down, across, chunk, index, out, at):
    """Write all chunks of `blocks` into `out` from `at` on, and their offsets to `index`; returns
    where they end.

    `blocks` (n · 64,) int16, in zigzag order. `order`: of `block_order`. `down`, `across`: MCUs.
    `chunk`: MCUs of a chunk. `index` (chunks + 1,) uint32. `out` uint8.
    """
    values, widths = np.zeros(64, np.int64), np.zeros(64, np.int64)
    suffix, last = np.zeros(65, np.int64), np.zeros(4, np.int64)
    mcu_blocks = count_mcu_blocks(order)
    entry = 0
    for my in range(down):
        for begin in range(0, across, chunk):
            index[entry] = at
            entry += 1
            end = min(begin + chunk, across)
            head, at = at, at + 3 * mcu_blocks * (end - begin)
            last[:] = 0
            for mx in range(begin, end):
                for c in range(len(order)):
                    for b in range(order[c, H] * order[c, V]):
                        block = block_at(order, c, my, mx, b)
                        at = _pack_block(
                            blocks, block, last[c], out, head, at, values, widths, suffix
                        )
                        last[c] = blocks[block]
                        head += 3
    index[entry] = at
    return at


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
    order, (down, across) = block_order(file), file.mcus
    entries = count_chunks(down, across, CHUNK) + 1
    begin = HEADER_SIZE + TABLE_BYTES * len(order) + 4 * entries
    room = begin + MAX_BLOCK * len(blocks) + MARGIN + len(segments)
    if room > MAX_RECORD:
        raise NotTranscodable("too large")
    out, index = np.zeros(room, np.uint8), np.zeros(entries, np.uint32)
    end = _pack_chunks(blocks.reshape(-1), order, down, across, CHUNK, index, out, begin)
    size = end + max(len(segments), MARGIN)
    header = np.zeros((), HEADER_DTYPE)
    header["magic"], header["version"], header["chunk"] = MAGIC, VERSION, CHUNK
    header["components"], header["size"] = len(order), size
    header["height"], header["width"] = file.height, file.width
    header["sampling"][: len(order)] = order[:, H] << 4 | order[:, V]
    header["data"], header["segments"], header["jpeg_size"] = begin, end, jpeg_size
    header["colours"] = _colours(file, blocks)
    tables = file.quantisation.astype("<u2").tobytes()
    head = header.tobytes() + tables + index.astype("<u4").tobytes()
    out[:begin] = np.frombuffer(head, np.uint8)
    out[end : end + len(segments)] = np.frombuffer(segments, np.uint8)
    return with_checksum(out[:size].tobytes())


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

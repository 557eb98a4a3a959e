"""Gives the coefficients of a record back, and the JPEG that it was made from."""

import numpy as np

from ..compiler.bits import trailing_zeros
from ..compiler.jit import inline_jit, jit
from ..jpeg.decode import VALUES
from .block_order import H, V, block_at, block_order, count_blocks, count_mcu_blocks
from .jpeg_file import JpegFile, NotTranscodable, parse_jpeg
from .read_block import open_block, read_values
from .record import HEADER_SIZE, BadRecord, read_header, read_index
from .write_scan import write_scan_data

_U = np.uint64


@inline_jit()
def _unpack_block(record, head, at, last, values, blocks, block):
    """Write a block's coefficients to `blocks` from `block` on, which are 0 before: (end of its
    payload, DC). `values` (VALUES,) uint8: working memory. The others as for `open_block`."""
    bitmap, at, split, first, second, rest, end, high, dc, after = open_block(
        record, head, at, last
    )
    number = read_values(record, bitmap, at, split, first, second, rest, values)
    blocks[block] = dc
    for i in range(number):
        value = np.int64(np.int8(values[i]))
        if i < high:
            value += np.int64(np.int8(record[end + 1 + i])) << 8
        blocks[block + trailing_zeros(bitmap) + 1] = value
        bitmap &= bitmap - _U(1)
    return after, dc


@jit(allocates=True)
def _unpack_chunks(record, order, down, across, chunk, index, blocks):
    """Write the coefficients of all chunks to `blocks`, zeros before; returns whether the chunks
    are sound. Any bytes are safe.

    `record` (bytes,) uint8. `index`: of `read_index`. The others as for `pack._pack_chunks`.
    """
    values, last = np.zeros(VALUES, np.uint8), np.zeros(4, np.int64)
    mcu_blocks = count_mcu_blocks(order)
    entry = 0
    for my in range(down):
        for begin in range(0, across, chunk):
            head, limit = np.int64(index[entry]), np.int64(index[entry + 1])
            entry += 1
            end = min(begin + chunk, across)
            at = head + 3 * mcu_blocks * (end - begin)
            last[:] = 0
            for mx in range(begin, end):
                for c in range(len(order)):
                    for b in range(order[c, H] * order[c, V]):
                        if at > limit:
                            return False
                        block = block_at(order, c, my, mx, b)
                        at, last[c] = _unpack_block(
                            record, head, at, last[c], values, blocks, block
                        )
                        head += 3
            if at != limit:
                return False
    return True


def unpack(record: bytes, file: JpegFile) -> np.ndarray:
    """The coefficients of a record of `file`, (n, 64) int16 in zigzag order, in `block_order`;
    BadRecord where it is damaged."""
    header, order, (down, across) = read_header(record), block_order(file), file.mcus
    factors = (order[:, H] << 4 | order[:, V]).tolist()
    if (header["height"], header["width"], header["sampling"][: len(factors)].tolist()) != (
        file.height,
        file.width,
        factors,
    ) or header["components"] != len(factors):
        raise BadRecord("damaged")
    index = read_index(record, header, down, across)
    blocks = np.zeros((count_blocks(file), 64), np.int16)
    encoded = np.frombuffer(record, np.uint8)
    chunk = int(header["chunk"])
    if not _unpack_chunks(encoded, order, down, across, chunk, index, blocks.reshape(-1)):
        raise BadRecord("damaged")
    return blocks


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

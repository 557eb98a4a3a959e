"""The obvious reader of a record, block by block and bit by bit, which tests hold the others to."""

import numpy as np

from .record import HEADER_DTYPE, HEADER_SIZE


def unpack_reference(record: bytes) -> np.ndarray:
    """The coefficients of a sound record: (n, 64) int16 in zigzag order, component by component, as
    `unpack.unpack` returns them."""
    header = np.frombuffer(record, HEADER_DTYPE, 1)[0]
    components = int(header["components"])
    factors = [(int(byte) >> 4, int(byte) & 15) for byte in header["sampling"][:components]]
    largest_h, largest_v = max(h for h, _ in factors), max(v for _, v in factors)
    down = -(-int(header["height"]) // (8 * largest_v))
    across = -(-int(header["width"]) // (8 * largest_h))
    planes = [np.zeros((down * v, across * h, 64), np.int16) for h, v in factors]
    chunk, at = int(header["chunk"]), HEADER_SIZE + 128 * components
    for my in range(down):
        for begin in range(0, across, chunk):
            end = min(begin + chunk, across)
            head = int.from_bytes(record[at : at + 4], "little")
            at += 4
            payload = head + 3 * (end - begin) * sum(h * v for h, v in factors)
            last = [0] * components
            for mx in range(begin, end):
                for c, (h, v) in enumerate(factors):
                    for b in range(h * v):
                        block, payload = _block(record, head, payload, last[c])
                        head += 3
                        last[c] = block[0]
                        planes[c][my * v + b // h, mx * h + b % h] = block
    return np.concatenate([plane.reshape(-1, 64) for plane in planes])


def _block(record: bytes, head: int, at: int, last: int) -> tuple[list[int], int]:
    """(64 coefficients, end of the payload) of the block with the three bytes at `head`."""
    word = int.from_bytes(record[head : head + 3], "little")
    change = _signed(word & 255, 8)
    bitmap_bytes, split = word >> 8 & 15, word >> 12 & 63
    first, rest = (word >> 18 & 7) + 1, (word >> 21 & 7) + 1
    wide = first < rest
    first = 8 if wide else first
    block = [last + change] + [0] * 63
    if change == -128:
        block[0] = _signed(int.from_bytes(record[at : at + 2], "little"), 16)
        at += 2
    bitmap = int.from_bytes(record[at : at + bitmap_bytes], "little")
    at += bitmap_bytes
    places = [k for k in range(1, 64) if bitmap >> (k - 1) & 1]
    values, at = _values(record, at, min(split, len(places)), first)
    others, at = _values(record, at, len(places) - len(values), rest)
    values += others
    if wide:
        for i in range(record[at]):
            values[i] += _signed(record[at + 1 + i], 8) << 8
        at += 1 + record[at]
    for place, value in zip(places, values):
        block[place] = value
    return block, at


def _values(record: bytes, at: int, count: int, width: int) -> tuple[list[int], int]:
    """(values of `width` bits, the byte after them)."""
    end = at + (count * width + 7) // 8
    word = int.from_bytes(record[at:end], "little")
    values = []
    for i in range(count):
        value = _signed(word >> i * width & (1 << width) - 1, width)
        values.append(value + 1 if value >= 0 and width < 8 else value)
    return values, end


def _signed(word: int, width: int) -> int:
    """A number in two's complement."""
    return word - (word >> (width - 1) << width)

"""The entropy-coded scan: blocks read one after the other, and those of a region turned to levels.

The stream is read from its beginning, since each code's position depends on the codes before it.
`chunks` reads it from checkpoints, which are found here.
"""

import numpy as np

from ..compiler.jit import inline_jit
from ..compiler.vector import broadcast, store
from .entropy import DUMP_SLOT, END_OF_BLOCK, TABLE_SIZE, is_wild, read_block
from .pixels import inverse_dct_flat, inverse_dct_pair
from .planes import convert_row, ring_row
from .segments import (
    AC_TABLE,
    DC_TABLE,
    LAST_DC,
    QUANTISATION,
    QUANTISATION_STRIDE,
    STRIDE,
    H,
    V,
)

MCU_BLOCKS = 6
"""Most blocks in an MCU: with luma sampled 2x2, four of Y, one each of Cb and Cr."""
BLOCK_STRIDE = 96
"""int16 from one block to the next: 64 coefficients, the dump slot, the flag IS_FLAT, padding."""
IS_FLAT = DUMP_SLOT + 1
"""Place in a block's memory of the flag that it has no AC coefficients."""
PIXELS_BETWEEN = 128
"""Pixels of an MCU row from one checkpoint to the next; the first is at the row's beginning."""
CHECKPOINT_FIELDS = 5
"""int16 of a checkpoint: the bit offset's low and high half, the DC predictors of Y, Cb and Cr."""
_U = np.uint64


@inline_jit(forceinline=True)
def mcus_between(h):
    """MCUs from one checkpoint to the next; `h`: the luma's horizontal sampling factor."""
    return PIXELS_BETWEEN // (8 * h)


@inline_jit()
def count_checkpoints(mcu_columns, mcu_rows, h):
    """Checkpoints of an image of `mcu_columns` by `mcu_rows` MCUs."""
    between = mcus_between(h)
    return mcu_rows * ((mcu_columns + between - 1) // between)


@inline_jit(forceinline=True)
def bit_offset(checkpoints, number):
    """The bit of the scan, without stuffed bytes, at which checkpoint `number` lies."""
    low = np.int64(checkpoints[CHECKPOINT_FIELDS * number]) & 0xFFFF
    return low | (np.int64(checkpoints[CHECKPOINT_FIELDS * number + 1]) & 0xFFFF) << 16


@inline_jit()
def _set_checkpoint(checkpoints, number, offset, frame, components):
    """Write checkpoint `number`; `offset`: its bit."""
    first = CHECKPOINT_FIELDS * number
    checkpoints[first] = np.int16(offset & 0xFFFF)
    checkpoints[first + 1] = np.int16(offset >> 16)
    for c in range(3):
        checkpoints[first + 2 + c] = frame[c, LAST_DC] if c < components else 0


@inline_jit()
def decode_scan(
    data,
    clean,
    size,
    restarts,
    interval,
    mcu_columns,
    mcu_rows,
    picture,
    scratch,
    found,
):
    """Decode all MCUs of the scan, those of `picture` to pixels; returns whether the scan is valid.

    `data` uint8: the file, which holds the Huffman codes' symbols. `clean` uint8: the scan's `size`
    bytes, with `restarts` restart markers, one each `interval` MCUs (0 for none). `picture`: a
    `planes.Picture`. `found` int16: empty, or receives the image's checkpoints, CHECKPOINT_FIELDS
    each.
    """
    frame = scratch.frame
    tables = scratch.tables
    quantisation = scratch.quantisation
    block = scratch.block
    planes = scratch.planes
    x1, y1, x2, y2 = picture.mcus
    components = picture.components
    between = mcus_between(frame[0, H])
    noted = 0
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
            if len(found) and mx & (between - 1) == 0:
                offset = 8 * np.int64(at) - np.int64(count)
                _set_checkpoint(found, noted, offset, frame, components)
                noted += 1

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
                            to = ring_row(my, picture, frame, c) + 8 * (
                                by * stride + (mx - x1) * h + bx
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

        # 5. A row of MCUs is complete: its levels to pixels.
        if y1 <= my < y2:
            if pending >= 0:
                to, stride = pending_at, pending_stride
                inverse_dct_pair(block, pending, pending, planes, to, stride, to, stride)
                pending, half = -1, 0
            convert_row(scratch, picture, my)
    # Valid if all bytes and restart markers are used up; bits left in the last byte are padding.
    return np.int64(at) - np.int64(count >> _U(3)) == size and restarts_passed == restarts

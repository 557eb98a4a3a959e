"""Decoding of a region from a JPEG's checkpoints: only the chunks that it touches, several at once.

A chunk is what lies between two checkpoints of a row of MCUs. Rows are decoded in bands, so that
the coefficients of a band stay in the CPU's cache and memory is bounded for images of any size.
"""

from collections.abc import Callable
from typing import Any

from ..compiler.jit import inline_jit, jit
from .checksum import crc32c
from .decode import DECODED, NOT_PLAIN, find_region
from .entropy import TABLE_SIZE, unstuff
from .lanes import ANY_END, CHUNK_ROOM, fill_lanes
from .levels import put_levels_in_order, put_levels_zigzag, set_factors
from .planes import Picture
from .scan import CHECKPOINT_FIELDS, bit_offset, count_checkpoints, mcus_between
from .segments import AC_TABLE, DC_TABLE, H, V
from .streams import fill_streams


@inline_jit()
def _set_blocks(frame, components, blocks):
    """Write each block's tables to `blocks`, see `lanes.fill_lanes`; returns an MCU's blocks."""
    number = 0
    for c in range(components):
        for _ in range(frame[c, H] * frame[c, V]):
            blocks[number] = TABLE_SIZE * frame[c, DC_TABLE]
            blocks[16 + number] = TABLE_SIZE * frame[c, AC_TABLE]
            blocks[32 + number] = number + 1
            number += 1
    blocks[32 + number - 1] = 0
    return number


@inline_jit()
def _list_chunks(
    checkpoints, first_row, last_row, region, mcu_columns, between, blocks, size, chunks
):
    """Write the chunks that the region touches in some rows to `chunks`, see `lanes.fill_lanes`:
    (their number, whether all begin within the `size` bytes of the scan)."""
    x1, _, x2, _ = region
    chunks_a_row = (mcu_columns + between - 1) // between
    last = len(checkpoints) // CHECKPOINT_FIELDS - 1
    space = 64 * (between * blocks + 1)
    count = 0
    for my in range(first_row, last_row):
        for chunk in range(x1 // between, (x2 - 1) // between + 1):
            number = my * chunks_a_row + chunk
            first = bit_offset(checkpoints, number)
            if first > 8 * size:
                return count, False
            end = min((chunk + 1) * between, x2)
            chunks[count] = first
            chunks[CHUNK_ROOM + count] = count * space
            chunks[2 * CHUNK_ROOM + count] = count * space + 64 * blocks * (end - chunk * between)
            whole = end == min((chunk + 1) * between, mcu_columns) and number < last
            chunks[3 * CHUNK_ROOM + count] = (
                bit_offset(checkpoints, number + 1) if whole else ANY_END
            )
            count += 1
    return count, True


def _make_decode(with_values: bool, fill: Any, put_levels: Any) -> Callable[..., Any]:
    """Make `decode_region` from checkpoints, of the ways to decode chunks and their coefficients.

    `with_values`: which tables `fill` takes, see `segments.read_segments`.
    """

    @inline_jit()
    def decode(data, size, height, width, y, x, rows, columns, scratch, out, table, i):
        # 1. Checkpoints of these very bytes, headers and region.
        own, past = table.begins[i], table.begins[i + 1]
        if own < 0 or past <= own or past > len(table.fields) // CHECKPOINT_FIELDS:
            return NOT_PLAIN
        if table.lengths[i] != size or table.checksums[i] != crc32c(data, size):
            return NOT_PLAIN
        checkpoints = table.fields[CHECKPOINT_FIELDS * own : CHECKPOINT_FIELDS * past]
        begin, components, interval, h, mcu_columns, mcu_rows, region = find_region(
            data, size, height, width, y, x, rows, columns, scratch, with_values
        )
        total = count_checkpoints(mcu_columns, mcu_rows, h) if begin else 0
        if begin == 0 or interval or len(checkpoints) != CHECKPOINT_FIELDS * total:
            return NOT_PLAIN
        clean_size, restarts = unstuff(data, begin, size, scratch.clean, scratch.restarts)
        if clean_size < 0 or restarts:
            return NOT_PLAIN
        # 2. Rows of MCUs for a band.
        blocks = _set_blocks(scratch.frame, components, scratch.blocks)
        set_factors(scratch, components)
        between = mcus_between(h)
        x1, y1, x2, y2 = region
        chunks_a_row = (x2 - 1) // between + 1 - x1 // between
        space = 64 * (between * blocks + 1)
        rows_a_band = min(
            (len(scratch.coefficients) - 64) // (space * chunks_a_row),
            (CHUNK_ROOM - 16) // chunks_a_row,
        )
        if rows_a_band == 0:
            return NOT_PLAIN
        # 3. Band by band: entropy-coded data to coefficients, these to pixels.
        picture = Picture(height, width, y, x, rows, columns, region, components, out)
        row = y1
        while row < y2:
            end = min(row + rows_a_band, y2)
            count, inside = _list_chunks(
                checkpoints, row, end, region, mcu_columns, between, blocks, clean_size,
                scratch.chunks,
            )  # fmt: skip
            if not inside or not fill(data, count, scratch):
                scratch.coefficients[: count * space + 64] = 0
                return NOT_PLAIN
            put_levels(checkpoints, row, end, picture, mcu_columns, scratch)
            row = end
        return DECODED

    return decode


_by_streams = _make_decode(True, fill_streams, put_levels_in_order)
_by_lanes = _make_decode(False, fill_lanes, put_levels_zigzag)


@jit()
def decode_region_by_streams(
    data, size, height, width, y, x, rows, columns, scratch, out, table, i
):
    """`decode.decode_region` that reads only the part of the scan that the region needs.

    NOT_PLAIN also where `table` has no checkpoints of the file, or those of other bytes, and for
    regions that are too large for the scratch memory: the verdict is then that of `decode_region`.
    Checkpoints that are not those of the file are safe, but may yield other pixels. The region must
    have a row.
    """
    return _by_streams(data, size, height, width, y, x, rows, columns, scratch, out, table, i)


@jit()
def decode_region_by_lanes(data, size, height, width, y, x, rows, columns, scratch, out, table, i):
    """`decode_region_by_streams` with AVX-512: compile it only where `has_avx512` holds."""
    return _by_lanes(data, size, height, width, y, x, rows, columns, scratch, out, table, i)

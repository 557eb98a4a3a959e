"""Decoding of the region of a JPEG that a plan row's crops need, from the file's beginning or from
its checkpoints."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from ..compiler.jit import inline_jit, jit
from ..errors import InvalidInput
from ..jpeg.checkpoints import CHECKPOINT_DTYPE, Checkpoints, as_fields, most_checkpoints
from ..jpeg.checksum import crc32c
from ..jpeg.chunks import decode_by_lanes, decode_by_streams
from ..jpeg.decode import NOT_PLAIN, decode_plain
from ..jpeg.pixels import LANES
from ..jpeg.scan import CHECKPOINT_FIELDS
from ..plan import CROP, VIEW_FLOATS


class CheckpointTable(NamedTuple):
    """`checkpoints.Checkpoints` of the n files of a call as the kernels take them, and the memory
    for new ones."""

    fields: np.ndarray
    """(CHECKPOINT_FIELDS · m,) int16: the checkpoints of all files."""
    begins: np.ndarray
    """(n + 1,) int64: those of file i are `begins[i]` to `begins[i + 1]`; any values are safe."""
    lengths: np.ndarray
    """(n,) int64: bytes of the files that they were found in."""
    checksums: np.ndarray
    """(n,) int64: CRC-32C of these files."""
    found: np.ndarray
    """int16: room for the checkpoints that are found in a call; empty where none are to be."""
    counts: np.ndarray
    """(n,) int64, zeros: receives how many were found in each file; they lie one file's behind the
    other's."""


def make_table(
    files: Sequence[bytes],
    sides: np.ndarray,
    checkpoints: Checkpoints | None,
    find: bool,
) -> CheckpointTable:
    """The kernels' table of a call's arguments. Raises InvalidInput where a shape does not fit."""
    count = len(files)
    if checkpoints is None:
        checkpoints = Checkpoints(
            np.empty(0, CHECKPOINT_DTYPE),
            np.zeros(count + 1, np.int64),
            np.zeros(count, np.int64),
            np.zeros(count, np.uint32),
        )
    shapes = [one.shape for one in checkpoints[1:]]
    if shapes != [(count + 1,), (count,), (count,)]:
        raise InvalidInput(
            f"{count} files need `begins` ({count + 1},), `lengths` and `checksums` ({count},) "
            f"of checkpoints, got {shapes[0]}, {shapes[1]} and {shapes[2]}."
        )
    room = sum(most_checkpoints(*side) for side in sides.tolist()) if find else 0
    return CheckpointTable(
        as_fields(checkpoints.rows),
        checkpoints.begins.astype(np.int64, copy=False),
        checkpoints.lengths.astype(np.int64, copy=False),
        checkpoints.checksums.astype(np.int64),
        np.empty(CHECKPOINT_FIELDS * room, np.int16),
        np.zeros(count, np.int64),
    )


@intrinsic
def bytes_at(typing_context, address, size):
    """A (size,) uint8 array of the bytes at an address. Borrowed: the caller keeps them alive."""
    array = types.Array(types.uint8, 1, "C", readonly=True)

    def generate(context, builder, signature, arguments):
        made = context.make_array(array)(context, builder)
        populate_array(
            made,
            data=builder.inttoptr(arguments[0], ir.IntType(8).as_pointer()),
            shape=[arguments[1]],
            strides=[context.get_constant(types.intp, 1)],
            itemsize=context.get_constant(types.intp, 1),
            meminfo=None,
        )
        return made._getvalue()

    return array(types.intp, types.intp), generate


@inline_jit()
def set_region(height, width, row, views, pixels, region):
    """Write the smallest region that contains every view's crop to `region`; returns whether it
    lies inside the image and fits in `pixels`."""
    y, x, bottom, right = np.int64(height), np.int64(width), np.int64(0), np.int64(0)
    for v in range(views):
        crop = row[v * VIEW_FLOATS + CROP :]
        y, x = min(y, int(crop[0])), min(x, int(crop[1]))
        bottom, right = max(bottom, int(crop[0] + crop[2])), max(right, int(crop[1] + crop[3]))
    if y < 0 or x < 0 or bottom > height or right > width or y >= bottom or x >= right:
        return False
    y, x = y & ~1, x & ~1  # the decoder starts at whole chroma samples
    region[0], region[1], region[2], region[3] = y, x, bottom - y, right - x
    return 3 * ((bottom - y) * (right - x) + LANES) <= len(pixels)


@jit()
def decode_crops(file, height, width, row, views, scratch, pixels, region, table, i):
    """Decode the region of a JPEG that its crops need: DECODED or NOT_PLAIN.

    Writes the region, (rows, columns, 3) uint8, to the start of `pixels`, and its y, x, rows and
    columns to `region` (4,) int64. NOT_PLAIN where the crops exceed the image, the region exceeds
    `pixels`, or the decoder does not take the file. `file` (2,) int64: address and length.
    `height`, `width`: the image's sides. `row` (columns,) float32: the plan row. `table`: a
    `CheckpointTable`, in which this is file `i`; receives the file's checkpoints where it has room.
    `scratch`: of `make_jpeg_scratch`. `pixels` uint8, flat: room for the region and a vector more.
    """
    if not set_region(height, width, row, views, pixels, region):
        return np.int64(NOT_PLAIN)
    found = table.found[CHECKPOINT_FIELDS * table.counts[:i].sum() :]
    verdict, table.counts[i] = decode_plain(
        bytes_at(file[0], file[1]),
        file[1],
        height,
        width,
        region[0],
        region[1],
        region[2],
        region[3],
        scratch,
        pixels,
        found,
    )
    return np.int64(verdict)


def _make_decode_crops(decode: Any) -> Callable[..., Any]:
    """Make `decode_crops` from checkpoints with a function of `jpeg.chunks`."""

    @inline_jit()
    def decode_crops(file, height, width, row, views, scratch, pixels, region, table, i):
        begin, end = table.begins[i], table.begins[i + 1]
        if begin < 0 or end <= begin or end > len(table.fields) // CHECKPOINT_FIELDS:
            return np.int64(NOT_PLAIN)
        data = bytes_at(file[0], file[1])
        if table.lengths[i] != file[1] or table.checksums[i] != crc32c(data, file[1]):
            return np.int64(NOT_PLAIN)
        if not set_region(height, width, row, views, pixels, region):
            return np.int64(NOT_PLAIN)
        y, x, rows, columns = region[0], region[1], region[2], region[3]
        checkpoints = table.fields[CHECKPOINT_FIELDS * begin : CHECKPOINT_FIELDS * end]
        size = file[1]
        return np.int64(
            decode(data, size, height, width, y, x, rows, columns, scratch, pixels, checkpoints)
        )

    return decode_crops


_by_streams = _make_decode_crops(decode_by_streams)
_by_lanes = _make_decode_crops(decode_by_lanes)


@jit()
def decode_crops_by_streams(file, height, width, row, views, scratch, pixels, region, table, i):
    """`decode_crops` from the file's checkpoints; NOT_PLAIN where there are none, or where they are
    those of other bytes: the file's verdict is then that of `decode_crops`."""
    return _by_streams(file, height, width, row, views, scratch, pixels, region, table, i)


@jit()
def decode_crops_by_lanes(file, height, width, row, views, scratch, pixels, region, table, i):
    """`decode_crops_by_streams` with AVX-512: compile it only where `has_avx512` holds."""
    return _by_lanes(file, height, width, row, views, scratch, pixels, region, table, i)

"""Decodes a region of a baseline JPEG to RGB in compiled code, without the GIL.

`decode_region` takes 8-bit Huffman-coded baseline JPEGs, gray or YCbCr with luma sampled 1x1, 2x1
or 2x2, in a single sequential scan: nearly every photograph. The pixels equal libjpeg-turbo's bit
for bit, with its accurate DCT and fancy upsampling. Everything else returns NOT_PLAIN and is
decoded by libjpeg-turbo, so that a single decoder decides what counts as corrupt;
`decode_reference` is that decoder.

The stream is read from its beginning, since each code's position depends on the codes before it.
Only the blocks of the region are transformed to pixels. `chunks` has the decoders that read from
checkpoints, `coefficients.decode` those of records. All of them take the same arguments, so that a
caller can have them by address.

Terms (MCU, zigzag order and others) are explained in `markers`. Rectangles in pixels are (y, x,
rows, columns); the rectangle in MCUs is (x1, y1, x2, y2), its end excluded.
"""

from typing import NamedTuple

import numpy as np
import simplejpeg

from ..compiler.jit import inline_jit, jit
from .entropy import READ_MARGIN, TABLE_SIZE, unstuff
from .lanes import CHUNK_ROOM
from .planes import Picture, lay_out_planes, mcu_span, plane_bytes, sampling
from .scan import BLOCK_STRIDE, CHECKPOINT_FIELDS, MCU_BLOCKS, count_checkpoints, decode_scan
from .segments import QUANTISATION_STRIDE, read_segments

COEFFICIENTS = 1 << 19
"""Coefficients of a band: 1 MiB, which fits in the L2 cache, and is touched only where files are
decoded from checkpoints."""
VALUES = 144
"""Values of a record's block, with room for a vector after each of its two parts."""
DECODED, NOT_PLAIN = range(2)
"""Results of a decoder: the pixels are there, or a library must decode the file."""


def decode_reference(data: bytes) -> np.ndarray:
    """Decode a whole image by libjpeg-turbo: (H, W, 3) uint8. ValueError at its first warning."""
    return simplejpeg.decode_jpeg(data, "RGB", strict=True)


class JpegScratch(NamedTuple):
    """One thread's working memory, which JPEGs and records of coefficients share."""

    clean: np.ndarray
    """(bytes of the largest file + READ_MARGIN,) uint8: the entropy-coded data without stuffed
    bytes and restart markers."""
    restarts: np.ndarray
    """(65536,) int64: where in `clean` restart intervals begin."""
    tables: np.ndarray
    """(8 · TABLE_SIZE,) int32: look-up tables of the four DC codes, then of the four AC codes."""
    quantisation: np.ndarray
    """(4 · QUANTISATION_STRIDE,) int32: four tables in zigzag order; 0 from 64 on."""
    planes: np.ndarray
    """(`planes.plane_bytes`,) uint8: levels of two rows of MCUs, a plane for each component."""
    block: np.ndarray
    """(2 · MCU_BLOCKS · BLOCK_STRIDE,) int16: dequantised coefficients of two MCUs. A block's AC
    part is 0 until it is read."""
    frame: np.ndarray
    """(4, 8) int64: a row for each component, with the columns of `segments`."""
    region: np.ndarray
    """(4,) int64: y, x, rows and columns of the decoded region, where a caller asks for them."""
    coefficients: np.ndarray
    """(COEFFICIENTS,) int16: those of a band of chunks, see `chunks`; 0 between two bands."""
    chunks: np.ndarray
    """(4 · CHUNK_ROOM,) uint32: the chunks of a band, see `lanes.fill_lanes`."""
    blocks: np.ndarray
    """(48,) uint32: the tables of an MCU's blocks, see `lanes.fill_lanes`."""
    lanes: np.ndarray
    """(64,) uint32: four vectors, for lanes that continue one by one."""
    factors: np.ndarray
    """(192,) int16: quantisation tables of the components, in natural order."""
    places: np.ndarray
    """(8,) int64: where the samples of the blocks in `block` go, and their strides."""
    values: np.ndarray
    """(VALUES,) uint8: a record's values of a block, see `coefficients.read_block`."""


@jit(allocates=True)
def make_jpeg_scratch(file_bytes, width):
    """Allocate working memory for files of up to `file_bytes` and regions of up to `width` pixels a
    row."""
    return JpegScratch(
        np.zeros(file_bytes + READ_MARGIN, np.uint8),
        np.zeros(1 << 16, np.int64),
        np.zeros(8 * TABLE_SIZE, np.int32),
        np.zeros(4 * QUANTISATION_STRIDE, np.int32),
        np.zeros(plane_bytes(width), np.uint8),
        np.zeros(2 * MCU_BLOCKS * BLOCK_STRIDE, np.int16),
        np.zeros((4, 8), np.int64),
        np.zeros(4, np.int64),
        np.zeros(COEFFICIENTS, np.int16),
        np.zeros(4 * CHUNK_ROOM, np.uint32),
        np.zeros(48, np.uint32),
        np.zeros(64, np.uint32),
        np.zeros(192, np.int16),
        np.zeros(8, np.int64),
        np.zeros(VALUES, np.uint8),
    )


@inline_jit()
def find_region(data, size, height, width, y, x, rows, columns, scratch, with_values):
    """Read the headers and lay out the region's planes: (position of the scan's data, components,
    restart interval, luma's sampling in x, MCUs in x and in y, region in MCUs); zeros where the
    file is not plain, of another size, or does not fit in the `scratch`.

    `with_values`: as for `read_segments`. A region of 0 rows has no MCUs.
    """
    bad = 0, 0, 0, 0, 0, 0, (0, 0, 0, 0)
    # 1. Headers; they must describe the image that the caller planned for.
    begin, file_height, file_width, components, interval = read_segments(
        data, size, scratch, with_values
    )
    if begin == 0 or file_height != height or file_width != width:
        return bad
    if len(scratch.clean) < size + READ_MARGIN:
        return bad
    frame = scratch.frame
    h, v = sampling(frame, components)
    if h == 0 or (h == 2 and width < 6):  # libjpeg upsamples narrow images by another rule
        return bad
    # 2. The MCUs that the region needs, and room for their levels.
    mcu_columns = (width + 8 * h - 1) // (8 * h)
    mcu_rows = (height + 8 * v - 1) // (8 * v)
    x1, x2 = mcu_span(x, columns, h, mcu_columns)
    y1, y2 = mcu_span(y, rows, v, mcu_rows)
    region = (x1, y1, x2, y2) if rows else (0, 0, 0, 0)
    if lay_out_planes(frame, components, region) > len(scratch.planes):
        return bad
    return begin, components, interval, h, mcu_columns, mcu_rows, region


@jit()
def decode_region(data, size, height, width, y, x, rows, columns, scratch, out, table, i):
    """Decode the region (y, x, rows, columns), pixels, of a JPEG into `out`: DECODED or NOT_PLAIN.

    `data` uint8, at least `size` bytes: the file. (`height`, `width`): the image's size, pixels; a
    file of another size is NOT_PLAIN. The region must lie inside the image; y and x must be even.
    One of 0 rows decodes no pixels. `scratch`: a `JpegScratch`; a file or region that does not fit
    in it is NOT_PLAIN. `out` uint8, flat, at least 3 (rows · columns + LANES): receives (rows,
    columns, 3) RGB, and is undefined after NOT_PLAIN. The scan is read to its end, so that damage
    outside the region is noticed too.

    `table`: a `checkpoints.CheckpointTable`, in which this is file `i`: receives the file's
    checkpoints where there is room for all of them. None are found in a file with restart intervals
    or one that is NOT_PLAIN.
    """
    table.counts[i] = 0
    begin, components, interval, h, mcu_columns, mcu_rows, region = find_region(
        data, size, height, width, y, x, rows, columns, scratch, True
    )
    if begin == 0:
        return NOT_PLAIN
    found = table.found[CHECKPOINT_FIELDS * table.counts[:i].sum() :]
    total = count_checkpoints(mcu_columns, mcu_rows, h)
    if len(found) < CHECKPOINT_FIELDS * total or interval:
        total = 0
    clean_size, restarts = unstuff(data, begin, size, scratch.clean, scratch.restarts)
    scratch.block[:] = 0
    picture = Picture(height, width, y, x, rows, columns, region, components, out)
    if clean_size < 0 or not decode_scan(
        data,
        scratch.clean,
        clean_size,
        restarts,
        interval,
        mcu_columns,
        mcu_rows,
        picture,
        scratch,
        found[: CHECKPOINT_FIELDS * total],
    ):
        return NOT_PLAIN
    table.counts[i] = total
    return DECODED

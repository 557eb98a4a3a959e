"""`decode_jpeg`: the JPEG decoder of the loaders as a function, whole images or regions of them."""

import threading
from collections.abc import Sequence

import numpy as np
import simplejpeg

from ..kernels.errors import InvalidInput
from ..kernels.headers import find_ordinary_scan
from ..kernels.jpeg.checkpoints import make_table
from ..kernels.jpeg.decode import DECODED, JpegScratch, decode_region, make_jpeg_scratch
from ..kernels.jpeg.pixels import LANES
from .shards.decode import BadImage, decode_pillow, require_few_scans, require_sane_size

LARGEST_KEPT = 1 << 22
"""Bytes of a file up to which a thread keeps its working memory for the next call."""
Region = tuple[int, int, int, int]
"""(y, x, height, width), pixels."""


def decode_jpeg(
    data: bytes | bytearray | memoryview | np.ndarray, region: Sequence[int] | None = None
) -> np.ndarray:
    """Decode a JPEG, or a region of it, to RGB: (height, width, 3) uint8, C-contiguous, writable.

    The pixels equal libjpeg-turbo's bit for bit, with its accurate DCT and fancy upsampling, which
    are its defaults and Pillow's. Other threads run meanwhile: the GIL is released.

    `data`: the file; an array must be one-dimensional uint8. `region`: (y, x, height, width) in
    pixels, inside the image; None for all of it. The EXIF orientation is ignored. Baseline JPEGs,
    gray or YCbCr with luma sampled 1x1, 2x1 or 2x2, are decoded by compiled code, of a region only
    the blocks that it needs; others by libjpeg-turbo and Pillow, and then cut. (CMYK, which
    libjpeg-turbo does not convert to RGB, may be a level from Pillow's.) A region costs more
    than its share, since the file is read to its end: damage outside the region is an error too.

    InvalidInput, a ValueError, where `data` is no JPEG or does not decode, where the image has more
    than 89 478 485 pixels or 500 scans, and where the region exceeds the image.
    """
    encoded = _as_array(data)
    if encoded[:3].tobytes() != b"\xff\xd8\xff":
        raise InvalidInput(
            "`data` must be a JPEG file, which begins with ff d8 ff, got "
            f"{len(encoded)} bytes that begin with {encoded[:3].tobytes().hex(' ') or 'nothing'}."
        )
    try:
        height, width, scan = find_ordinary_scan(encoded)
        if scan:
            require_sane_size(height, width)
            image = _decode_plain(encoded, height, width, _inside(region, height, width))
            if image is not None:
                return image
        image = _decode_by_library(encoded.tobytes(), scan)
    except BadImage as error:
        raise InvalidInput(f"`data` is no usable JPEG: {error}.") from error
    y, x, rows, columns = _inside(region, *image.shape[:2])
    if (rows, columns) == image.shape[:2] and image.flags.writeable:
        return image
    return image[y : y + rows, x : x + columns].copy()


def _as_array(data: bytes | bytearray | memoryview | np.ndarray) -> np.ndarray:
    """The file as a read-only (n,) uint8 array on the same memory."""
    if isinstance(data, np.ndarray) and (data.dtype != np.uint8 or data.ndim != 1):
        raise InvalidInput(
            f"`data` must be a one-dimensional uint8 array, got {data.dtype} {data.shape}."
        )
    try:
        encoded = np.frombuffer(memoryview(data).cast("B"), np.uint8)  # type: ignore[arg-type]
    except TypeError as error:
        raise InvalidInput(
            f"`data` must be bytes, or an object with contiguous bytes, got {type(data).__name__}. "
            "Read a file with pathlib.Path(name).read_bytes()."
        ) from error
    encoded.flags.writeable = False  # so that the kernel compiles for one kind of array
    return encoded


def _inside(region: Sequence[int] | None, height: int, width: int) -> Region:
    """The region in whole numbers, by default all of the image; InvalidInput if it exceeds that."""
    if region is None:
        return 0, 0, height, width
    try:
        y, x, rows, columns = (int(side) for side in region)
        exact = (y, x, rows, columns) == tuple(region)
    except (TypeError, ValueError):
        exact = False
    if not exact:
        raise InvalidInput(
            f"`region` must be four whole numbers (y, x, height, width), got {region!r}."
        )
    if min(y, x) < 0 or min(rows, columns) < 1 or y + rows > height or x + columns > width:
        raise InvalidInput(
            f"`region` must lie inside the image of height {height} and width {width}, and hold a "
            f"pixel, got (y, x, height, width) = {(y, x, rows, columns)}."
        )
    return y, x, rows, columns


def _decode_plain(
    encoded: np.ndarray, height: int, width: int, region: Region
) -> np.ndarray | None:
    """Decode by the compiled decoder; None for what it leaves to a library."""
    y, x, rows, columns = region
    skip_y, skip_x = y & 1, x & 1  # the decoder starts at whole chroma samples
    y, x, rows, columns = y - skip_y, x - skip_x, rows + skip_y, columns + skip_x
    scratch = _room(len(encoded), columns)
    out = np.empty(3 * (rows * columns + LANES), np.uint8)
    file = encoded, len(encoded), height, width
    memory = scratch, out, make_table(1), 0
    if decode_region(*file, y, x, rows, columns, *memory) != DECODED:
        return None
    image = out[: 3 * rows * columns].reshape(rows, columns, 3)
    return image[skip_y:, skip_x:].copy() if skip_y or skip_x else image


class _Kept(threading.local):
    """A thread's working memory between two calls."""

    file_bytes = 0
    width = 0
    scratch: JpegScratch | None = None


_kept = _Kept()


def _room(file_bytes: int, width: int) -> JpegScratch:
    """Working memory for a file and regions of this width: the thread's own, unless it would be
    large."""
    if file_bytes > LARGEST_KEPT:
        return make_jpeg_scratch(file_bytes, width)
    if _kept.scratch is None or file_bytes > _kept.file_bytes or width > _kept.width:
        # By half more than needed, so that it seldom grows.
        _kept.file_bytes = max(file_bytes * 3 // 2, _kept.file_bytes)
        _kept.width = max(width * 3 // 2, _kept.width)
        _kept.scratch = make_jpeg_scratch(_kept.file_bytes, _kept.width)
    return _kept.scratch


def _decode_by_library(data: bytes, scan: int) -> np.ndarray:
    """Decode a whole image by libjpeg-turbo, else by Pillow: the rule of all loaders.

    `scan`: position of the first scan where every segment before it is ordinary, else 0. Raises
    BadImage where Pillow fails too, with the reasons of both.
    """
    reason = ""
    if scan:
        require_few_scans(data, scan)
        try:
            return simplejpeg.decode_jpeg(data, "RGB", strict=True)
        except ValueError as error:  # libjpeg's warning or error
            reason = f" ({str(error).rstrip('.')})"
    try:
        return decode_pillow(data)
    except BadImage as error:
        raise BadImage(f"{error}{reason}") from error

"""Image headers: format, size and completeness of an encoded image, without decoding it."""

import numpy as np

from .compiler.jit import inline_jit, jit
from .compiler.vector import first_lane, load
from .jpeg.markers import (
    DAC,
    DHT,
    EOI,
    JPG,
    PREFIX,
    RST0,
    RST7,
    SOF0,
    SOF2,
    SOF15,
    SOI,
    SOS,
    STUFFED,
    TEM,
)

UNKNOWN, JPEG, JPEG_CMYK, PNG, WEBP, OTHER = range(6)
"""Formats. JPEG has one or three components. JPEG_CMYK has four, which some decoders reject.
OTHER marks formats that only Pillow recognises: GIF, BMP, TIFF."""
FORMAT_NAMES = ("unknown", "jpeg", "jpeg-cmyk", "png", "webp", "other")

OK, EMPTY, NOT_AN_IMAGE, BAD_HEADER, TRUNCATED = range(5)
"""Verdicts on an image, by its header and its end."""


@inline_jit(forceinline=True)
def u16(data, i):
    """The big-endian uint16 at `data[i]`, as int64."""
    return (np.int64(data[i]) << 8) | np.int64(data[i + 1])


@inline_jit()
def _u32(data, i):
    """The big-endian uint32 at `data[i]`, as int64."""
    return (u16(data, i) << 16) | u16(data, i + 2)


@inline_jit()
def _ends_with_marker(data, start, stop):
    """Whether there is an end-of-image marker; searched backwards, since bytes may follow it."""
    for i in range(stop - 2, start + 1, -1):
        if data[i] == PREFIX and data[i + 1] == EOI:
            return True
    return False


@inline_jit()
def _scan_jpeg(data, start, stop):
    """Walk a JPEG's markers to the frame header: (format, height, width, verdict)."""
    i = start + 2
    while i + 4 <= stop:
        if data[i] != PREFIX:
            return JPEG, 0, 0, BAD_HEADER
        marker = data[i + 1]
        if marker == PREFIX:  # fill byte
            i += 1
            continue
        if marker == TEM or RST0 <= marker <= SOI:  # markers without a length
            i += 2
            continue
        if marker in (EOI, SOS):  # no frame header before the image data
            return JPEG, 0, 0, BAD_HEADER
        length = u16(data, i + 2)
        if length < 2:
            return JPEG, 0, 0, BAD_HEADER
        if SOF0 <= marker <= SOF15 and marker != DHT and marker != JPG and marker != DAC:
            if i + 10 > stop:
                return JPEG, 0, 0, TRUNCATED
            height, width, components = u16(data, i + 5), u16(data, i + 7), data[i + 9]
            if (
                height == 0
                or width == 0
                or not (components == 1 or components == 3 or components == 4)
            ):
                return JPEG, 0, 0, BAD_HEADER
            kind = JPEG_CMYK if components == 4 else JPEG
            return kind, height, width, OK if _ends_with_marker(data, start, stop) else TRUNCATED
        i += 2 + length
    return JPEG, 0, 0, TRUNCATED


@inline_jit()
def _scan_png(data, start, stop):
    """Read a PNG's IHDR and look for its IEND: (format, height, width, verdict)."""
    if stop - start < 33:  # signature and IHDR
        return PNG, 0, 0, TRUNCATED
    width, height = _u32(data, start + 16), _u32(data, start + 20)
    if height == 0 or width == 0 or height > 0x7FFFFFFF or width > 0x7FFFFFFF:
        return PNG, 0, 0, BAD_HEADER
    whole = False
    for i in range(stop - 8, start + 32, -1):  # "IEND", usually in the last 12 bytes
        if data[i] == 0x49 and data[i + 1] == 0x45 and data[i + 2] == 0x4E and data[i + 3] == 0x44:
            whole = True
            break
    return PNG, height, width, OK if whole else TRUNCATED


@inline_jit()
def _scan_webp(data, start, stop):
    """Read a WebP's first chunk and its RIFF length: (format, height, width, verdict)."""
    if stop - start < 30:
        return WEBP, 0, 0, TRUNCATED
    length = np.int64(data[start + 4]) | np.int64(data[start + 5]) << 8
    length |= np.int64(data[start + 6]) << 16 | np.int64(data[start + 7]) << 24
    kind = data[start + 15]  # the fourth letter of the first chunk's name
    i = start + 20
    if kind == 0x20:  # 'VP8 ': lossy
        width = (np.int64(data[i + 6]) | np.int64(data[i + 7]) << 8) & 0x3FFF
        height = (np.int64(data[i + 8]) | np.int64(data[i + 9]) << 8) & 0x3FFF
    elif kind == 0x4C:  # 'VP8L': lossless, 14 bits each
        bits = np.int64(data[i + 1]) | np.int64(data[i + 2]) << 8
        bits |= np.int64(data[i + 3]) << 16 | np.int64(data[i + 4]) << 24
        width, height = (bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1
    else:  # 'VP8X': extended, the canvas
        width = (
            np.int64(data[i + 4]) | np.int64(data[i + 5]) << 8 | np.int64(data[i + 6]) << 16
        ) + 1
        height = (
            np.int64(data[i + 7]) | np.int64(data[i + 8]) << 8 | np.int64(data[i + 9]) << 16
        ) + 1
    if height == 0 or width == 0:
        return WEBP, 0, 0, BAD_HEADER
    return WEBP, height, width, OK if 8 + length <= stop - start else TRUNCATED


@inline_jit()
def _scan(data, start, stop):
    """Recognise the format by its magic number: (format, height, width, verdict)."""
    size = stop - start
    if size == 0:
        return UNKNOWN, 0, 0, EMPTY
    if size >= 4 and data[start] == PREFIX and data[start + 1] == SOI and data[start + 2] == PREFIX:
        return _scan_jpeg(data, start, stop)
    if size >= 8 and data[start] == 0x89 and _u32(data, start) == 0x89504E47:  # \x89PNG
        return _scan_png(data, start, stop)
    # RIFF, then WEBP
    if size >= 16 and _u32(data, start) == 0x52494646 and _u32(data, start + 8) == 0x57454250:
        return _scan_webp(data, start, stop)
    return UNKNOWN, 0, 0, NOT_AN_IMAGE


@jit()
def scan_headers(data, offsets, sizes, formats, heights, widths, verdicts):
    """Scan the headers of n images in `data` (bytes,) uint8, at `offsets` (n,) with `sizes` (n,).

    Writes `formats` and `verdicts` (n,) uint8, and `heights` and `widths` (n,) int32, pixels before
    any EXIF rotation. Formats that this scan does not know get UNKNOWN and NOT_AN_IMAGE; the caller
    should try a library before it rejects them.
    """
    for n in range(len(offsets)):
        stop = offsets[n] + sizes[n]
        if stop > len(data):
            formats[n], heights[n], widths[n], verdicts[n] = UNKNOWN, 0, 0, TRUNCATED
            continue
        formats[n], heights[n], widths[n], verdicts[n] = _scan(data, offsets[n], stop)


@jit()
def is_one_whole_scan(data):
    """Whether the JPEG `data` (bytes,) uint8 is one sequential scan without markers inside it.

    Decoders disagree on other files. At a marker inside a scan one fills the image with gray and
    another fails; a decoder that stops below the requested rows does not see the marker.
    """
    # 1. Segments up to the scan. Frames other than baseline and extended sequential end it.
    size, i = len(data), 2
    while i + 4 <= size and data[i] == PREFIX and data[i + 1] != SOS:
        if SOF2 <= data[i + 1] <= SOF15 and data[i + 1] != DHT:  # progressive, arithmetic, …
            return False
        i += 1 if data[i + 1] == PREFIX else 2 + u16(data, i + 2)
    if i + 4 > size or data[i] != PREFIX:
        return False
    i += 2 + u16(data, i + 2)  # the scan's header
    # 2. Entropy-coded data: only stuffed bytes and restart markers may follow a prefix.
    while i + 2 <= size:
        while i + 34 <= size:  # skip to the next prefix, 32 bytes at a time
            step = first_lane(load(data, i, 32) == np.uint8(PREFIX))
            i += step
            if step < 32:
                break
        if data[i] != PREFIX:
            i += 1
        elif data[i + 1] == EOI:
            return True
        elif data[i + 1] == STUFFED or RST0 <= data[i + 1] <= RST7:
            i += 2
        else:
            return False
    return False

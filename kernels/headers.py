"""Image headers: format, size and completeness of an encoded image, without decoding it."""

import numpy as np

from .compiler.jit import inline_jit, jit
from .compiler.vector import first_lane, load
from .jpeg.markers import (
    APP0,
    APP15,
    COM,
    DHT,
    DQT,
    DRI,
    EOI,
    PREFIX,
    RST0,
    RST7,
    SOF0,
    SOF2,
    SOI,
    SOS,
    STUFFED,
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
def is_ordinary(marker):
    """Whether every decoder reads, or skips, a segment with this marker between SOI and the scan.

    Decoders disagree on all others: libjpeg refuses DHP, EXP and the extensions JPG0 to JPG13 and
    skips TEM, Pillow's parser does the reverse, and few decode arithmetic or lossless frames.
    """
    if SOF0 <= marker <= SOF2:
        return True
    if marker in (DHT, DQT, DRI):
        return True
    return APP0 <= marker <= APP15 or marker == COM


@inline_jit()
def _find_scan(data, start, stop):
    """Walk a JPEG's segments to its first scan: (frame, scan, verdict).

    `frame` and `scan` are the positions of the markers SOF and SOS. The verdict is OK where every
    segment is ordinary and one of them is a frame header of a positive size.
    """
    frame, i = 0, start + 2
    while i + 4 <= stop:
        if data[i] != PREFIX:
            return 0, 0, BAD_HEADER
        marker = data[i + 1]
        if marker == PREFIX:  # fill byte
            i += 1
            continue
        length = u16(data, i + 2)
        if length < 2 or i + 2 + length > stop:
            return 0, 0, BAD_HEADER if length < 2 else TRUNCATED
        if marker == SOS:
            return frame, i, OK if frame else BAD_HEADER
        if not is_ordinary(marker):
            return 0, 0, BAD_HEADER
        if SOF0 <= marker <= SOF2:
            if frame or length < 11 or u16(data, i + 5) == 0 or u16(data, i + 7) == 0:
                return 0, 0, BAD_HEADER
            frame = i
        i += 2 + length
    return 0, 0, TRUNCATED


@inline_jit()
def _scan_jpeg(data, start, stop):
    """Read a JPEG's frame header and look for its end: (format, height, width, verdict)."""
    frame, scan, verdict = _find_scan(data, start, stop)
    if verdict != OK:
        return JPEG, 0, 0, verdict
    components = data[frame + 9]
    if components != 1 and components != 3 and components != 4:
        return JPEG, 0, 0, BAD_HEADER
    # Search backwards, since bytes may follow the end, and no farther than to the scan, since the
    # segments before it may hold a thumbnail with an end of its own.
    verdict = TRUNCATED
    for i in range(stop - 2, scan, -1):
        if data[i] == PREFIX and data[i + 1] == EOI:
            verdict = OK
            break
    kind = JPEG_CMYK if components == 4 else JPEG
    return kind, u16(data, frame + 5), u16(data, frame + 7), verdict


@inline_jit()
def _scan_png(data, start, stop):
    """Read a PNG's IHDR and look for its IEND: (format, height, width, verdict)."""
    if stop - start < 33:  # signature and IHDR
        return PNG, 0, 0, TRUNCATED
    width, height = _u32(data, start + 16), _u32(data, start + 20)
    if _u32(data, start + 12) != 0x49484452:  # "IHDR" must come first
        return PNG, 0, 0, BAD_HEADER
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
    elif kind != 0x58:
        return WEBP, 0, 0, BAD_HEADER
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
        if offsets[n] < 0 or sizes[n] < 0 or sizes[n] > len(data) - offsets[n]:
            formats[n], heights[n], widths[n], verdicts[n] = UNKNOWN, 0, 0, TRUNCATED
            continue
        formats[n], heights[n], widths[n], verdicts[n] = _scan(
            data, offsets[n], offsets[n] + sizes[n]
        )


@inline_jit()
def _has_soi(data):
    """Whether `data` begins as a JPEG."""
    return len(data) >= 4 and data[0] == PREFIX and data[1] == SOI and data[2] == PREFIX


@jit()
def find_ordinary_scan(data):
    """Size and first scan of the JPEG `data` (bytes,) uint8: (height, width, position of its SOS).

    Zeros where a segment before the scan is not ordinary, see `is_ordinary`: such a file must be
    judged by a single decoder.
    """
    if not _has_soi(data):
        return 0, 0, 0
    frame, scan, verdict = _find_scan(data, 0, len(data))
    if verdict != OK:
        return 0, 0, 0
    return u16(data, frame + 5), u16(data, frame + 7), scan


@jit()
def is_one_whole_scan(data, height, width):
    """Whether the JPEG `data` (bytes,) uint8 has ordinary segments, the size (`height`, `width`) in
    pixels, and one sequential scan without markers inside it.

    Decoders disagree on other files. At a marker inside a scan one fills the image with gray and
    another fails; a decoder that stops below the requested rows does not see the marker.
    """
    # 1. Segments up to the scan.
    if not _has_soi(data):
        return False
    frame, i, verdict = _find_scan(data, 0, len(data))
    if verdict != OK or data[frame + 1] == SOF2:  # progressive
        return False
    if u16(data, frame + 5) != height or u16(data, frame + 7) != width:
        return False
    size = len(data)
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

"""Decode images to RGB pixels. One rule for all loaders: an image is usable if Pillow decodes it.

EXIF orientation is ignored, as in torchvision, so that the header's height and width hold.
"""

import functools
import io
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from ...kernels import headers
from ...kernels.errors import MaskCoError
from .jpeg_segments import count_scans, find_ordinary_scan, without_metadata

MAX_PIXELS = 89_478_485
"""Images that declare more pixels are quarantined before memory is allocated. Pillow's limit."""
MAX_SIDE = 2**16 - 1
"""Longest side of an image, pixels, as in JPEG: libraries keep tables for each row and column."""
MAX_SCANS = 500
"""Most scans of a JPEG, each of which may touch every pixel. Encoders write 10 or so."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
"""Formats that Pillow may open. Others, such as EPS, would start programs or are no photographs."""


class BadImage(MaskCoError):
    """An image cannot be used. The message is a reason of a few words, equal for equal causes."""


def require_sane_size(height: int, width: int) -> None:
    """Raise BadImage where an image of this size in pixels would take too much memory."""
    if height * width > MAX_PIXELS:
        raise BadImage("too many pixels")
    if max(height, width) > MAX_SIDE:
        raise BadImage(f"side above {MAX_SIDE} pixels")


def decode_pillow(data: bytes) -> np.ndarray:
    """Decode to (H, W, 3) uint8 like torchvision's `pil_loader`; BadImage where Pillow fails.

    A JPEG's metadata is left out, so that damage there does not matter.
    """
    data = without_metadata(data)
    require_few_scans(data, 0)
    with _open(data) as image:
        try:
            return np.asarray(image.convert("RGB"))
        except Exception as error:  # plugins raise nearly every kind for damaged files
            reason = "truncated" if "truncated" in str(error).lower() else "does not decode"
            raise BadImage(reason) from error


def image_size(data: bytes) -> tuple[int, int]:
    """Read (height, width) from the header with Pillow.

    Raises BadImage where Pillow does not recognise the data or the image has too many pixels.
    """
    with _open(without_metadata(data)) as image:
        return image.height, image.width


def require_few_scans(data: bytes, scan: int) -> None:
    """Raise BadImage where a JPEG whose first scan is at `scan` has more than `MAX_SCANS`."""
    if count_scans(data, scan) > MAX_SCANS:
        raise BadImage("too many scans")


def _open(data: bytes) -> Image.Image:
    """Read the header with Pillow; BadImage for other formats, damage, and insane sizes."""
    try:
        image = Image.open(io.BytesIO(data), formats=installed_formats())
    except Image.DecompressionBombError:
        raise BadImage("too many pixels") from None
    except Exception:  # plugins raise nearly every kind for damaged headers
        raise BadImage("not an image") from None
    require_sane_size(image.height, image.width)
    return image


@functools.cache
def installed_formats() -> list[str]:
    """Those of `FORMATS` that this Pillow reads: AVIF came with 11.3."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def require_size(image: np.ndarray, sample: np.void) -> np.ndarray:
    """The image, if it has the size in its header, for which its crops are drawn; else BadImage."""
    if image.shape[:2] != (sample["height"], sample["width"]):
        raise BadImage("size differs from the header")
    return image


class Decoded(NamedTuple):
    """A decoded image."""

    image: np.ndarray
    """(h, w, 3) uint8, C-contiguous."""
    shrink: int = 1
    """Factor by which it is smaller than the original."""


class Decoder:
    """Decodes images for one thread, into a buffer that it reuses.

    `decode` is exact. With `fast`, `decode_scaled` uses libjpeg's fast IDCT and plain chroma
    upsampling, and scales down in the IDCT.

    It decodes whole images: libjpeg-turbo takes nearly as long for a region and ignores damage
    below it. `kernels.jpeg` decodes plain JPEGs to the same pixels and rejects the same images.
    """

    MAX_BUFFER = 64 << 20
    """Bytes of the largest buffer kept, 22 megapixels; larger images are allocated one by one."""

    def __init__(self, *, fast: bool = False) -> None:
        self.fast = fast
        self._buffer = np.empty(1 << 20, np.uint8)

    def decode(self, data: bytes, sample: np.void) -> np.ndarray:
        """Decode to (H, W, 3) uint8, C-contiguous, valid until the next call.

        `sample` is the SAMPLE_DTYPE record. JPEGs of one or three components are decoded by
        libjpeg-turbo at its exact settings. Pillow decides on those with unordinary segments, a
        warning or an error, so that every loader uses the same images. Raises BadImage where Pillow
        fails too.
        """
        if not self._is_for_libjpeg(data, sample):
            return require_size(decode_pillow(data), sample)
        buffer = self._room(3 * int(sample["height"]) * int(sample["width"]))
        try:
            return simplejpeg.decode_jpeg(data, "RGB", buffer=buffer, strict=True)
        except ValueError:  # libjpeg's warning or error
            return require_size(decode_pillow(data), sample)

    def decode_scaled(self, data: bytes, sample: np.void, shrink: int = 1) -> Decoded:
        """As `decode`; with `fast`, `shrink` (2, 4 or 8) times smaller."""
        if not self.fast or shrink == 1 or not self._is_for_libjpeg(data, sample):
            return Decoded(self.decode(data, sample))
        height, width = (-(-int(sample[side]) // shrink) for side in ("height", "width"))
        try:
            image = simplejpeg.decode_jpeg(
                data,
                "RGB",
                fastdct=True,
                fastupsample=True,
                min_height=height,
                min_width=width,
                min_factor=2,
                buffer=self._room(3 * height * width),
                strict=True,
            )
        except ValueError:
            return Decoded(require_size(decode_pillow(data), sample))
        if image.shape[:2] != (height, width):
            raise BadImage("size differs from the header")
        return Decoded(image, shrink=shrink)

    @staticmethod
    def _is_for_libjpeg(data: bytes, sample: np.void) -> bool:
        """Whether libjpeg-turbo may decode it: a JPEG with ordinary segments.

        Raises BadImage where its header has another size than `sample`, or one that is too large.
        """
        if sample["format"] != headers.JPEG:
            return False
        height, width, scan = find_ordinary_scan(data)
        if not scan:
            return False
        if (height, width) != (sample["height"], sample["width"]):
            raise BadImage("size differs from the header")
        require_sane_size(height, width)
        require_few_scans(data, scan)
        return True

    def _room(self, size: int) -> np.ndarray | None:
        """The buffer, grown to at least `size` bytes; None above `MAX_BUFFER`."""
        if len(self._buffer) < size <= self.MAX_BUFFER:
            self._buffer = np.empty(size * 3 // 2, np.uint8)
        return self._buffer if size <= len(self._buffer) else None

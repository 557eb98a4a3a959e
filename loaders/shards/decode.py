"""Decode images to RGB pixels. One rule for all loaders: an image is usable if Pillow decodes it.

EXIF orientation is ignored, as in torchvision, so that the header's height and width hold.
"""

import io
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from ...kernels import headers
from ...kernels.errors import MaskCoError

MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485
"""Images that declare more pixels are quarantined before memory is allocated. Pillow's limit."""

_PILLOW_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
)
"""What Pillow's plugins raise for damaged files."""


class BadImage(MaskCoError):
    """An image cannot be used. The message is a reason of a few words, equal for equal causes."""


def decode_pillow(data: bytes) -> np.ndarray:
    """Decode to (H, W, 3) uint8 like torchvision's `pil_loader`; BadImage where Pillow fails."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadImage("too many pixels")
            return np.asarray(image.convert("RGB"))
    except Image.UnidentifiedImageError:
        raise BadImage("not an image") from None
    except Image.DecompressionBombError:
        raise BadImage("too many pixels") from None
    except _PILLOW_ERRORS as error:
        reason = "truncated" if "truncated" in str(error).lower() else "does not decode"
        raise BadImage(reason) from error


def image_size(data: bytes) -> tuple[int, int]:
    """Read (height, width) from the header with Pillow.

    Raises BadImage where Pillow does not recognise the data or the image has too many pixels.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
    except Image.DecompressionBombError:
        raise BadImage("too many pixels") from None
    except _PILLOW_ERRORS:
        raise BadImage("not an image") from None
    if width * height > MAX_PIXELS:
        raise BadImage("too many pixels")
    return height, width


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
        libjpeg-turbo at its exact settings; Pillow decides on those with a warning or an error, so
        that every loader uses the same images. Raises BadImage where Pillow fails too.
        """
        if sample["format"] != headers.JPEG:
            return require_size(decode_pillow(data), sample)
        buffer = self._room(3 * int(sample["height"]) * int(sample["width"]))
        try:
            image = simplejpeg.decode_jpeg(data, "RGB", buffer=buffer, strict=True)
        except ValueError:  # libjpeg's warning or error, or an image larger than its header says
            image = decode_pillow(data)
        return require_size(image, sample)

    def decode_scaled(self, data: bytes, sample: np.void, shrink: int = 1) -> Decoded:
        """As `decode`; with `fast`, `shrink` (1, 2, 4 or 8) times smaller."""
        if not self.fast or sample["format"] != headers.JPEG:
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
                min_factor=min(shrink, 2),
                buffer=self._room(3 * height * width),
                strict=True,
            )
        except ValueError:
            return Decoded(require_size(decode_pillow(data), sample))
        if image.shape[:2] != (height, width):
            raise BadImage("size differs from the header")
        return Decoded(image, shrink=shrink)

    def _room(self, size: int) -> np.ndarray | None:
        """The buffer, grown to at least `size` bytes; None above `MAX_BUFFER`."""
        if len(self._buffer) < size <= self.MAX_BUFFER:
            self._buffer = np.empty(size * 3 // 2, np.uint8)
        return self._buffer if size <= len(self._buffer) else None

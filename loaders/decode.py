"""From encoded bytes to RGB pixels, by one rule: what Pillow decodes is used, whichever library is the faster one.

EXIF orientation is left as it is, as torchvision leaves it, so that the header's height and width hold.
"""

import io

import numpy as np
import simplejpeg
from PIL import Image

from ..kernels import headers

MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485
"""Images that claim more are quarantined before anything is allocated (Pillow's own limit for a warning)."""


class BadImage(Exception):
    """An image that cannot be used; the message is the reason, short enough to count by."""


def decode_pillow(data: bytes) -> np.ndarray:
    """(H, W, 3) uint8 as torchvision's `pil_loader` yields it; BadImage where Pillow cannot."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadImage("too many pixels")
            return np.asarray(image.convert("RGB"))
    except Image.UnidentifiedImageError:
        raise BadImage("not an image") from None
    except Image.DecompressionBombError:
        raise BadImage("too many pixels") from None
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError) as error:
        reason = "truncated" if "truncated" in str(error).lower() else "does not decode"
        raise BadImage(reason) from error


class Decoder:
    """One thread's decoder, with a buffer of its own, so that an image costs no allocation."""

    KEPT = 64 << 20
    """Bytes of the largest buffer kept: 22 megapixels. Larger images are allocated one by one."""

    def __init__(self) -> None:
        self._buffer = np.empty(1 << 20, np.uint8)

    def decode(self, data: bytes, sample: np.void) -> np.ndarray:
        """(H, W, 3) uint8, C-contiguous, valid until the next call. BadImage where no library decodes it.

        `sample` is its SAMPLE_DTYPE record. JPEGs of one or three components go to libjpeg-turbo through simplejpeg, at
        its exact settings; whatever it warns of is Pillow's to judge, so that every loader uses the same images.
        """
        if sample["format"] != headers.JPEG:
            return decode_pillow(data)
        size = 3 * int(sample["height"]) * int(sample["width"])
        if len(self._buffer) < size <= self.KEPT:
            self._buffer = np.empty(size * 3 // 2, np.uint8)
        try:
            buffer = self._buffer if size <= len(self._buffer) else None
            return simplejpeg.decode_jpeg(data, "RGB", buffer=buffer, strict=True)
        except ValueError:  # a warning or an error of libjpeg's, or an image larger than its header said
            return decode_pillow(data)


def image_size(data: bytes) -> tuple[int, int]:
    """(height, width) that Pillow reads from the header; BadImage where it recognises nothing or too much."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
    except Image.DecompressionBombError:
        raise BadImage("too many pixels") from None
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError):
        raise BadImage("not an image") from None
    if width * height > MAX_PIXELS:
        raise BadImage("too many pixels")
    return height, width

"""From encoded bytes to RGB pixels, by one rule: what Pillow decodes is used, whichever library is
the faster one.

EXIF orientation is left as it is, as torchvision leaves it, so that the header's height and width
hold.
"""

import io
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from ...kernels import headers

MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485
"""Images that claim more are quarantined before anything is allocated (Pillow's own limit for a
warning)."""


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
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        IndexError,
        KeyError,
        TypeError,
        OverflowError,
    ) as error:
        reason = "truncated" if "truncated" in str(error).lower() else "does not decode"
        raise BadImage(reason) from error


class Decoded(NamedTuple):
    """An image, as large as it was or smaller."""

    image: np.ndarray
    """(h, w, 3) uint8, C-contiguous."""
    shrink: int = 1
    """How many times smaller it is than the original."""


def whole(image: np.ndarray, sample: np.void) -> np.ndarray:
    """The image; BadImage where it has not the size that its header said, by which its crops were
    drawn."""
    if image.shape[:2] != (sample["height"], sample["width"]):
        raise BadImage("size differs from the header")
    return image


class Decoder:
    """One thread's decoder, with a buffer of its own, so that an image costs no allocation.

    `decode` is exact, and so is `decode_scaled`, but for `fast`: then by libjpeg's fast IDCT and
    plain chroma upsampling, and scaled down in the IDCT as far as it is allowed to.

    Always the whole image, as libjpeg-turbo's regions take nearly as long and pass over damage
    below them. Threads of our own decode plain JPEGs by `kernels.jpeg` instead, whose pixels and
    verdicts are the same.
    """

    KEPT = 64 << 20
    """Bytes of the largest buffer kept: 22 megapixels. Larger images are allocated one by one."""

    def __init__(self, *, fast: bool = False) -> None:
        self.fast = fast
        self._buffer = np.empty(1 << 20, np.uint8)

    def decode(self, data: bytes, sample: np.void) -> np.ndarray:
        """(H, W, 3) uint8, C-contiguous, valid until the next call. BadImage where no library
        decodes it.

        `sample` is its SAMPLE_DTYPE record. JPEGs of one or three components go to libjpeg-turbo
        through simplejpeg, at its exact settings; whatever it warns of is Pillow's to judge, so
        that every loader uses the same images.
        """
        if sample["format"] != headers.JPEG:
            return whole(decode_pillow(data), sample)
        buffer = self._room(3 * int(sample["height"]) * int(sample["width"]))
        try:
            return whole(simplejpeg.decode_jpeg(data, "RGB", buffer=buffer, strict=True), sample)
        except (
            ValueError
        ):  # a warning or an error of libjpeg's, or an image larger than its header said
            return whole(decode_pillow(data), sample)

    def decode_scaled(self, data: bytes, sample: np.void, shrink: int = 1) -> Decoded:
        """As `decode`, but where `fast`, `shrink` (1, 2, 4 or 8) times smaller."""
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
            return Decoded(whole(decode_pillow(data), sample))
        if image.shape[:2] != (height, width):
            raise BadImage("size differs from the header")
        return Decoded(image, shrink=shrink)

    def _room(self, size: int) -> np.ndarray | None:
        """The buffer, of at least `size` bytes; None for images too large to keep one."""
        if len(self._buffer) < size <= self.KEPT:
            self._buffer = np.empty(size * 3 // 2, np.uint8)
        return self._buffer if size <= len(self._buffer) else None


def image_size(data: bytes) -> tuple[int, int]:
    """(height, width) that Pillow reads from the header; BadImage where it recognises nothing or
    too much."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
    except Image.DecompressionBombError:
        raise BadImage("too many pixels") from None
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        IndexError,
        KeyError,
        TypeError,
        OverflowError,
    ):
        raise BadImage("not an image") from None
    if width * height > MAX_PIXELS:
        raise BadImage("too many pixels")
    return height, width

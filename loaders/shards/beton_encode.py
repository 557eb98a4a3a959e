"""Encode samples for a .beton file, and estimate its size and the time that writing takes."""

import time
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image

from ...kernels import headers
from ...kernels.errors import InvalidInput
from .beton import JPEG_MODE, MAX_SIDE, RAW_MODE
from .dataset import Dataset
from .decode import BadImage, Decoder

ESTIMATE_SAMPLES = 32
"""Samples that `estimate` encodes."""


@dataclass(frozen=True, kw_only=True)
class BetonOptions:
    """How images are stored. Raises InvalidInput for values out of range."""

    max_side: int | None = None
    """Longest side, pixels, at least 16; larger images are shrunk and re-encoded. None keeps the
    original bytes of every JPEG."""
    quality: int = 90
    """JPEG quality of re-encoded images, 1..100. The default is FFCV's."""

    def __post_init__(self) -> None:
        if self.max_side is not None and not 16 <= self.max_side <= MAX_SIDE:
            raise InvalidInput(
                f"`max_side` must be in [16, {MAX_SIDE}] pixels, got {self.max_side}"
            )
        if not 1 <= self.quality <= 100:
            raise InvalidInput(f"`quality` must be in [1, 100], got {self.quality}")


@dataclass(frozen=True)
class Estimate:
    """Size and time that writing will take."""

    samples: int
    bytes: int
    seconds: float
    """Encoding time, extrapolated from a few samples; writing to the disk comes on top."""


@dataclass(frozen=True)
class Stored:
    """A sample in the form in which it is stored."""

    mode: int
    height: int
    width: int
    data: bytes


def store(dataset: Dataset, index: int, options: BetonOptions, decoder: Decoder) -> Stored:
    """Encode sample `index` by the options. Raises BadImage where it cannot be stored.

    JPEGs of one or three components keep their bytes. Formats that FFCV cannot decode (PNG, CMYK,
    …) are stored as pixels.
    """
    sample = dataset.samples[index]
    height, width = int(sample["height"]), int(sample["width"])
    data = dataset.read(index)
    shrunk = options.max_side is not None and max(height, width) > options.max_side
    if not shrunk and max(height, width) > MAX_SIDE:
        raise BadImage("side above 65535 pixels")
    if not shrunk and sample["format"] == headers.JPEG:
        return Stored(JPEG_MODE, height, width, data)
    image = decoder.decode(data, sample)
    if image.shape[:2] != (height, width):
        raise BadImage("size differs from the header")
    if not shrunk:
        return Stored(RAW_MODE, height, width, image.tobytes())
    scale = (options.max_side or 1) / max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    encoded = simplejpeg.encode_jpeg(np.ascontiguousarray(resized), options.quality, "RGB", "420")
    return Stored(JPEG_MODE, size[1], size[0], encoded)


def estimate(dataset: Dataset, options: BetonOptions, threads: int) -> Estimate:
    """Estimate size and time from samples spread evenly over the shards; bad ones are skipped."""
    decoder = Decoder()
    measured = size = 0
    began = time.perf_counter()
    for index in (
        np.linspace(0, len(dataset) - 1, min(ESTIMATE_SAMPLES, len(dataset))).astype(int).tolist()
    ):
        try:
            size += len(store(dataset, index, options, decoder).data)
            measured += 1
        except BadImage:  # the writer quarantines it
            continue
    seconds = (time.perf_counter() - began) / max(measured, 1)
    if options.max_side is None and bool((dataset.samples["format"] == headers.JPEG).all()):
        total = int(dataset.samples["size"].sum())
    else:
        total = size * len(dataset) // max(measured, 1)
    return Estimate(len(dataset), total, seconds * len(dataset) / threads)

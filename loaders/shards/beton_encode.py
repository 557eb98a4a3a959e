"""Encode samples for a .beton file, and estimate its size and the time that writing takes."""

import contextlib
import time
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import simplejpeg
from PIL import Image

from ...kernels import headers
from ...kernels.coefficients.jpeg_file import NotTranscodable
from ...kernels.coefficients.pack import pack
from ...kernels.errors import InvalidInput
from ...kernels.render.records import RecordRenderer
from ...kernels.views import ViewConfig
from .beton import CMYK_RECORD_MODE, JPEG_MODE, MAX_SIDE, RAW_MODE, RECORD_MODE, RECORD_MODES
from .dataset import Dataset
from .decode import BadImage, Decoder
from .index import SAMPLE_DTYPE

ESTIMATE_SAMPLES = 32
"""Samples that `estimate` encodes."""
RECORD_GROWTH = 4
"""A record is at most this much larger than its JPEG; larger ones stay JPEGs."""
Form = Literal["jpeg", "coefficients"]
"""How JPEGs are stored: as they are, or as records of their coefficients, which are read faster."""


@dataclass(frozen=True, kw_only=True)
class BetonOptions:
    """How images are stored. Raises InvalidInput for values out of range."""

    max_side: int | None = None
    """Longest side, pixels, at least 16; larger images are shrunk and re-encoded. None keeps the
    original bytes of every JPEG."""
    quality: int = 90
    """JPEG quality of re-encoded images, 1..100. The default is FFCV's."""
    form: Form = "jpeg"
    """How JPEGs are stored."""

    def __post_init__(self) -> None:
        if self.max_side is not None and not 16 <= self.max_side <= MAX_SIDE:
            raise InvalidInput(
                f"`max_side` must be in [16, {MAX_SIDE}] pixels, got {self.max_side}"
            )
        if not 1 <= self.quality <= 100:
            raise InvalidInput(f"`quality` must be in [1, 100], got {self.quality}")
        if self.form not in get_args(Form):
            raise InvalidInput(
                f"`form` must be one of {', '.join(get_args(Form))}, got {self.form!r}"
            )


@dataclass(frozen=True)
class Estimate:
    """Size and time that writing will take."""

    samples: int
    bytes: int
    seconds: float
    """Encoding time, extrapolated from a few samples; writing to the disk comes on top."""
    records: float
    """Share of the samples that become records of coefficients."""


@dataclass(frozen=True)
class Stored:
    """A sample in the form in which it is stored."""

    mode: int
    height: int
    width: int
    data: bytes


class Encoder:
    """What a thread needs to encode samples."""

    def __init__(self) -> None:
        self.decoder = Decoder()
        self.renderer = RecordRenderer(ViewConfig.maskco())


def store(dataset: Dataset, index: int, options: BetonOptions, encoder: Encoder) -> Stored:
    """Encode sample `index` by the options. Raises BadImage where it cannot be stored.

    JPEGs of one or three components keep their bytes, or become records where `form` says so and
    their pixels can be read from these. Formats that FFCV cannot decode (PNG, CMYK, …) are stored
    as pixels, CMYK then as a record too.
    """
    stored = _store(dataset, index, options, encoder.decoder)
    if options.form == "coefficients" and stored.mode == JPEG_MODE:
        return _as_record(stored, encoder)
    return stored


def _as_record(stored: Stored, encoder: Encoder) -> Stored:
    """A JPEG as a record, where that gives the file back and yields libjpeg-turbo's pixels; else
    unchanged."""
    height, width = stored.height, stored.width
    try:
        record = pack(stored.data)
    except NotTranscodable:
        return stored
    mine = encoder.renderer.decode_region(record, height, width, (0, 0, height, width))
    if mine is None:
        return stored
    sample = np.zeros(1, SAMPLE_DTYPE)[0]
    sample["height"], sample["width"], sample["format"] = height, width, headers.JPEG
    try:
        truth = encoder.decoder.decode(stored.data, sample)
    except BadImage:  # the loaders refuse it too
        return stored
    if len(record) > RECORD_GROWTH * len(stored.data) or not np.array_equal(mine, truth):
        return stored
    return Stored(RECORD_MODE, height, width, record)


def _store(dataset: Dataset, index: int, options: BetonOptions, decoder: Decoder) -> Stored:
    """`store` with the form "jpeg"."""
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
    if not shrunk and options.form == "coefficients" and sample["format"] == headers.JPEG_CMYK:
        with contextlib.suppress(NotTranscodable):  # smaller than pixels, and gives the file back
            return Stored(CMYK_RECORD_MODE, height, width, pack(data))
    if not shrunk:
        return Stored(RAW_MODE, height, width, image.tobytes())
    scale = (options.max_side or 1) / max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    encoded = simplejpeg.encode_jpeg(np.ascontiguousarray(resized), options.quality, "RGB", "420")
    return Stored(JPEG_MODE, size[1], size[0], encoded)


def estimate(dataset: Dataset, options: BetonOptions, threads: int) -> Estimate:
    """Estimate size and time from samples spread evenly over the shards; bad ones are skipped."""
    encoder = Encoder()
    if options.form == "coefficients":
        _compile(encoder)
    measured = size = original = records = 0
    began = time.perf_counter()
    for index in (
        np.linspace(0, len(dataset) - 1, min(ESTIMATE_SAMPLES, len(dataset))).astype(int).tolist()
    ):
        try:
            stored = store(dataset, index, options, encoder)
            size += len(stored.data)
            original += int(dataset.samples["size"][index])
            records += stored.mode in RECORD_MODES
            measured += 1
        except BadImage:  # the writer quarantines it
            continue
    seconds = (time.perf_counter() - began) / max(measured, 1)
    if options.max_side is None and bool((dataset.samples["format"] == headers.JPEG).all()):
        total = int(dataset.samples["size"].sum()) * size // max(original, 1)
    else:
        total = size * len(dataset) // max(measured, 1)
    share = records / max(measured, 1)
    return Estimate(len(dataset), total, seconds * len(dataset) / threads, share)


def _compile(encoder: Encoder) -> None:
    """Compile the kernels that make and read a record, which takes a minute once."""
    data = simplejpeg.encode_jpeg(np.zeros((8, 8, 3), np.uint8), 90, "RGB", "420")
    _as_record(Stored(JPEG_MODE, 8, 8, data), encoder)

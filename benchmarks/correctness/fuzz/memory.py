"""What the checks of decoders share: memory between closed pages, and what a broken rule raises."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.correctness.fuzz.guard import GuardedBytes, guarded
from maskco_fast.kernels.jpeg.decode import JpegScratch, make_jpeg_scratch
from maskco_fast.kernels.jpeg.pixels import LANES
from maskco_fast.loaders.shards.decode import BadImage

MAX_FILE = 1 << 16
MAX_JPEG_PIXELS = 1 << 18
MAX_JPEG_WIDTH = 1 << 12
"""Bounds on what the guarded memory holds; larger inputs are skipped by the decoder itself."""


class Finding(Exception):
    """An input breaks a rule. The message names the rule, alike for like inputs."""


def pixels_or_none(decode: Callable[..., np.ndarray], *arguments: Any) -> np.ndarray | None:
    """What a decoder yields; None where it refuses."""
    try:
        return decode(*arguments)
    except BadImage:
        return None


@functools.cache
def guarded_file() -> GuardedBytes:
    return GuardedBytes(MAX_FILE)


@functools.cache
def guarded_scratch() -> JpegScratch:
    """The decoder's working memory, each array between closed pages."""
    plain = make_jpeg_scratch(MAX_FILE, MAX_JPEG_WIDTH)
    return JpegScratch(
        *(array if array.ndim > 1 else guarded(array.size, array.dtype) for array in plain)
    )


@functools.cache
def guarded_pixels() -> np.ndarray:
    return guarded(3 * (MAX_JPEG_PIXELS + LANES))

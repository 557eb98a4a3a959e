"""What passes between a loader and its backend: a batch to render, and the rendered batch."""

from dataclasses import dataclass

import numpy as np
import torch

from .config import LoaderConfig
from .regions import crop_regions, shrink_factors


@dataclass
class Request:
    """One batch to be made: which samples, and their plans. `Loader._fetch` puts others where
    samples are replaced."""

    epoch: int
    indices: np.ndarray
    """(N,) int64, into the dataset."""
    rows: np.ndarray
    """(N, columns) float32, the plan."""
    regions: np.ndarray
    """(N, 4) int64: y, x, height, width of the part of each image that holds all crops."""
    shrinks: np.ndarray
    """(N,) int64: how many times smaller each image may be decoded; 1 but for fast decoding."""

    @classmethod
    def make(
        cls, config: LoaderConfig, epoch: int, indices: np.ndarray, rows: np.ndarray
    ) -> "Request":
        """With what follows from the rows."""
        views = len(config.views.views)
        fast = config.decode == "fast"
        shrinks = (
            shrink_factors(rows, views, config.views.size) if fast else np.ones(len(rows), np.int64)
        )
        return cls(epoch, indices, rows, crop_regions(rows, views), shrinks)

    def put(self, n: int, other: "Request") -> None:
        """Sample n becomes the first of another request."""
        for mine, theirs in (
            (self.indices, other.indices),
            (self.rows, other.rows),
            (self.regions, other.regions),
            (self.shrinks, other.shrinks),
        ):
            mine[n] = theirs[0]


@dataclass
class Rendered:
    """A request carried out."""

    request: Request
    pixels: torch.Tensor | tuple[torch.Tensor, ...]
    """(V, N, size, size, 3), or V of (N, size, size, 3), of `LoaderConfig.pixel_dtype`: finished,
    or at the seam."""

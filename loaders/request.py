"""The messages between a loader and its backend: a batch to render, and the rendered batch.

N samples per batch, V views.
"""

from dataclasses import dataclass

import numpy as np
import torch

from .config import LoaderConfig
from .regions import crop_regions, shrink_factors


@dataclass
class Request:
    """A batch to render: its samples and their plans.

    `Loader._fetch` overwrites the entries of a sample that it replaces.
    """

    epoch: int
    indices: np.ndarray
    """(N,) int64: samples of the dataset."""
    rows: np.ndarray
    """(N, columns) float32: plan rows."""
    regions: np.ndarray
    """(N, 4) int64: y, x, height, width of the region of each image that contains all its crops."""
    shrinks: np.ndarray
    """(N,) int64: factor by which each image may be decoded smaller; 1 unless decoding is fast."""

    @classmethod
    def make(
        cls, config: LoaderConfig, epoch: int, indices: np.ndarray, rows: np.ndarray
    ) -> "Request":
        """Derive regions and shrink factors from the plan rows."""
        views = len(config.views.views)
        if config.decode == "fast":
            shrinks = shrink_factors(rows, views, config.views.size)
        else:
            shrinks = np.ones(len(rows), np.int64)
        return cls(epoch, indices, rows, crop_regions(rows, views), shrinks)

    def replace(self, n: int, other: "Request") -> None:
        """Overwrite sample `n` with the first sample of `other`."""
        for mine, theirs in (
            (self.indices, other.indices),
            (self.rows, other.rows),
            (self.regions, other.regions),
            (self.shrinks, other.shrinks),
        ):
            mine[n] = theirs[0]


@dataclass
class Rendered:
    """A rendered batch."""

    request: Request
    pixels: torch.Tensor | tuple[torch.Tensor, ...]
    """(V, N, size, size, 3), or V tensors (N, size, size, 3), of `LoaderConfig.pixel_dtype`:
    finished views, or uint8 views at the seam."""

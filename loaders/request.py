"""The messages between a loader and its backend: a batch to render, and the rendered batch.

N samples per batch, V views.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..kernels.layout import ViewLayout
from .config import LoaderConfig
from .regions import crop_regions, shrink_factors
from .shards.dataset import Dataset
from .shards.names import redact_url


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
    left_out: np.ndarray
    """(N,) bool: bad samples without a substitute, which `Rendered.without_left_out` removes."""
    fields: list[list[Any] | None] | None = None
    """For each sample, the values of the dataset's `fields`, None until they are read; None for a
    dataset that is opened without."""

    @classmethod
    def make(
        cls, config: LoaderConfig, epoch: int, indices: np.ndarray, rows: np.ndarray
    ) -> "Request":
        """Derive regions and shrink factors from the plan rows."""
        views = len(config.views.views)
        if config.decode == "fast":
            shrinks = shrink_factors(rows, config.views.layout.sizes)
        else:
            shrinks = np.ones(len(rows), np.int64)
        left_out = np.zeros(len(rows), bool)
        return cls(epoch, indices, rows, crop_regions(rows, views), shrinks, left_out)

    def replace(self, n: int, other: "Request") -> None:
        """Overwrite sample `n` with the first sample of `other`."""
        for mine, theirs in (
            (self.indices, other.indices),
            (self.rows, other.rows),
            (self.regions, other.regions),
            (self.shrinks, other.shrinks),
        ):
            mine[n] = theirs[0]
        if self.fields is not None:
            self.fields[n] = None

    def select(self, kept: np.ndarray) -> "Request":
        """Copy with only the samples numbered `kept`, (k,) int64."""
        return Request(
            self.epoch,
            self.indices[kept],
            self.rows[kept],
            self.regions[kept],
            self.shrinks[kept],
            self.left_out[kept],
            None if self.fields is None else [self.fields[n] for n in kept.tolist()],
        )


@dataclass
class Rendered:
    """A rendered batch."""

    request: Request
    views: tuple[torch.Tensor, ...]
    """V tensors (N, height, width, 3) of `LoaderConfig.pixel_dtype`: finished views, or uint8 views
    at the seam."""
    memory: torch.Tensor | None = None
    """The flat memory in which the views lie (`ViewConfig.layout`), where it is of N samples."""

    @classmethod
    def on(cls, memory: torch.Tensor, request: Request, layout: ViewLayout) -> "Rendered":
        """The first samples of a batch's memory, as many as `request` has."""
        count = len(request.indices)
        whole = memory if len(memory) == count * layout.elements else None
        return cls(request, layout.views(memory, count), whole)

    def without_left_out(self) -> "Rendered":
        """The batch without the samples that are left out; itself where there are none."""
        if not self.request.left_out.any():
            return self
        kept = np.flatnonzero(~self.request.left_out)
        chosen = torch.from_numpy(kept).to(self.views[0].device)
        return Rendered(self.request.select(kept), tuple(view[chosen] for view in self.views))


def extras(dataset: Dataset, config: LoaderConfig, request: Request) -> dict[str, Any]:
    """`Batch.names` and `Batch.fields` of a rendered request; empty where neither is wanted."""
    found: dict[str, Any] = {}
    if config.names:
        places = [dataset.locate(index) for index in request.indices.tolist()]
        found["names"] = [
            (redact_url(shard.path), shard.exact_key(number)) for shard, number in places
        ]
    if request.fields is not None:
        # A sample that was rendered has its values.
        rows = [values or [None] * len(dataset.fields) for values in request.fields]
        found["fields"] = {
            field: [row[place] for row in rows] for place, field in enumerate(dataset.fields)
        }
    return found

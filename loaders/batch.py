"""A batch: what every loader yields."""

import dataclasses
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A batch of N samples with V views each, on one device.

    Unpacks as a tuple: `query, key, masked_box, key_boxes, sample_id` for MaskCo, the views and
    `sample_id` otherwise. The holder owns the tensors: no loader writes to them again.
    """

    views: tuple[torch.Tensor, ...]
    """V tensors (N, 3, size, size), channels-last. float32, float16, bfloat16: normalised by
    ImageNet's mean and standard deviation; zero inside the query's masked box. uint8: augmented
    levels 0..255, neither normalised nor masked."""
    sample_id: torch.Tensor
    """(N,) int64: hash of the sample's key, which seeds its plan."""
    target: torch.Tensor
    """(N,) int64: position of the label in `dataset.classes`. Of a dataset that is opened without
    `labels`: the number in the `.cls` member, or the folder's; -1 without one."""
    index: torch.Tensor
    """(N,) int64: the sample's number in the dataset, 0..len(dataset) - 1."""
    masked_box: torch.Tensor | None = None
    """(N, 4) float32: x1, y1, x2, y2 of the masked box, pixels of the query view."""
    key_boxes: torch.Tensor | None = None
    """(N, B, 4) float32: x1, y1, x2, y2 of B boxes, pixels of the key view, the positive first."""
    patch_corners: torch.Tensor | None = None
    """(N, P, 2) int64: y, x of the corner of each of P patches, pixels of the first view, row by
    row; the side of a patch is `ViewConfig.patch_size`."""

    def __len__(self) -> int:
        return len(self.sample_id)

    @property
    def query(self) -> torch.Tensor:
        """The first view."""
        return self.views[0]

    @property
    def key(self) -> torch.Tensor:
        """The second view."""
        return self.views[1]

    def __iter__(self) -> Iterator[torch.Tensor]:
        yield from self.views
        if self.masked_box is not None and self.key_boxes is not None:
            yield self.masked_box
            yield self.key_boxes
        yield self.sample_id

    def _map(self, move: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        tensors: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "views":
                tensors[field.name] = tuple(move(view) for view in value)
            elif value is not None:
                tensors[field.name] = move(value)
        return Batch(**tensors)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """Move the batch to `device`; memory formats and dtypes stay."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def split(self, size: int) -> list["Batch"]:
        """Split into batches of `size` samples that share memory; the last may be smaller."""
        parts = [slice(begin, begin + size) for begin in range(0, len(self), size)]
        return [self._map(operator.itemgetter(part)) for part in parts]

    def pin_memory(self) -> "Batch":
        """Copy the batch to page-locked memory (needs CUDA)."""
        return self._map(lambda tensor: tensor.pin_memory())

"""What every loader yields."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One batch of N samples with V views. Its tensors belong to whoever holds it; no loader writes
    to them again.

    Unpacks as a tuple: for MaskCo `query, key, masked_box, key_boxes, sample_id`; for plain views
    the views, then `sample_id`.
    """

    views: tuple[torch.Tensor, ...]
    """V tensors (N, 3, size, size), channels-last. float32, float16 or bfloat16: normalised by
    ImageNet's mean and standard deviation, the query's masked box at zero. uint8: augmented levels,
    neither normalised nor masked."""
    sample_id: torch.Tensor
    """(N,) int64: the hash of the sample's key that its plan was drawn from."""
    target: torch.Tensor
    """(N,) int64: the label in the shard (`.cls`, or the folder's number), -1 where there is none.
    """
    index: torch.Tensor
    """(N,) int64: the sample's place among the usable samples of the shards, 0..dataset size - 1.
    """
    masked_box: torch.Tensor | None = None
    """(N, 4) float32 xyxy, query-view pixels."""
    key_boxes: torch.Tensor | None = None
    """(N, B, 4) float32 xyxy, key-view pixels, the positive first."""

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

    def _map(self, move) -> "Batch":
        tensors: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "views":
                tensors[field.name] = tuple(move(view) for view in value)
            elif value is not None:
                tensors[field.name] = move(value)
        return Batch(**tensors)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """The batch on `device`; memory formats and dtypes stay."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def split(self, size: int) -> list["Batch"]:
        """The batch in runs of `size` samples, the last perhaps shorter, in the same memory."""
        return [
            self._map(lambda tensor, at=at: tensor[at : at + size])
            for at in range(0, len(self), size)
        ]

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory (needs CUDA)."""
        return self._map(lambda tensor: tensor.pin_memory())

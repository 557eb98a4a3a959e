"""A batch: what every loader yields."""

import dataclasses
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..kernels.errors import InvalidInput


@dataclass(frozen=True, kw_only=True, repr=False)
class Batch:
    """A batch of N samples with V views each, on one device.

    Unpacks as a tuple: the views and `target`, for MaskCo `query, key, masked_box, key_boxes,
    target`. `batch["query"]` is any of its parts by name. The holder owns the tensors: no loader
    writes to them again.
    """

    views: tuple[torch.Tensor, ...]
    """V tensors (N, 3, height, width), channels-last. float32, float16, bfloat16: normalised by the
    views' mean and standard deviation, ImageNet's unless set; zero inside the query's masked box.
    uint8: augmented levels 0..255, neither normalised nor masked."""
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
    names: list[tuple[str, str]] | None = None
    """N pairs of shard and key, with the option `names`; addresses are without secrets."""
    fields: Mapping[str, list[Any]] | None = None
    """Of a dataset that is opened with `fields`: N values of each, None where a sample has none."""

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
        yield self.target

    def __getitem__(self, name: str | int) -> Any:
        """A part by its name, such as "query" or a field's, or by its place in the tuple."""
        if isinstance(name, int):
            return tuple(self)[name]
        parts = self._parts()
        if name not in parts:
            raise KeyError(f"{name!r} is not in this batch, which has {', '.join(parts)}")
        return parts[name]

    def _parts(self) -> dict[str, Any]:
        """All parts that are present; a field of a part's name is only in `fields`."""
        parts: dict[str, Any] = dict(zip(("query", "key"), self.views))
        for field in dataclasses.fields(self):
            if getattr(self, field.name) is not None:
                parts[field.name] = getattr(self, field.name)
        return {**(self.fields or {}), **parts}

    def __repr__(self) -> str:
        parts = [f"{len(self.views)} views {_described(self.views[0])}"]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, torch.Tensor):
                parts.append(f"{field.name} {tuple(value.shape)}")
        if self.names is not None:
            parts.append("names")
        if self.fields is not None:
            parts.append(f"fields {', '.join(self.fields)}")
        return f"Batch({len(self)} samples: {'; '.join(parts)})"

    def _map(
        self,
        move: Callable[[torch.Tensor], torch.Tensor],
        *,
        move_view: Callable[[torch.Tensor], torch.Tensor] | None = None,
        select: Callable[[list[Any]], list[Any]] = lambda values: values,
    ) -> "Batch":
        """A batch of changed tensors; `move_view`: for the views; `select`: for names and fields.

        The parts that are None stay None.
        """
        parts: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, torch.Tensor):
                parts[field.name] = move(value)
        parts["views"] = tuple((move_view or move)(view) for view in self.views)
        if self.names is not None:
            parts["names"] = select(self.names)
        if self.fields is not None:
            parts["fields"] = {name: select(values) for name, values in self.fields.items()}
        return Batch(**parts)

    def to(
        self,
        device: torch.device | str | int | torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        *,
        non_blocking: bool = False,
    ) -> "Batch":
        """Move the batch to `device`, and convert the views to `dtype`; memory formats stay.

        As in torch, a dtype may be the first argument. Boxes and numbers keep their dtypes.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device

        def move(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
            return tensor.to(device=device, dtype=dtype, non_blocking=non_blocking)

        return self._map(move, move_view=lambda view: move(view, dtype))

    def cuda(
        self, device: torch.device | str | int | None = None, *, non_blocking: bool = False
    ) -> "Batch":
        """Move the batch to a CUDA device, by default the current one."""
        if device is None:
            device = "cuda"
        elif isinstance(device, int):
            device = f"cuda:{device}"
        return self.to(device, non_blocking=non_blocking)

    def cpu(self) -> "Batch":
        """Move the batch to the CPU."""
        return self.to("cpu")

    def clone(self) -> "Batch":
        """Copy the tensors; memory formats stay."""
        return self._map(torch.clone)

    def copy_(self, other: "Batch") -> None:
        """Overwrite the tensors with those of a batch of the same shapes; not names and fields.

        InvalidInput where shapes differ.
        """
        for own, new in zip(self._tensors(), other._tensors(), strict=True):
            if own.shape != new.shape:  # `Tensor.copy_` would repeat a single sample
                raise InvalidInput(
                    f"`other` must have this batch's shapes, {tuple(own.shape)}, got "
                    f"{tuple(new.shape)}."
                )
            own.copy_(new, non_blocking=True)

    def _tensors(self) -> list[torch.Tensor]:
        """All tensors, the views last."""
        values = [getattr(self, field.name) for field in dataclasses.fields(self)]
        return [*(value for value in values if isinstance(value, torch.Tensor)), *self.views]

    def split(self, size: int) -> list["Batch"]:
        """Split into batches of `size` samples that share memory; the last may be smaller."""
        parts = [slice(begin, begin + size) for begin in range(0, len(self), size)]
        getters = [operator.itemgetter(part) for part in parts]
        return [self._map(getter, select=getter) for getter in getters]

    def pin_memory(self) -> "Batch":
        """Copy the batch to page-locked memory (needs CUDA)."""
        return self._map(lambda tensor: tensor.pin_memory())


def _described(view: torch.Tensor) -> str:
    dtype = str(view.dtype).removeprefix("torch.")
    return f"{tuple(view.shape)} {dtype} on {view.device}"

"""The memory of a batch of views: one flat array, whatever the sizes of the views.

Views of one size and normalisation lie side by side, so that a device augments them in one call.
Where all views are of one kind, the memory is that of an array (V, N, H, W, 3). Shapes: V views, N
samples, H, W a view's height and width.
"""

import collections
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch

    Memory = TypeVar("Memory", np.ndarray, torch.Tensor)

Size = tuple[int, int]
"""Height and width of a view, pixels."""
Statistics = tuple[float, float, float]
"""A mean or a standard deviation of each channel, of levels scaled to 0..1."""


@dataclass(frozen=True)
class Group:
    """Views that a device augments in one call: of one size and one normalisation."""

    views: tuple[int, ...]
    """Numbers of the views, ascending."""
    size: Size
    mean: Statistics
    std: Statistics


class ViewLayout:
    """Where the views lie in a batch's memory, group after group, in the order of first views."""

    def __init__(self, kinds: Sequence[tuple[Size, Statistics, Statistics]]) -> None:
        """`kinds`: size, mean and standard deviation of each view."""
        views: dict[tuple[Size, Statistics, Statistics], list[int]] = {}
        for v, kind in enumerate(kinds):
            views.setdefault(kind, []).append(v)
        self.groups = [Group(tuple(numbers), *kind) for kind, numbers in views.items()]
        self.sizes: list[Size] = [size for size, _, _ in kinds]
        self._before = [0] * len(kinds)
        self.elements = 0
        """Elements of a sample: 3 H W, summed over its views."""
        for group in self.groups:
            for v in group.views:
                self._before[v] = self.elements
                self.elements += 3 * group.size[0] * group.size[1]

    @functools.cached_property
    def stacked(self) -> tuple[int, int, int] | None:
        """(V, H, W) where the memory is that of an array (V, N, H, W, 3), else None."""
        in_order = self._before == sorted(self._before)
        if len(set(self.sizes)) > 1 or not in_order:
            return None
        return (len(self.sizes), *self.sizes[0])

    @functools.cached_property
    def side(self) -> int:
        """The longest side of all views, pixels."""
        return max(max(size) for size in self.sizes)

    def __str__(self) -> str:
        """The views by their sizes, such as "2 views of 224x224 and 8 of 96x96"."""
        counts = collections.Counter(self.sizes)
        parts = [f"{count} of {size[0]}x{size[1]}" for size, count in counts.items()]
        return " and ".join(parts).replace(" of ", " views of ", 1)

    def places(self, samples: int) -> np.ndarray:
        """(V, 3) int64: first element, height and width of each view of a batch of `samples`."""
        rows = [(samples * at, *size) for at, size in zip(self._before, self.sizes)]
        return np.array(rows, np.int64)

    def views(self, memory: "Memory", count: int | None = None) -> "tuple[Memory, ...]":
        """V arrays (N, H, W, 3) on a batch's flat memory; of its first `count` samples if given."""
        samples = len(memory) // self.elements
        views = []
        for first, height, width in self.places(samples).tolist():
            part = memory[first : first + samples * height * width * 3]
            views.append(part.reshape(samples, height, width, 3)[:count])
        return tuple(views)

    def group(self, memory: "Memory", group: Group) -> "Memory":
        """(G, N, H, W, 3): the G views of a group, on a batch's flat memory."""
        samples, (height, width) = len(memory) // self.elements, group.size
        first = samples * self._before[group.views[0]]
        shape = (len(group.views), samples, height, width, 3)
        length = len(group.views) * samples * height * width * 3
        return memory[first : first + length].reshape(shape)

    def pack(self, views: "Sequence[torch.Tensor]") -> "torch.Tensor":
        """The flat memory of V tensors (N, H, W, 3): a copy, on their device."""
        import torch

        ordered = [views[v] for group in self.groups for v in group.views]
        return torch.cat([view.reshape(-1) for view in ordered])

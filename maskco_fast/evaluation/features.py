"""Features of labelled images: one pass of a frozen network over a loader's epoch.

Shapes: N images, D features.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import Loader
from maskco_fast.loaders.shards.names import redact_url
from maskco_fast.loaders.system.progress import Progress, no_progress
from maskco_fast.training.devices import Precision, autocast
from maskco_fast.training.distributed import World

READ_EVERY = 16
"""Batches between two copies from the device, each of which waits for the device."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """One rank's share of a data set's features, on the CPU, in the order of `index`."""

    values: torch.Tensor
    """(N, D) float32."""
    target: torch.Tensor
    """(N,) int64: numbers of the classes."""
    index: torch.Tensor
    """(N,) int64: the images' numbers in the data set; each occurs on one rank only."""

    def __len__(self) -> int:
        return len(self.target)


def pooled(trunk: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function from images (N, 3, H, W) to the average-pooled conv5 map (N, D), float32."""
    return lambda images: trunk(images).float().mean((2, 3))


@torch.no_grad()
def extract(
    encode: Callable[[torch.Tensor], torch.Tensor],
    loader: Loader,
    precision: Precision,
    *,
    world: World | None = None,
    progress: Progress = no_progress,
    stage: str = "images encoded",
    stopped: Callable[[], bool] = lambda: False,
) -> Features | None:
    """Return the features (N, D) of the first view of this rank's images, over one epoch.

    `encode`: images (N, 3, H, W) on the loader's device to features (N, D); it runs under autocast
    as `precision` says. `stopped` is asked before each batch; if it is true on any rank, all ranks
    return None. Raises InvalidInput for an image without a label. All ranks of `world` call this.
    """
    world = world if world is not None else World()
    device = torch.device(loader.config.device)
    waiting: list[tuple[torch.Tensor, ...]] = []
    parts: list[list[torch.Tensor]] = []

    def read() -> None:
        if waiting:
            parts.append([torch.cat(column).cpu() for column in zip(*waiting)])
            waiting.clear()

    total = len(loader)
    for number, batch in enumerate(loader, 1):
        if stopped():
            break
        with autocast(device, precision):
            values = encode(batch.views[0])
        waiting.append((values.float(), batch.target, batch.index))
        if len(waiting) == READ_EVERY:
            read()
        progress(stage, number, total)
    read()
    # Every rank takes part in this exchange, so that a stop of one ends all.
    if any(world.gather_objects(stopped())):
        return None
    if parts:
        values, target, index = (torch.cat(column) for column in zip(*parts))
    else:  # fewer images than ranks
        values = torch.empty(0, 0)
        target = index = torch.empty(0, dtype=torch.int64)
    kept = first_occurrences(index, world)
    features = Features(values=values[kept], target=target[kept], index=index[kept])
    check_labels(features.target, loader)
    return features


def first_occurrences(index: torch.Tensor, world: World) -> torch.Tensor:
    """Positions of this rank's images in ascending order of `index`, without repeated images.

    A loader replaces an image that does not decode by the next one, which then comes twice. Where
    two ranks hold an image, the lower rank keeps it.
    """
    lower = world.gather_objects(index)[: world.rank]
    unique, inverse = index.unique(return_inverse=True)
    positions = torch.full((len(unique),), len(index), dtype=torch.int64)
    positions.scatter_reduce_(0, inverse, torch.arange(len(index)), "amin")
    return positions[~torch.isin(unique, torch.cat(lower))] if lower else positions


def check_labels(target: torch.Tensor, loader: Loader) -> None:
    """Raise InvalidInput if an image has no label, which loaders mark by -1."""
    missing = int((target < 0).sum())
    if missing:
        shard = redact_url(loader.dataset.shards[0].path)
        raise InvalidInput(
            f"{missing} of {len(target)} images have no label (first shard: {shard}). "
            "Name where the labels are with --labels: cls, json:FIELD or folder."
        )

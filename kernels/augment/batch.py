"""Augmentation of a whole batch on a device: one call of `augment` for each group of views of one
size and normalisation.

Groups are augmented by the Triton kernels where these can run, by plain torch elsewhere: on other
devices, for rectangles and for sides below `triton.SHORTEST`. The Triton kernels know ImageNet's
mean and deviation; for others they make levels, which torch normalises.

Shapes: V views, N samples, H, W a view's height and width.
"""

import functools
from collections.abc import Callable

import torch

from ..layout import Group
from ..torch_formats import FORMATS
from ..views import IMAGENET_MEAN, IMAGENET_STD, ViewConfig
from . import torch as augment_torch
from .triton import SHORTEST, augmenter, unusable

Augment = Callable[..., torch.Tensor]
"""`augment_torch.augment` with some options given."""


class BatchAugmenter:
    """Augments batches of one configuration. Each stream needs its own: see `triton.Workspace`."""

    def __init__(self, config: ViewConfig, device: torch.device) -> None:
        self._layout = config.layout
        self._augment = [_choose(config, group, device) for group in self._layout.groups]

    def __call__(
        self,
        memory: torch.Tensor,
        parameters: torch.Tensor,
        *,
        masked_box: torch.Tensor | None,
        dtype: torch.dtype,
    ) -> tuple[torch.Tensor, ...]:
        """V tensors (N, 3, H, W), channels-last in memory. Waits for nothing.

        `memory`: a batch's flat memory at the seam, uint8. `parameters` (V, N, columns) float32:
        the views' columns of the plan. `masked_box`, `dtype`: as for `augment_torch.augment`.
        """
        made: dict[int, torch.Tensor] = {}
        for group, augment in zip(self._layout.groups, self._augment):
            first, count = group.views[0], len(group.views)
            if group.views == tuple(range(first, first + count)):
                rows = parameters[first : first + count]
            else:
                rows = torch.stack([parameters[v] for v in group.views])
            box = masked_box if first == 0 else None
            views = augment(self._layout.group(memory, group), rows, masked_box=box, dtype=dtype)
            made.update(zip(group.views, views))
        return tuple(made[v] for v in range(len(made)))


def _choose(config: ViewConfig, group: Group, device: torch.device) -> Augment:
    """The `augment` of a group of views."""
    settings = [config.views[v] for v in group.views]
    height, width = group.size
    sigma = max(view.blur_sigma[1] for view in settings)
    if unusable(device) is None and height == width >= SHORTEST:
        kernels = augmenter(height, device)
        if (tuple(group.mean), tuple(group.std)) == (IMAGENET_MEAN, IMAGENET_STD):
            return kernels
        masked = config.mask and group.views[0] == 0
        if not masked and not any(view.lighting for view in settings):
            return normalised(kernels, group, device)
    return functools.partial(
        augment_torch.augment, max_blur_sigma=sigma, mean=group.mean, std=group.std
    )


def normalised(augment: Augment, group: Group, device: torch.device) -> Augment:
    """An `augment` that normalises by the group's mean and deviation. Without a masked box, and of
    views without lighting, which belongs between levels and normalisation."""
    mean, deviation = (
        255 * torch.tensor(values, device=device)[:, None, None]
        for values in (group.mean, group.std)
    )

    def run(
        views: torch.Tensor,
        parameters: torch.Tensor,
        *,
        masked_box: torch.Tensor | None,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        levels = augment(views, parameters, masked_box=None, dtype=torch.uint8)
        if not FORMATS[dtype].normalised:
            return levels
        return levels.to(torch.float32).sub_(mean).div_(deviation).to(dtype)

    return run

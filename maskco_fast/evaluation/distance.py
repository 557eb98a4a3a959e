"""ResNet distance (the paper's Table 1): how unlike the features of two crops of an image are.

The paper leaves the formula open, so four variants are computed side by side. Shapes: N images, C
channels, H and W cells of the conv5 map.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import nn
from torch.nn import functional

from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.kernels.views import CROP_ONLY, ViewConfig
from maskco_fast.loaders import Batch

VARIANTS: Mapping[str, str] = {
    "map_l2_mean": "mean over the cells of the L2 distance between the two unit vectors",
    "map_frobenius": "Frobenius norm of the unit maps' difference, divided by the cells (7 x 7)",
    "pooled_l2": "L2 distance between the pooled features, normalised to length 1",
    "pooled_l2_squared": "the square of pooled_l2, which is 2 - 2 cos",
}
"""Name to definition. A map is normalised over its channels at each cell; cells are compared with
the cell at the same place."""


def distance_views(size: int = 224) -> ViewConfig:
    """Two independent random crops of area .2-1, without flip or colour (docs/method.md)."""
    return ViewConfig(views=(CROP_ONLY, CROP_ONLY), size=size)


def map_distances(first_NCHW: torch.Tensor, second_NCHW: torch.Tensor) -> dict[str, torch.Tensor]:
    """The distance of each pair of conv5 maps in every variant: name to (N,) float32."""
    first, second = first_NCHW.float(), second_NCHW.float()
    cells = first.shape[2] * first.shape[3]
    difference = functional.normalize(first, dim=1) - functional.normalize(second, dim=1)
    squares_NHW = difference.square().sum(1)
    pooled = functional.normalize(first.mean((2, 3)), dim=1) - functional.normalize(
        second.mean((2, 3)), dim=1
    )
    pooled_squares_N = pooled.square().sum(1)
    return {
        "map_l2_mean": squares_NHW.sqrt().mean((1, 2)),
        "map_frobenius": squares_NHW.sum((1, 2)).sqrt() / cells,
        "pooled_l2": pooled_squares_N.sqrt(),
        "pooled_l2_squared": pooled_squares_N,
    }


def resnet_distance(
    trunk: nn.Module, batches: Iterable[Batch], *, images: int
) -> dict[str, torch.Tensor]:
    """The distances of views 0 and 1 for the first `images` images of `batches`: name to (N,).

    `trunk` maps views (N, 3, S, S) to conv5 maps (N, C, H, W) on the views' device, and is in eval
    mode. N is less than `images` where the batches end before. Raises InvalidInput where they
    yield no image.
    """
    collected: dict[str, list[torch.Tensor]] = {name: [] for name in VARIANTS}
    left = images
    for batch in batches:
        first, second = (view[:left].float() for view in batch.views[:2])
        with torch.inference_mode():
            maps = trunk(torch.cat([first, second]))
            for name, values in map_distances(*maps.chunk(2)).items():
                collected[name].append(values.cpu())
        left -= len(first)
        if left <= 0:
            break
    if left == images:
        raise InvalidInput("The shards must hold at least one usable image, got none.")
    return {name: torch.cat(parts) for name, parts in collected.items()}

"""Linear probes of a frozen trunk: pools, BatchNorm without affine parameters, linear layers.

Shapes: N images, C channels of a map, S its side, P the pooled side, L probes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from maskco_fast.networks.batch_norm import SynchronizedBatchNorm

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5")
"""Names of the maps that `Trunk.maps` returns."""

MAX_VALUES = 9216
"""Most values of a pooled map: 12² · 64 = 6² · 256 = 3² · 1024."""

TOP = 5
"""The second figure of an evaluation: the correct class is among this many."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Average pooling of a square map."""

    kernel: int
    stride: int
    padding: int = 0

    def side(self, map_side: int) -> int:
        """The side of the pooled map."""
        return (map_side + 2 * self.padding - self.kernel) // self.stride + 1


PAPER_POOLS: Mapping[tuple[int, int], Pool] = {
    (64, 112): Pool(kernel=10, stride=10, padding=4),
    (256, 56): Pool(kernel=16, stride=8),
    (512, 28): Pool(kernel=13, stride=5),
    (1024, 14): Pool(kernel=8, stride=3),
    (2048, 7): Pool(kernel=6, stride=1),
}
"""OpenSelfSup's pools of ResNet-50 at 224 pixels, by channels and side of the map."""


def pool_for(channels: int, side: int) -> Pool:
    """Return the pool of a map with `channels` and `side`.

    The paper's maps have their own pools. Any other map is pooled to the same number of values:
    P = floor(sqrt(9216 / C)), at most S, in windows of equal size that cover the map at the largest
    stride, S // P.
    """
    if (channels, side) in PAPER_POOLS:
        return PAPER_POOLS[channels, side]
    pooled = min(side, math.isqrt(MAX_VALUES // channels))
    stride = side // pooled
    return Pool(kernel=side - (pooled - 1) * stride, stride=stride)


class LayerProbe(nn.Module):
    """Average pool, BatchNorm without affine parameters, linear classifier: one layer's probe.

    BatchNorm has the statistics of all processes' images, so that their number does not matter.
    """

    def __init__(self, channels: int, side: int, classes: int) -> None:
        super().__init__()
        self.pool = pool_for(channels, side)
        # Not trained: the scale stays 1 and the shift 0.
        self.norm = SynchronizedBatchNorm(channels).requires_grad_(False)
        self.linear = nn.Linear(channels * self.pool.side(side) ** 2, classes)

    def forward(self, map_NCSS: torch.Tensor) -> torch.Tensor:
        """Return the logits (N, classes)."""
        pool = self.pool
        pooled = functional.avg_pool2d(map_NCSS, pool.kernel, pool.stride, pool.padding)
        return self.linear(self.norm(pooled.contiguous()).flatten(1))


class PooledProbe(nn.Module):
    """Global average pool and linear classifier: the protocol `last`."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, classes)

    def forward(self, map_NCSS: torch.Tensor) -> torch.Tensor:
        """Return the logits (N, classes)."""
        return self.linear(map_NCSS.mean((2, 3)))


class Probes(nn.ModuleDict):
    """One probe per layer, by name; weights N(0, .01) from `seed`, biases 0."""

    def __init__(
        self, protocol: str, shapes: Mapping[str, tuple[int, int]], classes: int, *, seed: int
    ) -> None:
        """`shapes`: channels and side of each map of `LAYERS`. `protocol`: "multi" or "last"."""
        if protocol == "multi":
            probes: dict[str, nn.Module] = {
                layer: LayerProbe(*shapes[layer], classes) for layer in LAYERS
            }
        else:
            probes = {LAYERS[-1]: PooledProbe(shapes[LAYERS[-1]][0], classes)}
        super().__init__(probes)
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01, generator=generator)
                nn.init.zeros_(module.bias)

    def forward(self, maps: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return each probe's logits (N, classes) float32."""
        # Outside of autocast: the trunk takes nearly all of the time, and a probe's weights are
        # updated by less than bfloat16's precision.
        device = next(iter(maps.values())).device
        with torch.autocast(device.type, enabled=False):
            return {layer: probe(maps[layer].float()) for layer, probe in self.items()}


def hits(logits: torch.Tensor, target_N: torch.Tensor) -> torch.Tensor:
    """Whether the target is the first, and among the first five classes: (N, 2) bool."""
    top_N5 = logits.topk(min(TOP, logits.shape[1]), 1).indices
    found_N5 = top_N5 == target_N.unsqueeze(1)
    return torch.stack((found_N5[:, 0], found_N5.any(1)), 1)

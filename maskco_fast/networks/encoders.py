"""Encoders: region and image features from a trunk and a projection head, and momentum copies.

Shapes: N images, K boxes per image, D features.
"""

import copy
from functools import partial
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from maskco_fast.networks.batch_norm import GroupBatchNorm2d
from maskco_fast.networks.config import ModelConfig
from maskco_fast.networks.resnet import FusedBottleneck, Trunk
from maskco_fast.networks.roi_align import region_features

Network = TypeVar("Network", bound=nn.Module)


class RegionEncoder(nn.Module):
    """Trunk, mask prediction head (MPH), 1×1 RoIAlign and projection head: one feature per box."""

    def __init__(
        self, config: ModelConfig, *, mph_blocks: int, roi_sampling_ratio: int, roi_aligned: bool
    ) -> None:
        super().__init__()
        norm_layer = partial(GroupBatchNorm2d, group_size=config.group_size)
        self.trunk = Trunk(config.trunk, norm_layer)
        channels = self.trunk.channels
        # A Bottleneck outputs 4 times its width: 2048 -> 512 -> 2048 for ResNet-50 (paper, 3.2).
        self.mph = nn.Sequential(
            *[
                FusedBottleneck(channels, channels // 4, norm_layer=norm_layer)
                for _ in range(mph_blocks)
            ]
        )
        self.projection = mlp_head(channels, config.features)
        self.roi_sampling_ratio = roi_sampling_ratio
        self.roi_aligned = roi_aligned

    def forward(self, images: torch.Tensor, boxes_NK4: torch.Tensor) -> torch.Tensor:
        """Return the boxes' features (N, K, D), not normalised.

        `images`: (N, 3, size, size). `boxes_NK4`: xyxy in pixels of the images.
        """
        region_map = self.mph(self.trunk(images))
        regions = region_features(
            region_map,
            boxes_NK4,
            stride=self.trunk.stride,
            sampling_ratio=self.roi_sampling_ratio,
            aligned=self.roi_aligned,
        )
        return self.projection(regions)


class ImageEncoder(nn.Module):
    """Trunk, average pool and projection head: one feature per image."""

    def __init__(self, trunk: Trunk, head: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.projection = head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return features (N, D), not normalised, of images (N, 3, size, size)."""
        return self.projection(self.trunk(images).mean((2, 3)))


def mlp_head(channels: int, features: int) -> nn.Sequential:
    """Linear, ReLU, Linear, with biases: the head of MoCo v2 and of MaskCo (docs/method.md)."""
    return nn.Sequential(
        nn.Linear(channels, channels), nn.ReLU(inplace=True), nn.Linear(channels, features)
    )


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Draw all weights: kaiming normal by fan-in for convolutions and linear layers, biases 0.

    BatchNorm's scales become 1 and its shifts 0. This is `kaiming_init(mode="fan_in",
    nonlinearity="relu")` of OpenSelfSup, the paper's codebase. `generator` must be on the CPU.
    """
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(
                layer.weight, mode="fan_in", nonlinearity="relu", generator=generator
            )
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, _BatchNorm):
            layer.reset_parameters()


def momentum_copy(query: Network) -> Network:
    """Return the initial key network: the query network's weights, no gradients, in train mode."""
    return copy.deepcopy(query).requires_grad_(False).train()


class MovingAverage:
    """key <- momentum·key + (1 - momentum)·query, for parameters only.

    BatchNorm's buffers stay the key network's own. The lists of parameters are kept, because
    collecting them takes the host longer than queueing the update.
    """

    def __init__(self, key: nn.Module, query: nn.Module) -> None:
        self._key: list[torch.Tensor] = list(key.parameters())
        self._query: list[torch.Tensor] = list(query.parameters())

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """Move the key network once."""
        torch._foreach_lerp_(self._key, self._query, 1 - momentum)

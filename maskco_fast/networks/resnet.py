"""ResNet trunk: torchvision's network up to conv5, with BatchNorm, ReLU and residual sum fused.

Shapes: N images, C channels, H and W cells of the conv5 map.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from maskco_fast.kernels.max_pool import triton as max_pool
from maskco_fast.networks.batch_norm import fork, sums_forks
from maskco_fast.networks.config import CONV5_STRIDES


class FusedBasicBlock(BasicBlock):
    """torchvision's BasicBlock; each BatchNorm also computes the ReLU and residual sum after it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to the block's output."""
        x, residual = _fork(self, x)
        x = self.bn1(self.conv1(x), relu=True)
        return self.bn2(self.conv2(x), residual, relu=True)


class FusedBottleneck(Bottleneck):
    """torchvision's Bottleneck; each BatchNorm also computes the ReLU and residual sum after it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to the block's output."""
        x, residual = _fork(self, x)
        x = self.bn1(pointwise(self.conv1, x), relu=True)
        x = self.bn2(self.conv2(x), relu=True)
        return self.bn3(pointwise(self.conv3, x), residual, relu=True)


def _fork(block: BasicBlock | Bottleneck, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the input of the block's convolutions, and the residual."""
    if block.downsample is None:
        return fork(x, 1)
    convolution, norm = block.downsample
    if x.device.type != "cpu" and not sums_forks(x):
        return x, norm(convolution(x))  # torch's gradient of a slice is two copies, mostly of zeros
    # The strided slice commutes with the 1×1 convolution, which then reads contiguous pixels.
    x, residual = fork(x, convolution.stride[0])
    return x, norm(pointwise(convolution, residual))


def pointwise(convolution: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """Apply a 1×1 convolution without bias to every pixel, ignoring its stride.

    On CPUs this is a matrix product over the channels-last pixels: oneDNN's is faster than its
    convolution, most of all for the weights' gradient.
    """
    if x.device.type != "cpu":
        return functional.conv2d(x, convolution.weight)
    pixels_NHWC = x.permute(0, 2, 3, 1)
    product = functional.linear(pixels_NHWC.flatten(0, 2), convolution.weight.flatten(1))
    return product.unflatten(0, pixels_NHWC.shape[:3]).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Architecture:
    """What a trunk consists of."""

    block: type[FusedBasicBlock] | type[FusedBottleneck]
    blocks: list[int]
    """Of each layer."""
    small_width: int | None = None
    """Channels of a first convolution 3x3 with stride 2, without the max-pool after it. None:
    torchvision's, 64 channels 7x7, and a max-pool."""


TRUNKS: Mapping[str, Architecture] = {
    "resnet10-small": Architecture(FusedBasicBlock, [1, 1, 1, 1], small_width=32),
    "resnet18": Architecture(FusedBasicBlock, [2, 2, 2, 2]),
    "resnet50": Architecture(FusedBottleneck, [3, 4, 6, 3]),
}
"""The trunks by their names; torchvision has those without `small_width`."""


class Trunk(ResNet):
    """torchvision's ResNet without pooling and classifier.

    Maps images (N, 3, S·H, S·W) to the conv5 map (N, C, H, W) of stride S = `stride`. The state
    dict has torchvision's names. The stride is on the 3×3 convolution (torchvision's "v1.5";
    docs/method.md).
    """

    def __init__(self, name: str, norm_layer: Callable[..., nn.Module]) -> None:
        found = TRUNKS[name]
        super().__init__(found.block, found.blocks, norm_layer=norm_layer)
        self.channels: int = self.fc.in_features
        self.stride: int = CONV5_STRIDES[name]
        del self.avgpool, self.fc
        if found.small_width is not None:
            self._make_small(found, found.small_width, norm_layer)

    def _make_small(
        self, found: Architecture, width: int, norm_layer: Callable[..., nn.Module]
    ) -> None:
        """Replace the layers by those of a small first convolution of `width` channels."""
        self.conv1 = nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False)
        self.bn1: Any = norm_layer(width)
        self.maxpool = nn.Identity()
        self.inplanes = width  # what torchvision's method counts from
        for number, blocks in enumerate(found.blocks):
            layer = self._make_layer(
                found.block, width << number, blocks, stride=1 if number == 0 else 2
            )
            setattr(self, f"layer{number + 1}", layer)
        self.channels = self.inplanes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the conv5 map (N, C, H, W) of images (N, 3, S·H, S·W)."""
        x = self._pool(self.bn1(self.conv1(x), relu=True))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def _pool(self, x: torch.Tensor) -> torch.Tensor:
        """`maxpool`, by the CUDA kernels where they can."""
        if isinstance(self.maxpool, nn.MaxPool2d) and max_pool.fits(x):
            return max_pool.max_pool(x)
        return self.maxpool(x)

    def maps(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the maps of conv1 (after the ReLU, before the max-pool), conv2, ..., conv5.

        conv1 is (N, 64, 16·H, 16·W), conv2 (N, C/8, 8·H, 8·W), conv5 (N, C, H, W), for images
        (N, 3, 32·H, 32·W); resnet10-small's conv1 is (N, 32, 8·H, 8·W), for (N, 3, 16·H, 16·W).
        """
        maps = [self.bn1(self.conv1(x), relu=True)]
        x = self._pool(maps[0])
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        return tuple(maps)

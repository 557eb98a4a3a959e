"""The networks: trunk, mask prediction head, RoIAlign, projection heads, momentum copies.

Shapes: N images, K boxes an image, C channels, H and W cells of the conv5 map, D features, S
samples a side of a box.
"""

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from maskco_fast.networks.batch_norm import GroupBatchNorm2d, fork
from maskco_fast.training.config import ModelConfig

STRIDE = 32
"""Image pixels a cell of the conv5 map."""


class FusedBasicBlock(BasicBlock):
    """torchvision's block, whose BatchNorms are told of the ReLU and the residual sum that follow
    them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to the block's output."""
        x, residual = _fork(self, x)
        x = self.bn1(self.conv1(x), relu=True)
        return self.bn2(self.conv2(x), residual, relu=True)


class FusedBottleneck(Bottleneck):
    """Likewise, of three convolutions."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to the block's output."""
        x, residual = _fork(self, x)
        x = self.bn1(pointwise(self.conv1, x), relu=True)
        x = self.bn2(self.conv2(x), relu=True)
        return self.bn3(pointwise(self.conv3, x), residual, relu=True)


def _fork(block: BasicBlock | Bottleneck, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the block's convolutions get, and the residual."""
    if block.downsample is None:
        return fork(x, 1)
    convolution, norm = block.downsample
    x, residual = fork(x, convolution.stride[0])
    return x, norm(pointwise(convolution, residual))


def pointwise(convolution: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """A convolution of 1×1 of all pixels, without a bias: on CPUs as a product of matrices of the
    channels-last pixels.

    oneDNN takes less time for that, most of all for the weights' gradient.
    """
    if x.device.type != "cpu":
        return functional.conv2d(x, convolution.weight)
    pixels_NHWC = x.permute(0, 2, 3, 1)
    product = functional.linear(pixels_NHWC.flatten(0, 2), convolution.weight.flatten(1))
    return product.unflatten(0, pixels_NHWC.shape[:3]).permute(0, 3, 1, 2)


_TRUNKS: dict[str, tuple[type[FusedBasicBlock] | type[FusedBottleneck], list[int]]] = {
    "resnet18": (FusedBasicBlock, [2, 2, 2, 2]),
    "resnet50": (FusedBottleneck, [3, 4, 6, 3]),
}


class Trunk(ResNet):
    """torchvision's ResNet without pooling and classifier: images (N, 3, 32·H, 32·W) to the conv5
    map (N, C, H, W).

    Its state dict has torchvision's names. The stride stands on the 3×3 (torchvision's "v1.5"; SPEC
    1).
    """

    def __init__(self, name: str, norm_layer: Callable[..., nn.Module]) -> None:
        block, layers = _TRUNKS[name]
        super().__init__(block, layers, norm_layer=norm_layer)
        self.channels: int = self.fc.in_features
        del self.avgpool, self.fc

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The conv5 map."""
        x = self.maxpool(self.bn1(self.conv1(x), relu=True))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class RegionEncoder(nn.Module):
    """Trunk, mask prediction head, RoIAlign of 1×1 and projection head: one feature a box."""

    def __init__(
        self, config: ModelConfig, *, mph_blocks: int, roi_sampling_ratio: int, roi_aligned: bool
    ) -> None:
        super().__init__()
        norm_layer = partial(GroupBatchNorm2d, group_size=config.group_size)
        self.trunk = Trunk(config.trunk, norm_layer)
        channels = self.trunk.channels
        # Bottleneck's output has 4 times its width: 2048 -> 512 -> 2048 for ResNet-50 (paper, 3.2).
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
        """Features (N, K, D), not normalised, of the boxes xyxy in pixels of the images (N, 3,
        size, size)."""
        region_map = self.mph(self.trunk(images))
        regions = region_features(
            region_map, boxes_NK4, sampling_ratio=self.roi_sampling_ratio, aligned=self.roi_aligned
        )
        return self.projection(regions)


class ImageEncoder(nn.Module):
    """Trunk, average pool and a head: one feature an image."""

    def __init__(self, trunk: Trunk, head: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.projection = head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features (N, D), not normalised, of the images (N, 3, size, size)."""
        return self.projection(self.trunk(images).mean((2, 3)))


def mlp_head(channels: int, features: int) -> nn.Sequential:
    """Linear, ReLU, Linear with biases: MoCo v2's head, and the paper's (SPEC 1)."""
    return nn.Sequential(
        nn.Linear(channels, channels), nn.ReLU(inplace=True), nn.Linear(channels, features)
    )


def region_features(
    map_NCHW: torch.Tensor, boxes_NK4: torch.Tensor, *, sampling_ratio: int, aligned: bool
) -> torch.Tensor:
    """RoIAlign with a 1×1 output at scale 1/32: (N, K, C), the mean of the map over each box.

    float32, or float64 for a float64 map. `boxes_NK4` float32 xyxy in image pixels, inside the
    image. Equals `torchvision.ops.roi_align(map, boxes, 1, 1/32, sampling_ratio, aligned)`: its
    samples form a grid, so the mean of bilinear samples is `Wy·F·Wxᵀ` with one weight vector an
    axis. As one batched product over the cells it reads the channels-last map in place, has a
    deterministic gradient (torchvision's on CUDA adds atomically), and needs no list of boxes and
    no host synchronisation.
    """
    _, _, height, width = map_NCHW.shape
    with torch.autocast(
        map_NCHW.device.type, enabled=False
    ):  # box weights in bfloat16 would move the box
        boxes_NK4 = boxes_NK4.float() / STRIDE
        weight_y = _axis_weights(
            boxes_NK4[..., 1], boxes_NK4[..., 3], height, sampling_ratio, aligned
        )
        weight_x = _axis_weights(
            boxes_NK4[..., 0], boxes_NK4[..., 2], width, sampling_ratio, aligned
        )
        weights = (weight_y.unsqueeze(-1) * weight_x.unsqueeze(-2)).flatten(-2)  # (N, K, H·W)
        dtype = torch.promote_types(map_NCHW.dtype, torch.float32)
        cells = map_NCHW.to(dtype).permute(0, 2, 3, 1).flatten(1, 2)  # (N, H·W, C)
        return torch.bmm(weights.to(dtype), cells)


def _axis_weights(
    start_NK: torch.Tensor, end_NK: torch.Tensor, cells: int, sampling_ratio: int, aligned: bool
) -> torch.Tensor:
    """(N, K, cells): what each cell of one axis adds to the mean over the boxes, whose ends are in
    cells."""
    start_NK = start_NK - 0.5 if aligned else start_NK
    end_NK = end_NK - 0.5 if aligned else end_NK
    length_NK = end_NK - start_NK if aligned else (end_NK - start_NK).clamp(min=1)
    if sampling_ratio > 0:
        most, count_NK = sampling_ratio, torch.full_like(length_NK, sampling_ratio)
    else:
        most, count_NK = (
            cells,
            length_NK.ceil(),
        )  # a box inside the image spans no more than all cells
    sample_S = torch.arange(most, device=start_NK.device, dtype=torch.float32)
    count_NK1 = count_NK.clamp(min=1).unsqueeze(-1)
    at_NKS = start_NK.unsqueeze(-1) + (sample_S + 0.5) * length_NK.unsqueeze(-1) / count_NK1
    counts_NKS = (sample_S < count_NK.unsqueeze(-1)) & (at_NKS >= -1) & (at_NKS <= cells)
    cell = torch.arange(cells, device=start_NK.device, dtype=torch.float32)
    tent_NKSH = (1 - (at_NKS.clamp(0, cells - 1).unsqueeze(-1) - cell).abs()).clamp(min=0)
    return (tent_NKSH * counts_NKS.unsqueeze(-1)).sum(-2) / count_NK1


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Set every weight anew: kaiming normal by fan-in for convolutions and linear layers, biases 0,
    BatchNorm 1 and 0.

    OpenSelfSup's `kaiming_init(mode="fan_in", nonlinearity="relu")`, the paper's codebase.
    `generator`: a CPU one.
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


def momentum_copy(query: nn.Module) -> nn.Module:
    """The key network at the start: the query network's weights, without gradients, in train mode."""
    return copy.deepcopy(query).requires_grad_(False).train()


@torch.no_grad()
def momentum_update(key: nn.Module, query: nn.Module, momentum: float) -> None:
    """key <- momentum·key + (1 - momentum)·query, over the parameters alone: BatchNorm's buffers
    stay the key's own."""
    torch._foreach_lerp_(list(key.parameters()), list(query.parameters()), 1 - momentum)

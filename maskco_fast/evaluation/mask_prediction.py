"""What the mask prediction head (MPH) makes of a masked region (the paper's Figures 6 and 7).

A square in the centre of each image is zeroed, as in pre-training. If the head predicts what is
hidden, its map of the masked image is close to that of the clean image inside the region, where
conv5's is not. Shapes: N images, C channels, H and W cells of the conv5 map.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from maskco_fast.networks.roi_align import region_features

REGION_SIDE = 64 / 224
"""Side of the masked square as a fraction of the image's (docs/method.md)."""


@dataclass(frozen=True, kw_only=True)
class LayerMaps:
    """One layer's response to the clean and to the masked images."""

    clean: torch.Tensor
    """(N, H, W) float32: the mean of |f| over the channels."""
    masked: torch.Tensor
    norm_ratio: torch.Tensor
    """(N,): norm of the region's feature in the masked image, divided by that in the clean one."""
    cosine: torch.Tensor
    """(N,): cosine between the region's two features."""


def centre_region(size: int) -> tuple[int, int, int, int]:
    """The masked square of a view of `size` pixels: whole pixels x1, y1, x2, y2."""
    side = round(size * REGION_SIDE)
    start = (size - side) // 2
    return start, start, start + side, start + side


def mask_centre(images: torch.Tensor) -> torch.Tensor:
    """A copy of images (N, 3, S, S), normalised, with zeros in the centre region."""
    x1, y1, x2, y2 = centre_region(images.shape[-1])
    masked = images.clone()
    masked[..., y1:y2, x1:x2] = 0
    return masked


@torch.inference_mode()
def mask_responses(
    trunk: nn.Module, mph: nn.Module | None, images: torch.Tensor
) -> dict[str, LayerMaps]:
    """The layers' responses to images (N, 3, S, S), normalised: "conv5" and, with `mph`, "mph".

    The region's feature is its RoIAlign with a 1×1 output, as the method computes it.
    """
    conv5 = trunk(torch.cat([images, mask_centre(images)])).float()
    maps = {"conv5": conv5}
    if mph is not None:
        maps["mph"] = mph(conv5).float()
    box = torch.tensor(centre_region(images.shape[-1]), dtype=torch.float32, device=images.device)
    stride = images.shape[-1] // conv5.shape[-1]
    return {name: _compare(map_2NCHW, box, stride) for name, map_2NCHW in maps.items()}


def _compare(map_2NCHW: torch.Tensor, box_4: torch.Tensor, stride: int) -> LayerMaps:
    """Compare the maps of the clean images, the first half, with those of the masked ones."""
    boxes = box_4.expand(len(map_2NCHW), 1, 4)
    features = region_features(map_2NCHW, boxes, stride=stride, sampling_ratio=-1, aligned=True)
    features = features[:, 0]
    clean, masked = features.chunk(2)
    means_clean, means_masked = map_2NCHW.abs().mean(1).cpu().chunk(2)
    return LayerMaps(
        clean=means_clean,
        masked=means_masked,
        norm_ratio=(masked.norm(dim=1) / clean.norm(dim=1).clamp_min(1e-12)).cpu(),
        cosine=functional.cosine_similarity(masked, clean).cpu(),
    )

"""Colour, blur, normalisation and mask of one view by torchvision: the slow, obvious twin of the
fast kernels.

Every operation is torchvision's own functional operator on a uint8 tensor, so that levels are
truncated where it truncates them. Shapes: S the view's side; `view` is one view of a plan row
(`views.plan_dtype`).
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torchvision.transforms.functional as F

from ..views import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    IMAGENET_MEAN,
    IMAGENET_STD,
    SATURATION,
    SOLARIZE_THRESHOLD,
)

_JITTER = {
    BRIGHTNESS: F.adjust_brightness,
    CONTRAST: F.adjust_contrast,
    SATURATION: F.adjust_saturation,
    HUE: F.adjust_hue,
}


def blur_radius(sigma: float, size: int) -> int:
    """Pixels on either side that a blur of `sigma` pixels draws on: 3 sigma, and less than a
    reflected view holds."""
    return min(math.ceil(3.0 * sigma), size - 1)


def augment_reference(levels: np.ndarray, view: np.void) -> np.ndarray:
    """Jitter in the plan's order, gray, blur, solarisation: (S, S, 3) uint8 to (S, S, 3) uint8."""
    image = torch.from_numpy(np.ascontiguousarray(levels)).permute(2, 0, 1)
    if view["jitter"]:
        for operation in view["order"].astype(int).tolist():
            image = _JITTER[operation](image, float(view["factors"][operation]))
    if view["gray"]:
        image = F.rgb_to_grayscale(image, num_output_channels=3)
    sigma = float(view["blur_sigma"])
    if sigma > 0:
        side = 2 * blur_radius(sigma, levels.shape[0]) + 1
        image = F.gaussian_blur(image, [side, side], [sigma, sigma])
    if view["solarize"]:
        image = F.solarize(image, SOLARIZE_THRESHOLD)
    return image.permute(1, 2, 0).contiguous().numpy()


def finish_reference(
    levels: np.ndarray,
    masked_box: np.ndarray | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> np.ndarray:
    """Normalise (S, S, 3) uint8 levels to float32 and zero the masked box (x1, y1, x2, y2), rounded
    outwards."""
    image = F.normalize(
        F.convert_image_dtype(torch.from_numpy(levels).permute(2, 0, 1)), list(mean), list(std)
    )
    image = image.permute(1, 2, 0).contiguous().numpy()
    if masked_box is not None:
        x1, y1, x2, y2 = mask_bounds(masked_box, levels.shape[0])
        image[y1:y2, x1:x2] = 0
    return image


def mask_bounds(masked_box: np.ndarray, size: int) -> tuple[int, int, int, int]:
    """Whole pixels (x1, y1, x2, y2) that the masked box touches, clipped to the view; empty where
    x2 <= x1."""
    x1, y1 = np.clip(np.floor(masked_box[:2]), 0, size)
    x2, y2 = np.clip(np.ceil(masked_box[2:]), 0, size)
    return int(x1), int(y1), int(x2), int(y2)

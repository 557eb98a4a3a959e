"""Reference augmentation of one view by torchvision's operators: colour, blur, lighting,
normalisation, mask.

Slow and obvious; the fast kernels are tested against it. Each operation is torchvision's functional
operator on a uint8 tensor, which truncates levels after every step.

Shapes: S and S' are the view's height and width in pixels. `view` is one view of a plan row, see
`views.plan_dtype`.
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


def blur_radius(sigma: float, side: int) -> int:
    """Radius in pixels of a Gaussian of `sigma` pixels: ceil(3 sigma), at most `side` - 1, which is
    as far as reflection reaches. `side`: the view's shorter side."""
    return min(math.ceil(3.0 * sigma), side - 1)


def augment_reference(levels: np.ndarray, view: np.void) -> np.ndarray:
    """Apply colour jitter in the plan's order, gray, blur and solarisation.

    `levels` (S, S', 3) uint8; returns as many.
    """
    image = torch.from_numpy(np.ascontiguousarray(levels)).permute(2, 0, 1)
    if view["jitter"]:
        for operation in view["order"].astype(int).tolist():
            image = _JITTER[operation](image, float(view["factors"][operation]))
    if view["gray"]:
        image = F.rgb_to_grayscale(image, num_output_channels=3)
    sigma = float(view["blur_sigma"])
    if sigma > 0:
        side = 2 * blur_radius(sigma, min(levels.shape[:2])) + 1
        image = F.gaussian_blur(image, [side, side], [sigma, sigma])
    if view["solarize"]:
        image = F.solarize(image, SOLARIZE_THRESHOLD)
    return image.permute(1, 2, 0).contiguous().numpy()


def light_reference(levels: np.ndarray, lighting: np.ndarray) -> np.ndarray:
    """Add lighting (3,) to (S, S', 3) uint8 levels, clamped to 0..255 and rounded, halves up.

    For views that stay levels: where views are normalised, nothing is clamped or rounded.
    """
    lit = torch.from_numpy(levels) + 255 * torch.from_numpy(lighting.copy())
    return (lit + 0.5).clamp(0, 255).to(torch.uint8).numpy()


def finish_reference(
    levels: np.ndarray,
    masked_box: np.ndarray | None = None,
    lighting: np.ndarray | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> np.ndarray:
    """Light and normalise (S, S', 3) uint8 levels to float32 and zero the masked box.

    `masked_box` (4,) float32 xyxy in pixels, rounded outwards; None for no mask. `lighting` (3,)
    float32: the plan's, added to levels in 0..1 as OpenSelfSup does between its ToTensor and
    Normalize; None for none. `mean` and `std`: of levels in 0..1, by channel.
    """
    image = F.convert_image_dtype(torch.from_numpy(levels).permute(2, 0, 1))
    if lighting is not None:
        image = image + torch.from_numpy(lighting.copy())[:, None, None]
    image = F.normalize(image, list(mean), list(std))
    image = image.permute(1, 2, 0).contiguous().numpy()
    if masked_box is not None:
        x1, y1, x2, y2 = mask_bounds(masked_box, *levels.shape[:2])
        image[y1:y2, x1:x2] = 0
    return image


def mask_bounds(masked_box: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    """Whole pixels (x1, y1, x2, y2) that the masked box touches, clipped to a view; x2 and y2
    excluded. Empty where x2 <= x1 or y2 <= y1."""
    x1, y1 = np.clip(np.floor(masked_box[:2]), 0, (width, height))
    x2, y2 = np.clip(np.ceil(masked_box[2:]), 0, (width, height))
    return int(x1), int(y1), int(x2), int(y2)

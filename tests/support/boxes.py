"""Random boxes for tests of RoIAlign and of MaskCo."""

import torch


def random_boxes(count: int, per_image: int, size: int, *, seed: int) -> torch.Tensor:
    """(count, per_image, 4) float32 xyxy in pixels, inside the image of side `size`.

    The first box of each image is the whole image, the second a corner.
    """
    generator = torch.Generator().manual_seed(seed)
    ends = torch.rand(count, per_image, 2, 2, generator=generator).sort(dim=2).values * size
    boxes = ends.flatten(2)
    boxes[:, 0] = torch.tensor([0, 0, size, size])
    boxes[:, 1] = torch.tensor([size - 9.5, 0, size, 7.25])
    return boxes

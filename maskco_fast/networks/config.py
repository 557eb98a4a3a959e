"""Configuration of the networks that all methods share, and the length of a batch's groups."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from maskco_fast.kernels.errors import InvalidInput

TrunkName = Literal["resnet10-small", "resnet18", "resnet50"]

CONV5_STRIDES: Mapping[str, int] = {"resnet10-small": 16, "resnet18": 32, "resnet50": 32}
"""Image pixels per cell of each trunk's conv5 map."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The networks that all methods share."""

    trunk: TrunkName = "resnet50"
    """torchvision's ResNet up to conv5, with the stride on the 3x3 convolution. resnet10-small is
    for small images: one block a stage, half the channels, no max-pool."""
    view_size: int = 224
    """Side of every view, in pixels; a multiple of 32 (16 for resnet10-small), so that conv5's
    cells tile it."""
    features: int = 128
    """Length of the projection head's output."""
    group_size: int = 32
    """Images that share BatchNorm statistics and negatives (one GPU's in the paper). A smaller
    batch is one group."""

    def __post_init__(self) -> None:
        stride = CONV5_STRIDES[self.trunk]
        if self.view_size < stride or self.view_size % stride:
            raise InvalidInput(
                f"`view_size` must be a positive multiple of {stride} pixels with {self.trunk}, "
                f"got {self.view_size}."
            )
        if self.features < 1:
            raise InvalidInput(f"`features` must be at least 1, got {self.features}.")
        if self.group_size < 2:
            raise InvalidInput(
                f"`group_size` must be at least 2, got {self.group_size}: "
                "images are contrasted with the other images of their group."
            )


def group_length(count: int, group_size: int) -> int:
    """Return the images per group in a batch of `count`: `group_size`, or `count` if that is less.

    InvalidInput where `count` exceeds `group_size` and is not a multiple of it.
    """
    if count <= group_size:
        return count
    if count % group_size:
        raise InvalidInput(
            f"A batch of {count} images does not divide into groups of {group_size}."
        )
    return group_size

"""Rotation, a baseline of the paper: tell by how much an image is turned (Gidaris et al. 2018)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from maskco_fast.loaders import Batch, ViewConfig
from maskco_fast.methods.base import Method, RecipeValues
from maskco_fast.methods.classification import classification
from maskco_fast.networks.batch_norm import SynchronizedBatchNorm
from maskco_fast.networks.config import ModelConfig
from maskco_fast.networks.encoders import ImageEncoder, initialise
from maskco_fast.networks.resnet import Trunk

ROTATIONS = 4
"""Classes: 0, 90, 180 and 270 degrees."""


@dataclass(frozen=True, kw_only=True)
class RotationConfig:
    """Rotation (docs/method.md) has no options. BatchNorm spans the global batch."""


class Rotation(Method):
    """Classify each image's four rotations (Gidaris et al. 2018)."""

    recipe_values: ClassVar = {
        # OpenSelfSup's 0.2 is for 128 images. Its warm-up is 5 ImageNet epochs of 5004 steps.
        "paper": RecipeValues(
            config=RotationConfig(),
            optimizer={"learning_rate": 0.4, "schedule": "step", "warmup_steps": 25_000},
        ),
        # With 0.4 the loss of small batches diverges in the first steps.
        "short": RecipeValues(
            config=RotationConfig(),
            optimizer={"learning_rate": 0.1, "schedule": "step", "warmup_steps": 10},
        ),
    }

    spans_whole_batch = True

    def __init__(self, config: RotationConfig, model: ModelConfig, *, seed: int) -> None:
        super().__init__()
        self.views = ViewConfig.rotation(model.view_size)
        trunk = Trunk(model.trunk, SynchronizedBatchNorm)
        self.query = ImageEncoder(trunk, nn.Linear(trunk.channels, ROTATIONS))
        initialise(self.query, torch.Generator().manual_seed(seed))

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return `loss` and `accuracy`: the share of the rotated images that are told right."""
        images = batch.query
        label_R = torch.arange(ROTATIONS, device=images.device).repeat(len(images))
        return classification(self.query(rotations(images)), label_R)

    def chance_loss(self, batch_size: int) -> float:
        """Return ln 4 = 1.39."""
        return math.log(ROTATIONS)

    def after_step(self, progress: float) -> None:
        """Do nothing: there is no second network."""


def rotations(image_NCHW: torch.Tensor) -> torch.Tensor:
    """Return (4·N, C, H, W) channels-last: each image turned counter-clockwise by 0, 90, 180, 270.

    An image's rotations are in consecutive rows. Images are square.
    """
    image_NHWC = image_NCHW.permute(0, 2, 3, 1)
    turned = [torch.rot90(image_NHWC, turns, (1, 2)) for turns in range(ROTATIONS)]
    return torch.stack(turned, 1).flatten(0, 1).permute(0, 3, 1, 2)

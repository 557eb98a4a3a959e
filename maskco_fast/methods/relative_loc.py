"""Relative location, a baseline of the paper: tell where one patch of an image lies to another."""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import nn

from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import Batch, ViewConfig
from maskco_fast.methods.base import Method, RecipeValues
from maskco_fast.methods.classification import classification
from maskco_fast.methods.counter_random import random_dropout
from maskco_fast.networks.batch_norm import GroupBatchNorm2d
from maskco_fast.networks.config import ModelConfig
from maskco_fast.networks.encoders import ImageEncoder, initialise
from maskco_fast.networks.resnet import Trunk

PATCHES = 9
"""Patches of an image, row by row of its 3x3 grid."""
CENTRE = 4
"""The patch in the middle, which is paired with each of the others."""
PAIRS = PATCHES - 1
"""Classes: the neighbour's place, row by row without the centre."""
CROP_SCALE = 255 / 224
"""Side of the crop that is cut into patches, over the views' side of the other methods (O)."""


@dataclass(frozen=True, kw_only=True)
class RelativeLocConfig:
    """Relative location (docs/method.md). The crop's side is 255/224 of `model.view_size`."""

    hidden: int = 4096
    """Width of the layer that joins the features of two patches."""
    dropout: float = 0.5
    """Share of that layer's values that are dropped."""

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise InvalidInput(f"`hidden` must be at least 1, got {self.hidden}.")
        if not 0 <= self.dropout < 1:
            raise InvalidInput(f"`dropout` must be in [0, 1), got {self.dropout}.")


class RelativeLoc(Method):
    """Classify which of the eight neighbours of a patch another patch is (Doersch et al. 2015)."""

    recipe_values: ClassVar = {
        # OpenSelfSup's 0.2 is for 512 images. Its warm-up is 5 ImageNet epochs of 5004 steps.
        "paper": RecipeValues(
            config=RelativeLocConfig(),
            optimizer={
                "learning_rate": 0.1,
                "head_weight_decay": 5e-4,
                "schedule": "step",
                "warmup_steps": 25_000,
            },
        ),
        # With 0.24 the loss of small batches rises above chance.
        "short": RecipeValues(
            config=RelativeLocConfig(hidden=1024),
            optimizer={
                "learning_rate": 0.05,
                "head_weight_decay": 5e-4,
                "schedule": "step",
                "warmup_steps": 10,
            },
        ),
    }

    steps: torch.Tensor
    """Scalar int64: optimiser steps done, from which each step's dropout is drawn."""

    def __init__(self, config: RelativeLocConfig, model: ModelConfig, *, seed: int) -> None:
        super().__init__()
        self.config = config
        self.seed = seed
        self.views = ViewConfig.relative_loc(round(model.view_size * CROP_SCALE))
        # A group of images is a group of all their patches, or of all their pairs.
        trunk = Trunk(model.trunk, partial(GroupBatchNorm2d, group_size=PATCHES * model.group_size))
        self.query = ImageEncoder(trunk, nn.Identity())
        self.neck = nn.Linear(2 * trunk.channels, config.hidden)
        # O's momentum of 0.003 averages the running statistics over some 300 steps.
        self.norm = GroupBatchNorm2d(
            config.hidden, group_size=PAIRS * model.group_size, momentum=0.003
        )
        self.head = nn.Linear(config.hidden, PAIRS)
        generator = torch.Generator().manual_seed(seed)
        initialise(self.query, generator)
        for layer, bias in ((self.neck, 0.1), (self.head, 0.0)):  # as O
            nn.init.normal_(layer.weight, std=0.005, generator=generator)
            nn.init.constant_(layer.bias, bias)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return `loss` and `accuracy`: the share of the pairs whose neighbour is placed right."""
        if batch.patch_corners is None:
            raise InvalidInput(
                "Relative location needs batches with patches, got none: "
                "make the loader with views=method.views."
            )
        count = len(batch)
        # One pass over all patches, where O encodes neighbours and centres apart.
        patches = cut_patches(batch.query, batch.patch_corners, self.views.patch_size)
        feature_NPC = self.query(patches).unflatten(0, (count, PATCHES))
        neighbour_NQC = torch.cat((feature_NPC[:, :CENTRE], feature_NPC[:, CENTRE + 1 :]), 1)
        centre_NQC = feature_NPC[:, CENTRE : CENTRE + 1].expand_as(neighbour_NQC)
        pair_R2C = torch.cat((neighbour_NQC, centre_NQC), 2).flatten(0, 1)  # R = N·Q
        hidden_RD11 = self.neck(pair_R2C)[:, :, None, None]
        hidden_RD = self.norm(hidden_RD11, relu=True).flatten(1)
        label_R = torch.arange(PAIRS, device=hidden_RD.device).repeat(count)
        dropped_RD = random_dropout(
            hidden_RD,
            self.config.dropout,
            seed=self.seed,
            step=self.steps,
            row_R=batch.sample_id.repeat_interleave(PAIRS) * PAIRS + label_R,
        )
        return classification(self.head(dropped_RD), label_R)

    def chance_loss(self, batch_size: int) -> float:
        """Return ln 8 = 2.08."""
        return math.log(PAIRS)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Count the step."""
        self.steps.add_(1)


def cut_patches(view_NCHW: torch.Tensor, corner_NP2: torch.Tensor, size: int) -> torch.Tensor:
    """Return (N·P, C, size, size) channels-last: the patches of each image in consecutive rows.

    `corner_NP2`: int64 y and x of each patch's first pixel; the patches lie inside the view.
    """
    offset_S = torch.arange(size, device=corner_NP2.device)
    row_NPS1 = (corner_NP2[:, :, :1] + offset_S).unsqueeze(3)
    column_NP1S = (corner_NP2[:, :, 1:] + offset_S).unsqueeze(2)
    image_N111 = torch.arange(len(view_NCHW), device=corner_NP2.device)[:, None, None, None]
    patch_NPSSC = view_NCHW.permute(0, 2, 3, 1)[image_N111, row_NPS1, column_NP1S]
    return patch_NPSSC.flatten(0, 1).permute(0, 3, 1, 2)

"""BYOL, a baseline of the paper: predict a moving-average network's feature of the other view."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import Batch, ViewConfig
from maskco_fast.methods.base import Method, RecipeValues
from maskco_fast.methods.instance_contrast import unit
from maskco_fast.networks.batch_norm import SynchronizedBatchNorm
from maskco_fast.networks.config import ModelConfig
from maskco_fast.networks.encoders import ImageEncoder, initialise, momentum_copy
from maskco_fast.networks.resnet import Trunk


@dataclass(frozen=True, kw_only=True)
class BYOLConfig:
    """BYOL (docs/method.md). BatchNorm spans the global batch, without groups."""

    hidden: int = 4096
    """Width of the projector's and the predictor's hidden layer."""
    momentum: float = 0.996
    """Weight of the target network's own parameters at the first step; a cosine over the run
    raises it to 1."""

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise InvalidInput(f"`hidden` must be at least 1, got {self.hidden}.")
        if not 0 <= self.momentum <= 1:
            raise InvalidInput(f"`momentum` must be in [0, 1], got {self.momentum}.")


class BYOL(Method):
    """Regress the target network's feature of one view from the other view (Grill et al. 2020)."""

    recipe_values: ClassVar = {
        # The warm-up is OpenSelfSup's: 2 ImageNet epochs of 5004 steps.
        "paper": RecipeValues(
            config=BYOLConfig(),
            optimizer={
                "name": "lars",
                "learning_rate": 0.2,
                "weight_decay": 1.5e-6,
                "warmup_steps": 10_000,
            },
            model={"features": 256},
        ),
        # At 4.0, 0.5 for a batch of 32, a gradient moves a weight by 0.05 % of its norm (`trust`).
        # At 8.0 and a momentum of 0.95 the loss is flat after 60 steps.
        "short": RecipeValues(
            config=BYOLConfig(hidden=1024, momentum=0.99),
            optimizer={
                "name": "lars",
                "learning_rate": 4.0,
                "weight_decay": 1.5e-6,
                "warmup_steps": 10,
            },
            model={"features": 256},
        ),
    }

    spans_whole_batch = True
    scheduled = True

    def __init__(self, config: BYOLConfig, model: ModelConfig, *, seed: int) -> None:
        super().__init__()
        self.config = config
        self.views = ViewConfig.byol(model.view_size)
        trunk = Trunk(model.trunk, SynchronizedBatchNorm)
        self.query = ImageEncoder(trunk, byol_mlp(trunk.channels, config.hidden, model.features))
        self.predictor = byol_mlp(model.features, config.hidden, model.features)
        generator = torch.Generator().manual_seed(seed)
        initialise(self.query, generator)
        initialise(self.predictor, generator)
        # The target network of the publication.
        self.key = momentum_copy(self.query)

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return `loss` and `spread`.

        The spread is 1 - |mean unit target|²: 1 for features in all directions, 0 where all images
        have the same one, which is the collapse that the loss does not show.
        """
        view_1, view_2 = batch.views
        # One pass for each view: BatchNorm sees the views apart, as in the paper's codebase.
        prediction_1 = self.predictor(self.query(view_1))
        prediction_2 = self.predictor(self.query(view_2))
        with torch.no_grad():
            target_1 = unit(self.key(view_1))
            target_2 = unit(self.key(view_2))
        loss = squared_distance(prediction_1, target_2) + squared_distance(prediction_2, target_1)
        spread = 1 - (target_1.mean(0).square().sum() + target_2.mean(0).square().sum()) / 2
        return {"loss": loss, "spread": spread}

    def chance_loss(self, batch_size: int) -> float:
        """Return 4: both distances between features without relation, whose mean cosine is 0."""
        return 4.0

    def after_step(self, progress: float) -> None:
        """Move the target network."""
        self.average.update(target_momentum(self.config.momentum, progress))


def squared_distance(prediction_ND: torch.Tensor, target_ND: torch.Tensor) -> torch.Tensor:
    """Return the mean of |p - z|² = 2 - 2·cos(p, z) for unit vectors (Grill et al., eq. 2).

    Features are normalised here, in at least float32, under autocast too.
    """
    with torch.autocast(prediction_ND.device.type, enabled=False):
        return (2 - 2 * (unit(prediction_ND) * unit(target_ND)).sum(1)).mean()


def target_momentum(base: float, progress: float) -> float:
    """Return 1 - (1 - base)·(cos(π·progress) + 1) / 2, from `base` to 1 (Grill et al., 3.3)."""
    return 1 - (1 - base) * (math.cos(math.pi * progress) + 1) / 2


def byol_mlp(channels: int, hidden: int, features: int) -> nn.Sequential:
    """Linear, BatchNorm, ReLU, Linear, with biases: projector and predictor (docs/method.md)."""
    return nn.Sequential(
        nn.Linear(channels, hidden),
        SynchronizedBatchNorm(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, features),
    )

"""SimCLR, a baseline of the paper: contrast between both views of the global batch's images."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import Batch, ViewConfig
from maskco_fast.methods.base import Method, RecipeValues
from maskco_fast.methods.instance_contrast import nt_xent
from maskco_fast.networks.batch_norm import SynchronizedBatchNorm
from maskco_fast.networks.collectives import gather_with_gradient, rank_and_size
from maskco_fast.networks.config import ModelConfig
from maskco_fast.networks.encoders import ImageEncoder, initialise
from maskco_fast.networks.resnet import Trunk


@dataclass(frozen=True, kw_only=True)
class SimCLRConfig:
    """SimCLR (docs/method.md). BatchNorm and contrast span the global batch, without groups."""

    temperature: float = 0.1
    """Divides the cosine similarities."""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InvalidInput(f"`temperature` must be greater than 0, got {self.temperature}.")


class SimCLR(Method):
    """NT-Xent with BatchNorm over the global batch (Chen et al. 2020)."""

    recipe_values: ClassVar = {
        # The warm-up is OpenSelfSup's: 10 ImageNet epochs of 5004 steps.
        "paper": RecipeValues(
            config=SimCLRConfig(),
            optimizer={
                "name": "lars",
                "learning_rate": 0.3,
                "weight_decay": 1e-6,
                "warmup_steps": 50_000,
            },
        ),
        "short": RecipeValues(
            config=SimCLRConfig(),
            optimizer={
                "name": "lars",
                "learning_rate": 8.0,
                "weight_decay": 1e-6,
                "warmup_steps": 10,
            },
        ),
    }

    spans_whole_batch = True

    def __init__(self, config: SimCLRConfig, model: ModelConfig, *, seed: int) -> None:
        super().__init__()
        self.temperature = config.temperature
        self.views = ViewConfig.simclr(model.view_size)
        trunk = Trunk(model.trunk, SynchronizedBatchNorm)
        self.query = ImageEncoder(trunk, simclr_head(trunk.channels, model.features))
        initialise(self.query, torch.Generator().manual_seed(seed))

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return `loss` and `accuracy`: the share of views whose positive beats all negatives."""
        # One pass, so that BatchNorm sees both views together, as in the paper's codebase.
        view_1, view_2 = self.query(torch.cat(batch.views)).chunk(2)
        rank, _ = rank_and_size()
        all_views = gather_with_gradient(view_1), gather_with_gradient(view_2)
        loss, accuracy = nt_xent(
            (view_1, view_2), all_views, first=rank * len(view_1), temperature=self.temperature
        )
        return {"loss": loss, "accuracy": accuracy}

    def chance_loss(self, batch_size: int) -> float:
        """Return ln(2B - 1): ln 511 = 6.24 at a batch of 256."""
        return math.log(2 * batch_size - 1)

    def after_step(self, progress: float) -> None:
        """Do nothing: there is no second network."""


def simclr_head(channels: int, features: int) -> nn.Sequential:
    """Linear, BatchNorm, ReLU, Linear, BatchNorm, without biases (OpenSelfSup; docs/method.md)."""
    return nn.Sequential(
        nn.Linear(channels, channels, bias=False),
        SynchronizedBatchNorm(channels),
        nn.ReLU(inplace=True),
        nn.Linear(channels, features, bias=False),
        SynchronizedBatchNorm(features),
    )

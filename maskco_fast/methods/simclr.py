"""SimCLR, a baseline of the paper: both views of every image of the global batch against each
other."""

import math

import torch
from torch import nn

from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import Batch, ViewConfig
from maskco_fast.methods.base import Method
from maskco_fast.methods.instance_contrast import nt_xent
from maskco_fast.networks.batch_norm import SynchronizedBatchNorm
from maskco_fast.networks.collectives import gather_with_gradient, rank_and_size
from maskco_fast.networks.encoders import ImageEncoder, Trunk, initialise
from maskco_fast.training.config import TrainConfig


class SimCLR(Method):
    """NT-Xent with BatchNorm over the global batch (Chen et al. 2020). The group size plays no
    part."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        if config.accumulate > 1:
            raise InvalidInput(
                f"TrainConfig.accumulate is {config.accumulate}: SimCLR contrasts all images of a step with each "
                "other, which micro-batches would part; leave it at 1, or lower the batch size"
            )
        self.temperature = config.simclr.temperature
        self.views = ViewConfig.simclr(config.model.view_size)
        trunk = Trunk(config.model.trunk, SynchronizedBatchNorm)
        self.query = ImageEncoder(trunk, simclr_head(trunk.channels, config.model.features))
        initialise(self.query, torch.Generator().manual_seed(config.seed))

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """`loss`, and `accuracy`: the share of views whose other view is nearer than all other
        images' views."""
        # One pass, so that BatchNorm sees both views together, as in the paper's codebase.
        view_1, view_2 = self.query(torch.cat(batch.views)).chunk(2)
        rank, _ = rank_and_size()
        everyones = gather_with_gradient(view_1), gather_with_gradient(view_2)
        loss, accuracy = nt_xent(
            (view_1, view_2), everyones, first=rank * len(view_1), temperature=self.temperature
        )
        return {"loss": loss, "accuracy": accuracy}

    def chance_loss(self, batch_size: int) -> float:
        """ln(2B - 1): ln 511 = 6.24 at a batch of 256."""
        return math.log(2 * batch_size - 1)

    def after_step(self) -> None:
        """Nothing: there is no second network."""


def simclr_head(channels: int, features: int) -> nn.Sequential:
    """Linear, BatchNorm, ReLU, Linear, BatchNorm, the linear layers without biases (OpenSelfSup;
    SPEC 2)."""
    return nn.Sequential(
        nn.Linear(channels, channels, bias=False),
        SynchronizedBatchNorm(channels),
        nn.ReLU(inplace=True),
        nn.Linear(channels, features, bias=False),
        SynchronizedBatchNorm(features),
    )

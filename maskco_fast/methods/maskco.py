"""MaskCo: contrastive mask prediction (paper, Algorithm 1)."""

import math

import torch

from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import Batch
from maskco_fast.methods.base import Method
from maskco_fast.methods.region_contrast import group_length, region_info_nce
from maskco_fast.networks.encoders import RegionEncoder, initialise, momentum_copy, momentum_update
from maskco_fast.training.config import TrainConfig


class MaskCo(Method):
    """A region masked in the query view is predicted, and found again among the regions of the
    group's key views."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.config = config.maskco
        self.group_size = config.model.group_size
        self.views = config.maskco.views(config.model.view_size)
        self.query = RegionEncoder(
            config.model,
            mph_blocks=config.maskco.mph_blocks,
            roi_sampling_ratio=config.maskco.roi_sampling_ratio,
            roi_aligned=config.maskco.roi_aligned,
        )
        initialise(self.query, torch.Generator().manual_seed(config.seed))
        self.key = momentum_copy(self.query)

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """`loss`, and `accuracy`: the share of images whose positive is nearer than every negative
        of the group."""
        if batch.masked_box is None or batch.key_boxes is None:
            raise InvalidInput(
                "MaskCo wants batches with boxes: make the loader with views=method.views"
            )
        query_features = self.query(batch.query, batch.masked_box.unsqueeze(1)).squeeze(1)
        with torch.no_grad():
            key_features = self.key(batch.key, batch.key_boxes)
        loss, accuracy = region_info_nce(
            query_features,
            key_features,
            group_size=self.group_size,
            temperature=self.config.temperature,
            negatives=self.config.negatives,
        )
        return {"loss": loss, "accuracy": accuracy}

    def chance_loss(self, batch_size: int) -> float:
        """ln(1 + negatives): ln 497 = 6.21 with 16 negative boxes and groups of 32."""
        own = self.views.boxes - 1
        others = own * (group_length(batch_size, self.group_size) - 1)
        return math.log(
            1 + {"inter": others, "intra": own, "both": others + own}[self.config.negatives]
        )

    def after_step(self) -> None:
        """The key network follows. MoCo does so before the next forward pass, which is the same."""
        momentum_update(self.key, self.query, self.config.momentum)

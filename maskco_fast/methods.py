"""What can be learned: a `Method` turns a batch into a loss, and `METHODS` names those there are.

The trainer knows this interface and no method.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import nn

from maskco_fast.config import TrainConfig
from maskco_fast.contrast import group_length, region_info_nce
from maskco_fast.loaders import Batch, ViewConfig
from maskco_fast.model import RegionEncoder, initialise, momentum_copy, momentum_update


class Method(nn.Module, ABC):
    """A network with its objective. Parameters that require gradients are trained; the rest is the method's affair."""

    views: ViewConfig
    """What the loader must deliver."""

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Named scalars: "loss", with its gradient, and whatever else belongs in the metrics, without."""

    @abstractmethod
    def chance_loss(self, batch_size: int) -> float | None:
        """The loss of guessing, None where there is no such value."""

    @abstractmethod
    def after_step(self) -> None:
        """What follows each optimiser step: a moving average, a queue."""


class MaskCo(Method):
    """Contrastive mask prediction (paper, Algorithm 1)."""

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
        """`loss`, and `accuracy`: the share of images whose positive is nearer than every negative of the group."""
        if batch.masked_box is None or batch.key_boxes is None:
            raise ValueError("MaskCo wants batches with boxes: make the loader with views=method.views")
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
        return math.log(1 + {"inter": others, "intra": own, "both": others + own}[self.config.negatives])

    def after_step(self) -> None:
        """The key network follows. MoCo does so before the next forward pass, which is the same."""
        momentum_update(self.key, self.query, self.config.momentum)


METHODS: Mapping[str, Callable[[TrainConfig], Method]] = {"maskco": MaskCo}


def make_method(config: TrainConfig) -> Method:
    """The configured method, its weights drawn from `config.seed`; torch's global generator stays as it was.

    ValueError for a name that is not in `METHODS`.
    """
    if config.method not in METHODS:
        raise ValueError(f"method is {config.method!r}; there is {', '.join(sorted(METHODS))}")
    with torch.random.fork_rng(devices=[]):  # torch's layers draw weights when made, before `initialise` does
        return METHODS[config.method](config).train()

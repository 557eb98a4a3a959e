"""What the trainer knows of a method: a network with an objective, and the state that goes with it."""

from abc import ABC, abstractmethod

import torch
from torch import nn

from maskco_fast.loaders import Batch, ViewConfig


class Method(nn.Module, ABC):
    """A network with its objective. Parameters that require gradients are trained; the rest is the
    method's affair.

    Whatever a later step depends on is a parameter or a buffer, the same on every process, so that
    the state dict of one process is the checkpoint of all. `query` is the network that is trained,
    and `query.trunk` what is kept of it.
    """

    views: ViewConfig
    """What the loader must deliver."""

    def prepare(self, samples: int) -> None:
        """Called once, before anything else: the loader's `Batch.index` will be 0..samples - 1."""

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Named scalars: "loss", with its gradient, and whatever else belongs in the metrics,
        without.

        `batch` is this process's share of the step's images, in the global batch's order.
        """

    @abstractmethod
    def chance_loss(self, batch_size: int) -> float | None:
        """The loss of guessing at a global batch of that size, None where there is no such value."""

    @abstractmethod
    def after_step(self) -> None:
        """What follows each optimiser step: a moving average, a queue."""

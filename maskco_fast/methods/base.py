"""The interface between a method and the trainer, and the recipe values that a method provides."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from maskco_fast.loaders import Batch, ViewConfig
from maskco_fast.networks.encoders import MovingAverage


@dataclass(frozen=True, kw_only=True)
class RecipeValues:
    """The values of a recipe that depend on the method; the recipe itself sets all others."""

    config: Any
    """The method's own config."""
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `OptimizerConfig` that differ from its defaults."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `ModelConfig` that differ from the recipe's."""


class Method(nn.Module, ABC):
    """Networks with a pre-training objective. Parameters that require gradients are trained.

    Everything that a later step depends on must be a parameter or a buffer, equal on all processes:
    rank 0's state dict is the checkpoint.
    """

    spans_whole_batch: ClassVar[bool] = False
    """Whether the loss or BatchNorm spans all images of a step, which rules out gradient
    accumulation."""

    scheduled: ClassVar[bool] = False
    """Whether `after_step` reads `progress`, so that a CUDA graph cannot repeat it."""

    recipe_values: ClassVar[Mapping[str, RecipeValues]]
    """The method's values for the "paper" recipe and for the "short" ones (see
    `training/recipes.py`)."""

    query: nn.Module
    """The trained network; `query.trunk` is the part that is kept after pre-training."""
    views: ViewConfig
    """The views and boxes that the loader must deliver."""

    def prepare(self, samples: int) -> None:
        """Allocate state per sample; called once, first. `Batch.index` is in 0..samples - 1."""

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return named scalars: "loss", with its gradient, and further metrics, without.

        `batch`: this process's share of the step's images, in the order of the global batch.
        """

    @abstractmethod
    def chance_loss(self, batch_size: int) -> float | None:
        """Return the loss of guessing at a global batch of `batch_size`, or None if undefined."""

    @abstractmethod
    def after_step(self, progress: float) -> None:
        """Update state after each optimiser step, such as a moving average or a queue.

        `progress`: the step's number, from 0, over the number of the run's steps, in [0, 1): the
        position in a schedule, the same as the learning rate's. A resumed run continues it.
        """

    @functools.cached_property
    def average(self) -> MovingAverage:
        """The moving average of `query` that is `key`, for methods that have one."""
        return MovingAverage(self.get_submodule("key"), self.query)

    def head_parameters(self) -> list[nn.Parameter]:
        """Return the trained parameters outside `query.trunk`."""
        trunk = {id(parameter) for parameter in self.query.get_submodule("trunk").parameters()}
        return [
            parameter
            for parameter in self.parameters()
            if parameter.requires_grad and id(parameter) not in trunk
        ]

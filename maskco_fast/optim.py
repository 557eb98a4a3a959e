"""The optimiser and its rate."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from maskco_fast.config import OptimizerConfig

REFERENCE_BATCH = 256
"""The total batch that `OptimizerConfig.learning_rate` is given for (SPEC 1)."""


def learning_rate(config: OptimizerConfig, batch_size: int, step: int, steps: int) -> float:
    """The rate of step 0..steps - 1: linear in the total batch, a cosine to zero, no warm-up (SPEC 1)."""
    return config.learning_rate * batch_size / REFERENCE_BATCH * 0.5 * (1 + math.cos(math.pi * step / steps))


def make_optimizer(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.SGD:
    """SGD with momentum and weight decay on every parameter that requires a gradient; the rate is set a step.

    Fused: one kernel for all parameters, on the CPU as on CUDA.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return torch.optim.SGD(
        trained,
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        fused=True,
    )

"""The optimiser and its rate."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.training.config import OptimizerConfig

REFERENCE_BATCH = 256
"""The total batch that `OptimizerConfig.learning_rate` is given for (SPEC 1)."""


def learning_rate(config: OptimizerConfig, batch_size: int, step: int, steps: int) -> float:
    """The rate of step 0..steps - 1: linear in the total batch, a cosine to zero, times the ramp of
    the warm-up."""
    ramp = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    peak = config.learning_rate * batch_size / REFERENCE_BATCH
    return peak * ramp * 0.5 * (1 + math.cos(math.pi * step / steps))


def make_optimizer(
    parameters: Iterable[nn.Parameter], config: OptimizerConfig
) -> torch.optim.Optimizer:
    """The configured optimiser of every parameter that requires a gradient; the rate is set a step.

    Fused: SGD is one kernel for all parameters, on the CPU as on CUDA, LARS a few.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if config.name == "lars":
        return LARS(
            trained,
            learning_rate=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            trust=config.trust,
        )
    return torch.optim.SGD(
        trained,
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        fused=True,
    )


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose steps are in proportion to each weight's norm (You et al. 2017,
    Algorithm 1).

    v <- momentum·v + rate·local·(g + decay·w); w <- w - v; local = trust·|w| / (|g| + decay·|w|), 1
    where w or g is 0. Biases and BatchNorm's scales, the parameters of one dimension, have local =
    1 and no decay, as in SimCLR.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        learning_rate: float,
        momentum: float,
        weight_decay: float,
        trust: float,
    ) -> None:
        parameters = list(parameters)
        weights = [parameter for parameter in parameters if parameter.dim() > 1]
        others = [parameter for parameter in parameters if parameter.dim() <= 1]
        groups = [
            {"params": weights, "weight_decay": weight_decay, "trust": trust},
            {"params": others, "weight_decay": 0.0, "trust": None},
        ]
        super().__init__(
            [group for group in groups if group["params"]],
            {"lr": learning_rate, "momentum": momentum},
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step; ValueError for a closure, which LARS has no use for."""
        if closure is not None:
            raise InvalidInput("LARS takes no closure")
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._step(parameters, [parameter.grad for parameter in parameters], group)

    def _step(
        self, parameters: list[torch.Tensor], gradients: list[torch.Tensor], group: dict
    ) -> None:
        """Without a look at any number, which on CUDA would wait for the device."""
        decayed = torch._foreach_add(gradients, parameters, alpha=group["weight_decay"])
        if group["trust"] is not None:
            weight_P = torch.stack(torch._foreach_norm(parameters))
            gradient_P = torch.stack(torch._foreach_norm(gradients))
            local_P = group["trust"] * weight_P / (gradient_P + group["weight_decay"] * weight_P)
            local_P = torch.where((weight_P > 0) & (gradient_P > 0), local_P, 1.0)
            torch._foreach_mul_(decayed, list(local_P.unbind()))
        speeds = [
            self.state[parameter].setdefault("speed", torch.zeros_like(parameter))
            for parameter in parameters
        ]
        torch._foreach_mul_(speeds, group["momentum"])
        torch._foreach_add_(speeds, decayed, alpha=group["lr"])
        torch._foreach_sub_(parameters, speeds)

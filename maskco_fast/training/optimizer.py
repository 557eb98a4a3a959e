"""Optimiser and learning rate: SGD or LARS, a warm-up, and a cosine or steps."""

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from maskco_fast.kernels.errors import InvalidInput

REFERENCE_BATCH = 256
"""Total batch size that `OptimizerConfig.learning_rate` refers to (docs/method.md)."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """SGD or LARS with a learning rate that is updated every step (docs/method.md)."""

    name: Literal["sgd", "lars"] = "sgd"
    """lars (You et al. 2017) scales each weight's step by norms, and excludes biases and BatchNorm
    from weight decay."""
    learning_rate: float = 0.03
    """Initial rate for a total batch of 256; scaled linearly with the batch."""
    momentum: float = 0.9
    """Momentum of the gradients."""
    weight_decay: float = 1e-4
    """On all parameters; with lars on weights only. MoCo v2's value; the paper prints 1e-3
    (docs/method.md)."""
    head_weight_decay: float | None = None
    """On all parameters outside the trunk, which pre-training throws away; sgd only. None: as
    `weight_decay`."""
    decay_biases: bool = True
    """Whether weight decay covers biases and BatchNorm's parameters; sgd only."""
    nesterov: bool = False
    """Nesterov's momentum; sgd only."""
    schedule: Literal["cosine", "step"] = "cosine"
    """cosine falls to zero over the run; step multiplies the rate by `drop` at each milestone."""
    milestones: tuple[float, ...] = (30 / 70, 50 / 70)
    """Shares of the run's steps after which the step schedule lowers the rate, in ascending order
    (OpenSelfSup: epochs 30 and 50 of 70)."""
    drop: float = 0.1
    """Factor of the rate at each milestone."""
    warmup_steps: int = 0
    """Steps over which the rate rises linearly to its schedule."""
    trust: float = 0.001
    """LARS's trust coefficient: the norm of a step over its weight's, at a rate of 1."""

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise InvalidInput(f"`warmup_steps` must be at least 0, got {self.warmup_steps}.")
        if not self.trust > 0:
            raise InvalidInput(f"`trust` must be greater than 0, got {self.trust}.")
        if not self.learning_rate > 0:
            raise InvalidInput(f"`learning_rate` must be greater than 0, got {self.learning_rate}.")
        if not 0 <= self.momentum < 1:
            raise InvalidInput(f"`momentum` must be in [0, 1), got {self.momentum}.")
        if self.weight_decay < 0:
            raise InvalidInput(f"`weight_decay` must be at least 0, got {self.weight_decay}.")
        if self.head_weight_decay is not None and self.head_weight_decay < 0:
            raise InvalidInput(
                f"`head_weight_decay` must be at least 0 or None, got {self.head_weight_decay}."
            )
        if self.head_weight_decay is not None and self.name == "lars":
            raise InvalidInput(
                f"`head_weight_decay` must be None for lars, got {self.head_weight_decay}: lars "
                "has one decay for all weights. Change --optimizer.weight-decay."
            )
        ends = (0.0, *self.milestones, 1.0)
        if any(later <= earlier for earlier, later in itertools.pairwise(ends)):
            raise InvalidInput(
                "`milestones` must be shares of the run between 0 and 1 in ascending order, "
                f"got {self.milestones}."
            )
        if not 0 < self.drop <= 1:
            raise InvalidInput(f"`drop` must be in (0, 1], got {self.drop}.")


def learning_rate(config: OptimizerConfig, batch_size: int, step: int, steps: int) -> float:
    """Return the rate of step 0..steps - 1: linear in the total batch, warm-up times schedule."""
    ramp = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    peak = config.learning_rate * batch_size / REFERENCE_BATCH
    if config.schedule == "step":
        passed = sum(step / steps >= milestone for milestone in config.milestones)
        return peak * ramp * config.drop**passed
    return peak * ramp * 0.5 * (1 + math.cos(math.pi * step / steps))


class LearningRate:
    """The rate of all of an optimiser's parameter groups, as a number or as a tensor.

    A tensor keeps its address from step to step, so that a graph of the step reads each step's
    rate; setting it queues one small kernel and does not wait.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, tensor: torch.Tensor | None) -> None:
        """`tensor`: a float32 scalar on the parameters' device; None for a number."""
        self._optimizer = optimizer
        self._tensor = tensor
        self._rate: float | None = None

    def set(self, rate: float) -> None:
        """Set the rate of the next step."""
        self._rate = rate
        if self._tensor is not None:
            self._tensor.fill_(rate)
        for group in self._optimizer.param_groups:
            group["lr"] = rate if self._tensor is None else self._tensor

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state, the rate in it a number, the same on every device."""
        state = self._optimizer.state_dict()
        if self._rate is not None:
            state["param_groups"] = [{**group, "lr": self._rate} for group in state["param_groups"]]
        return state


def make_optimizer(
    parameters: Iterable[nn.Parameter],
    config: OptimizerConfig,
    *,
    heads: Iterable[nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """Return the configured optimiser of all parameters that require gradients.

    `heads`: those of `parameters` whose weight decay is `config.head_weight_decay`, if that is set.
    The trainer sets the rate at every step. Both are fused: SGD is one kernel for all parameters,
    on the CPU as on CUDA; LARS is a few.
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
    own = {id(parameter) for parameter in heads}
    groups: dict[float, list[nn.Parameter]] = {}  # by weight decay
    for parameter in trained:
        decay = config.weight_decay
        if id(parameter) in own and config.head_weight_decay is not None:
            decay = config.head_weight_decay
        if parameter.dim() <= 1 and not config.decay_biases:
            decay = 0.0
        groups.setdefault(decay, []).append(parameter)
    optimizer = torch.optim.SGD(
        [{"params": group, "weight_decay": decay} for decay, group in groups.items()],
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=config.nesterov,
        fused=True,
    )
    if config.momentum:
        # torch allocates the sums in the first step and leaves them as they are if the scaler
        # skips it: the second step would then add whatever the memory held.
        for parameter in trained:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


class LARS(torch.optim.Optimizer):
    """SGD with momentum and steps proportional to each weight's norm (You et al. 2017, Alg. 1).

    v <- momentum·v + rate·local·(g + decay·w); w <- w - v; local = trust·|w| / (|g| + decay·|w|),
    or 1 where w or g is 0. Parameters with at most one dimension, biases and BatchNorm's, have
    local = 1 and no decay, as in SimCLR.
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
        """Update all parameters that have gradients. InvalidInput for a closure."""
        if closure is not None:
            raise InvalidInput("`closure` must be None for LARS, got a function.")
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._step(parameters, [parameter.grad for parameter in parameters], group)

    def _step(
        self, parameters: list[torch.Tensor], gradients: list[torch.Tensor], group: dict
    ) -> None:
        """Update one parameter group. Reads no value, so that CUDA never synchronises.

        P: the group's parameters.
        """
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
        if isinstance(group["lr"], torch.Tensor):  # as `alpha` it would be read by the host
            torch._foreach_mul_(decayed, group["lr"])
            torch._foreach_add_(speeds, decayed)
        else:
            torch._foreach_add_(speeds, decayed, alpha=group["lr"])
        torch._foreach_sub_(parameters, speeds)

"""NPID, a baseline of the paper: instance discrimination with a memory bank (Wu et al. 2018)."""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import nn

from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import Batch, ViewConfig
from maskco_fast.methods.base import Method, RecipeValues
from maskco_fast.methods.counter_random import random_integers
from maskco_fast.methods.instance_contrast import noise_contrastive, noise_softmax, unit
from maskco_fast.networks.batch_norm import GroupBatchNorm2d
from maskco_fast.networks.collectives import gather, rank_and_size
from maskco_fast.networks.config import ModelConfig
from maskco_fast.networks.encoders import ImageEncoder, initialise
from maskco_fast.networks.resnet import Trunk


@dataclass(frozen=True, kw_only=True)
class NPIDConfig:
    """NPID (docs/method.md). The memory bank holds one float32 feature per image of the shards."""

    objective: Literal["nce", "softmax"] = "nce"
    """nce: noise-contrastive estimation (Wu et al., eq. 7). softmax: cross entropy over the same
    entries, as in OpenSelfSup, the paper's codebase (with 65536 negatives)."""
    negatives: int = 4096
    """Bank entries that an image is contrasted with, drawn for each image and step (Wu et al.:
    4096)."""
    temperature: float = 0.07
    """Divides the cosine similarities."""
    bank_momentum: float = 0.5
    """Weight of an entry's own value when its image is seen (OpenSelfSup and the authors' code)."""

    def __post_init__(self) -> None:
        if self.negatives < 1:
            raise InvalidInput(f"`negatives` must be at least 1, got {self.negatives}.")
        if not self.temperature > 0:
            raise InvalidInput(f"`temperature` must be greater than 0, got {self.temperature}.")
        if not 0 <= self.bank_momentum < 1:
            raise InvalidInput(f"`bank_momentum` must be in [0, 1), got {self.bank_momentum}.")


class NPID(Method):
    """Find an image's own bank entry among those of random other images (Wu et al. 2018)."""

    recipe_values: ClassVar = {
        # The authors divide the rate by 10 at fixed epochs; here it follows the others' cosine.
        "paper": RecipeValues(config=NPIDConfig()),
        # Softmax: with NCE's fixed partition function the loss on a few thousand images rises to
        # hundreds in the first epochs, while the bank's features are still much alike. For the
        # learning rate see MaskCo's.
        "short": RecipeValues(
            config=NPIDConfig(objective="softmax", negatives=1024),
            optimizer={"learning_rate": 0.24},
        ),
    }

    bank: torch.Tensor
    """(samples, D) float32, norm 1, by `Batch.index`: each image's features of earlier epochs;
    noise at first."""
    steps: torch.Tensor
    """Scalar int64: optimiser steps done, from which each step's noise is drawn."""

    def __init__(self, config: NPIDConfig, model: ModelConfig, *, seed: int) -> None:
        super().__init__()
        self.config = config
        self.seed = seed
        self.features = model.features
        self.views = ViewConfig.npid(model.view_size)
        trunk = Trunk(model.trunk, partial(GroupBatchNorm2d, group_size=model.group_size))
        self.query = ImageEncoder(trunk, nn.Linear(trunk.channels, self.features))
        initialise(self.query, torch.Generator().manual_seed(seed))
        self.register_buffer("bank", torch.empty(0, self.features))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._new: list[tuple[torch.Tensor, torch.Tensor]] = []  # (index, features) per micro-batch

    def prepare(self, samples: int) -> None:
        """Allocate the bank of `samples` entries, filled with noise of norm 1."""
        generator = torch.Generator().manual_seed(self.seed)
        self.bank = unit(torch.randn(samples, self.features, generator=generator)).to(self.bank)

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return `loss` and `accuracy`: the share of images whose own entry beats all noise."""
        if not len(self.bank):
            raise InvalidInput(
                "NPID's memory bank has no entries: call prepare(samples) before the first batch."
            )
        features = self.query(batch.query)
        own = self.bank[batch.index]
        noise = self.bank[self._noise(len(batch))]
        temperature = self.config.temperature
        if self.config.objective == "softmax":
            loss, accuracy = noise_softmax(features, own, noise, temperature=temperature)
        else:
            loss, accuracy = noise_contrastive(
                features,
                own,
                noise,
                samples=len(self.bank),
                temperature=temperature,
                partition=len(self.bank) * mean_exponential(1 / temperature, self.features),
            )
        self._new.append((gather(batch.index), gather(unit(features.detach()))))
        return {"loss": loss, "accuracy": accuracy}

    def _noise(self, count: int) -> torch.Tensor:
        """Return (count, negatives) int64 bank positions, uniform with replacement."""
        rank, _ = rank_and_size()
        size = count * self.config.negatives
        # Positions in the global batch, so that the noise is independent of the process count.
        positions = torch.arange(rank * size, (rank + 1) * size, device=self.steps.device)
        integers = random_integers(self.seed, self.steps, positions)
        return (integers % len(self.bank)).view(count, -1)

    def chance_loss(self, batch_size: int) -> float:
        """Return ln(1 + M) for the softmax and ln(1 + M) + M·ln(1 + 1/M), about 1 more, for NCE."""
        noise = self.config.negatives
        return math.log(1 + noise) + (
            noise * math.log1p(1 / noise) if self.config.objective == "nce" else 0
        )

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Average the step's features of all processes into the bank; entries keep norm 1."""
        for index, features in self._new:
            moved = self.bank[index].lerp(
                features.to(self.bank.dtype), 1 - self.config.bank_momentum
            )
            self.bank.index_copy_(0, index, unit(moved).to(self.bank.dtype))
        self._new.clear()
        self.steps.add_(1)


def mean_exponential(sharpness: float, dimension: int) -> float:
    """Return the mean of exp(sharpness · cosine) over uniform directions: the initial Z / n.

    NPID treats Z, the partition function, as a constant estimated from the first batches (Wu et
    al., 3.2). The bank is uniform on the sphere then, so the expectation of that estimate is known:
    0F1(; D/2; sharpness² / 4), summed here as a series.
    """
    term = total = 1.0
    for order in range(1, 1000):
        term *= sharpness**2 / 4 / (order * (dimension / 2 + order - 1))
        total += term
        if term < 1e-16 * total:
            break
    return total

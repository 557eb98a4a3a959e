"""NPID, a baseline of the paper: every image is a class of its own, kept in a memory bank."""

import math

import torch
from torch import nn

from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import Batch, ViewConfig
from maskco_fast.methods.base import Method
from maskco_fast.methods.draws import draws
from maskco_fast.methods.instance_contrast import noise_contrastive, noise_softmax, unit
from maskco_fast.networks.batch_norm import GroupBatchNorm2d
from maskco_fast.networks.collectives import gather, rank_and_size
from maskco_fast.networks.encoders import ImageEncoder, Trunk, initialise
from maskco_fast.training.config import TrainConfig


class NPID(Method):
    """An image's feature finds its own entry of the bank among those of random other images (Wu et
    al. 2018)."""

    bank: torch.Tensor
    """(samples, D) float32, norm 1, by `Batch.index`: each image's features of earlier epochs;
    noise at first."""
    steps: torch.Tensor
    """Scalar int64: optimiser steps done, from which each step's noise is drawn."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.config = config.npid
        self.seed = config.seed
        self.features = config.model.features
        self.views = ViewConfig.npid(config.model.view_size)
        trunk = Trunk(
            config.model.trunk,
            lambda channels: GroupBatchNorm2d(channels, group_size=config.model.group_size),
        )
        self.query = ImageEncoder(trunk, nn.Linear(trunk.channels, self.features))
        initialise(self.query, torch.Generator().manual_seed(config.seed))
        self.register_buffer("bank", torch.empty(0, self.features))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._new: list[tuple[torch.Tensor, torch.Tensor]] = []

    def prepare(self, samples: int) -> None:
        """Make the bank."""
        generator = torch.Generator().manual_seed(self.seed)
        self.bank = unit(torch.randn(samples, self.features, generator=generator)).to(self.bank)

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """`loss`, and `accuracy`: the share of images whose own entry is nearer than all of the
        noise."""
        if not len(self.bank):
            raise InvalidInput(
                "NPID's bank has no entries: call prepare(samples) before the first batch"
            )
        features = self.query(batch.query)
        own, noise = self.bank[batch.index], self.bank[self._noise(len(batch))]
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
        """(count, negatives) int64 places in the bank, uniform, with replacement."""
        rank, _ = rank_and_size()
        first = rank * count * self.config.negatives
        places = torch.arange(
            first, first + count * self.config.negatives, device=self.steps.device
        )
        return (draws(self.seed, self.steps, places) % len(self.bank)).view(count, -1)

    def chance_loss(self, batch_size: int) -> float:
        """With M noise samples: ln(1 + M) for the softmax, ln(1 + M) + M·ln(1 + 1/M), about 1 more,
        for NCE."""
        noise = self.config.negatives
        return math.log(1 + noise) + (
            noise * math.log1p(1 / noise) if self.config.objective == "nce" else 0
        )

    @torch.no_grad()
    def after_step(self) -> None:
        """The images' entries move towards the step's features, those of all processes, and back to
        norm 1."""
        for index, features in self._new:
            moved = self.bank[index].lerp(
                features.to(self.bank.dtype), 1 - self.config.bank_momentum
            )
            self.bank.index_copy_(0, index, unit(moved).to(self.bank.dtype))
        self._new.clear()
        self.steps.add_(1)


def mean_exponential(sharpness: float, dimension: int) -> float:
    """The mean of exp(sharpness · cosine) between a direction and a uniform one of the sphere: Z /
    n at the start.

    NPID takes Z, the partition function, as a constant that the first batches estimate (Wu et al.,
    3.2). The bank is uniform then, so the expectation of that estimate is known: the series of
    0F1(; D/2; sharpness² / 4).
    """
    term = total = 1.0
    for order in range(1, 1000):
        term *= sharpness**2 / 4 / (order * (dimension / 2 + order - 1))
        total += term
        if term < 1e-16 * total:
            break
    return total

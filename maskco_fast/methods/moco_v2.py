"""MoCo v2, the paper's first baseline: a momentum encoder with shuffled BatchNorm, and a queue of
keys."""

import math

import torch
from torch import nn

from maskco_fast.loaders import Batch, ViewConfig
from maskco_fast.methods.base import Method
from maskco_fast.methods.draws import permutation
from maskco_fast.methods.instance_contrast import queue_info_nce, unit
from maskco_fast.networks.batch_norm import GroupBatchNorm2d
from maskco_fast.networks.collectives import gather, rank_and_size
from maskco_fast.networks.encoders import (
    ImageEncoder,
    Trunk,
    initialise,
    mlp_head,
    momentum_copy,
    momentum_update,
)
from maskco_fast.training.config import TrainConfig


class MoCoV2(Method):
    """Each image's query view finds its key view among the keys of earlier steps (He et al. 2020,
    Chen et al. 2020)."""

    queue: torch.Tensor
    """(K, D) float32: keys of norm 1, the oldest at `pointer`; noise at first, as in the public
    code."""
    pointer: torch.Tensor
    """Scalar int64: where the next keys go."""
    steps: torch.Tensor
    """Scalar int64: optimiser steps done, from which each step's shuffle is drawn."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.config = config.moco_v2
        self.seed = config.seed
        self.views = ViewConfig.moco_v2(config.model.view_size)
        trunk = Trunk(
            config.model.trunk,
            lambda channels: GroupBatchNorm2d(channels, group_size=config.model.group_size),
        )
        self.query: nn.Module = ImageEncoder(trunk, mlp_head(trunk.channels, config.model.features))
        generator = torch.Generator().manual_seed(config.seed)
        initialise(self.query, generator)
        self.key = momentum_copy(self.query)
        self.register_buffer(
            "queue",
            unit(torch.randn(self.config.queue, config.model.features, generator=generator)),
        )
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._new_keys: list[torch.Tensor] = []

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """`loss`, and `accuracy`: the share of images whose key is nearer than the whole queue."""
        queries = self.query(batch.query)
        keys = self._keys(batch.key)
        loss, accuracy = queue_info_nce(
            queries, keys, self.queue, temperature=self.config.temperature
        )
        self._new_keys.append(gather(keys))
        return {"loss": loss, "accuracy": accuracy}

    @torch.no_grad()
    def _keys(self, images: torch.Tensor) -> torch.Tensor:
        """(N, D) keys of norm 1, from BatchNorm groups that are not those of the queries.

        Shuffle-BN (He et al., 3.3): a query and its key that share a group could tell each other by
        its statistics. The images of all processes are exchanged, encoded in a random order, and
        their keys brought back; with gradient accumulation, those of one micro-batch.
        """
        rank, size = rank_and_size()
        count = len(images)
        order = permutation(self.seed, self.steps, size * count)
        own = slice(rank * count, (rank + 1) * count)
        shuffled = gather(unit(self.key(gather(images)[order[own]])))
        return torch.empty_like(shuffled).index_copy_(0, order, shuffled)[own]

    def chance_loss(self, batch_size: int) -> float:
        """ln(1 + K): ln 65 537 = 11.09."""
        return math.log(1 + self.config.queue)

    @torch.no_grad()
    def after_step(self) -> None:
        """The key network follows, and the step's keys of all processes take the places of the
        oldest."""
        momentum_update(self.key, self.query, self.config.momentum)
        for keys in self._new_keys:
            keys = keys[-len(self.queue) :]
            places = (self.pointer + torch.arange(len(keys), device=keys.device)) % len(self.queue)
            self.queue.index_copy_(0, places, keys.to(self.queue.dtype))
            self.pointer.add_(len(keys)).remainder_(len(self.queue))
        self._new_keys.clear()
        self.steps.add_(1)

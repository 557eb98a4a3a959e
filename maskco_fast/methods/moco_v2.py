"""MoCo v2, a baseline of the paper: a momentum encoder with shuffled BatchNorm and a key queue."""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch

from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import Batch, ViewConfig
from maskco_fast.methods.base import Method, RecipeValues
from maskco_fast.methods.counter_random import random_permutation
from maskco_fast.methods.instance_contrast import queue_info_nce, unit
from maskco_fast.networks.batch_norm import GroupBatchNorm2d
from maskco_fast.networks.collectives import gather, rank_and_size
from maskco_fast.networks.config import ModelConfig
from maskco_fast.networks.encoders import (
    ImageEncoder,
    initialise,
    mlp_head,
    momentum_copy,
)
from maskco_fast.networks.resnet import Trunk


@dataclass(frozen=True, kw_only=True)
class MoCoV2Config:
    """MoCo v2 (docs/method.md). Shuffled BatchNorm takes a batch of several groups to matter."""

    queue: int = 65_536
    """Keys that a query is contrasted with."""
    temperature: float = 0.2
    """Divides the cosine similarities."""
    momentum: float = 0.999
    """Weight of the key network's own parameters in each moving-average step."""

    def __post_init__(self) -> None:
        if self.queue < 1:
            raise InvalidInput(f"`queue` must be at least 1, got {self.queue}.")
        if not self.temperature > 0:
            raise InvalidInput(f"`temperature` must be greater than 0, got {self.temperature}.")
        if not 0 <= self.momentum <= 1:
            raise InvalidInput(f"`momentum` must be in [0, 1], got {self.momentum}.")


class MoCoV2(Method):
    """Find an image's key view among keys of earlier steps (He et al. 2020, Chen et al. 2020)."""

    recipe_values: ClassVar = {
        "paper": RecipeValues(config=MoCoV2Config()),
        # A queue that a short run fills, and several groups per batch for the shuffle. The queue
        # spans 32 steps of 32 images, over which keys must stay comparable: with MaskCo's momentum
        # of 0.95 the k-NN accuracy on the demo set falls to 43 %, that of an untrained trunk being
        # 51 %; with 0.99 it is 55 %. For the learning rate see MaskCo's.
        "short": RecipeValues(
            config=MoCoV2Config(queue=1024, momentum=0.99),
            optimizer={"learning_rate": 0.24},
            model={"group_size": 8},
        ),
    }

    queue: torch.Tensor
    """(K, D) float32: keys of norm 1, the oldest at `pointer`; noise at first, as in the public
    code."""
    pointer: torch.Tensor
    """Scalar int64: the position of the next keys."""
    steps: torch.Tensor
    """Scalar int64: optimiser steps done, from which each step's shuffle is drawn."""

    def __init__(self, config: MoCoV2Config, model: ModelConfig, *, seed: int) -> None:
        super().__init__()
        self.config = config
        self.seed = seed
        self.views = ViewConfig.moco_v2(model.view_size)
        trunk = Trunk(model.trunk, partial(GroupBatchNorm2d, group_size=model.group_size))
        self.query = ImageEncoder(trunk, mlp_head(trunk.channels, model.features))
        generator = torch.Generator().manual_seed(seed)
        initialise(self.query, generator)
        self.key = momentum_copy(self.query)
        noise = torch.randn(config.queue, model.features, generator=generator)
        self.register_buffer("queue", unit(noise))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._new_keys: list[torch.Tensor] = []

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return `loss` and `accuracy`: the share of images whose key beats the whole queue."""
        queries = self.query(batch.query)
        keys = self._keys(batch.key)
        loss, accuracy = queue_info_nce(
            queries, keys, self.queue, temperature=self.config.temperature
        )
        self._new_keys.append(gather(keys))
        return {"loss": loss, "accuracy": accuracy}

    @torch.no_grad()
    def _keys(self, images: torch.Tensor) -> torch.Tensor:
        """Return keys (N, D) of norm 1, from other BatchNorm groups than the queries'.

        Shuffle-BN (He et al., 3.3): a query and key normalised in the same group could recognise
        each other by its statistics. The images of all processes are gathered, encoded in a random
        order, and their keys brought back; with gradient accumulation, those of one micro-batch.
        """
        rank, size = rank_and_size()
        count = len(images)
        order = random_permutation(self.seed, self.steps, size * count)
        own = slice(rank * count, (rank + 1) * count)
        shuffled = gather(unit(self.key(gather(images)[order[own]])))
        return torch.empty_like(shuffled).index_copy_(0, order, shuffled)[own]

    def chance_loss(self, batch_size: int) -> float:
        """Return ln(1 + K): ln 65 537 = 11.09."""
        return math.log(1 + self.config.queue)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Move the key network, and replace the oldest keys by the step's, of all processes."""
        self.average.update(self.config.momentum)
        for keys in self._new_keys:
            keys = keys[-len(self.queue) :]  # a batch may be longer than the queue
            places = (self.pointer + torch.arange(len(keys), device=keys.device)) % len(self.queue)
            self.queue.index_copy_(0, places, keys.to(self.queue.dtype))
            self.pointer.add_(len(keys)).remainder_(len(self.queue))
        self._new_keys.clear()
        self.steps.add_(1)

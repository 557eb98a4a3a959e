"""BatchNorm's running statistics as means over many batches, before a test ("precise BN")."""

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

Item = TypeVar("Item")


@torch.no_grad()
def precise_batch_norm(
    network: nn.Module, batches: Iterable[Item], forward: Callable[[Item], object]
) -> None:
    """Set the running means and variances to their means over `batches`.

    `forward` runs the network on a batch, in train mode. The statistics move by 1/k at batch k,
    which makes them the mean of the batches' own (Detectron2's PreciseBN). Leaves the network in
    train mode; without batches nothing changes.
    """
    network.train()
    layers = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    try:
        for number, batch in enumerate(batches, 1):
            for layer in layers:
                layer.momentum = 1 / number
            forward(batch)
    finally:
        for layer, momentum in zip(layers, momenta):
            layer.momentum = momentum

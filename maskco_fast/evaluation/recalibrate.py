"""Recomputes BatchNorm's running statistics over clean images.

Those of a pre-training run come from augmented views, and for MaskCo from masked ones, which
differ from the images of an evaluation (docs/method.md).
"""

import itertools

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import Batch, Loader
from maskco_fast.networks.batch_norm import average_statistics
from maskco_fast.training.devices import Precision, autocast
from maskco_fast.training.distributed import World, average_running_statistics


@torch.no_grad()
def recalibrate(
    network: nn.Module,
    loader: Loader,
    precision: Precision,
    *,
    images: int,
    world: World | None = None,
) -> int:
    """Set the running statistics to their mean over whole batches; returns the images used.

    Uses at most `images` images of all ranks, at least one batch of each; the loader must drop
    short batches, since every batch counts alike. The network stays in eval mode. InvalidInput for
    a loader without a whole batch.
    """
    world = world if world is not None else World()
    device = torch.device(loader.config.device)
    layers = [layer for layer in network.modules() if isinstance(layer, _BatchNorm)]
    batches = min(len(loader), max(1, images // (loader.batch_size * world.size)))
    if batches == 0:
        raise InvalidInput(
            f"`recalibrate` needs a batch of {loader.batch_size} images on each process, got "
            f"{len(loader.dataset)} images in all. Lower --batch-size."
        )
    for layer in layers:
        layer.reset_running_stats()
        layer.train()

    def forward(batch: Batch) -> None:
        with autocast(device, precision):
            network(batch.views[0])

    average_statistics(network, itertools.islice(loader, batches), forward)
    for layer in layers:
        layer.eval()
    if world.size > 1:
        average_running_statistics(network)
    return batches * loader.batch_size * world.size

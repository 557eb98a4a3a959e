"""Recomputes BatchNorm's running statistics over clean images.

Those of a pre-training run come from augmented views, and for MaskCo from masked ones, which
differ from the images of an evaluation (docs/method.md).
"""

import itertools

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import Loader
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
    batches = min(len(loader), max(1, images // (loader.batch_size * world.size)))
    if batches == 0:
        raise InvalidInput(
            f"`recalibrate` needs a batch of {loader.batch_size} images on each process, got "
            f"{len(loader.dataset)} images in all. Lower --batch-size."
        )
    with autocast(device, precision):
        update_bn((batch.views[0] for batch in itertools.islice(loader, batches)), network)
    if world.size > 1:
        average_running_statistics(network)
    return batches * loader.batch_size * world.size

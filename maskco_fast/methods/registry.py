"""What can be learned: `METHODS` names the methods that there are."""

from collections.abc import Callable, Mapping

import torch

from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.methods.base import Method
from maskco_fast.methods.maskco import MaskCo
from maskco_fast.methods.moco_v2 import MoCoV2
from maskco_fast.methods.npid import NPID
from maskco_fast.methods.simclr import SimCLR
from maskco_fast.training.config import TrainConfig

METHODS: Mapping[str, Callable[[TrainConfig], Method]] = {
    "maskco": MaskCo,
    "moco_v2": MoCoV2,
    "simclr": SimCLR,
    "npid": NPID,
}
"""By the name that `--method` takes."""


def make_method(config: TrainConfig) -> Method:
    """The configured method, its weights drawn from `config.seed`; torch's global generator stays
    as it was.

    ValueError for a name that is not in `METHODS`.
    """
    if config.method not in METHODS:
        raise InvalidInput(f"method is {config.method!r}; there is {', '.join(sorted(METHODS))}")
    with torch.random.fork_rng(
        devices=[]
    ):  # torch's layers draw weights when made, before `initialise` does
        return METHODS[config.method](config).train()

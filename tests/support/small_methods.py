"""Every method small enough for tests: the smallest trunk at 32 pixels on 8 images of noise."""

import dataclasses
import pathlib
from typing import Any

import torch
from torch import nn

from maskco_fast.loaders import Batch, ViewConfig
from maskco_fast.methods.base import Method
from maskco_fast.methods.byol import BYOLConfig
from maskco_fast.methods.moco_v2 import MoCoV2Config
from maskco_fast.methods.npid import NPIDConfig
from maskco_fast.methods.registry import make_method
from maskco_fast.methods.relative_loc import RelativeLocConfig
from maskco_fast.networks.config import ModelConfig
from maskco_fast.training.config import TrainConfig
from maskco_fast.training.optimizer import OptimizerConfig
from tests.support.tiny_run import NoiseLoader, tiny_config

SAMPLES, SIDE = 8, 32
MODEL = ModelConfig(trunk="resnet10-small", view_size=SIDE, group_size=4, features=16)
WITH_MAX_POOL = dataclasses.replace(MODEL, trunk="resnet18")
"""A trunk with all layers of the paper's; ten times the weights."""


class OneWeight(Method):
    """loss = weight · mean of the first view; the key weight is the moving average."""

    views = ViewConfig()
    query: nn.ParameterList
    key: nn.ParameterList

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.ParameterList([nn.Parameter(torch.tensor(0.5))])
        self.key = nn.ParameterList([nn.Parameter(torch.tensor(0.5), requires_grad=False)])

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {"loss": self.query[0] * batch.query.mean()}

    def chance_loss(self, batch_size: int) -> None:
        return None

    def after_step(self, progress: float) -> None:
        self.average.update(0.9)


def small_config(
    method: str, run_dir: pathlib.Path = pathlib.Path("unused"), **fields: object
) -> TrainConfig:
    """Batches of 8 noise images in groups of 4, a queue of 20 keys, 5 noise samples."""
    settings: dict[str, object] = {
        "method": method,
        "batch_size": SAMPLES,
        "max_steps": 6,
        "model": MODEL,
        "moco_v2": MoCoV2Config(queue=20, momentum=0.9),
        "npid": NPIDConfig(negatives=5),
        "byol": BYOLConfig(hidden=32, momentum=0.9),
        "relative_loc": RelativeLocConfig(hidden=32),
        "optimizer": OptimizerConfig(learning_rate=0.5),
    }
    return tiny_config(run_dir, **{**settings, **fields})


def small_method(config: TrainConfig, dtype: torch.dtype = torch.float32) -> Any:
    """The configured method for 24 samples; Any, for the attributes of each class."""
    method = make_method(config.method, config.method_config, config.model, seed=config.seed)
    method.prepare(3 * SAMPLES)
    return method.to(dtype)


def batches(count: int, dtype: torch.dtype = torch.float32) -> list[Batch]:
    """`count` batches of noise; `index` cycles through the 24 samples."""
    names = ("views", "sample_id", "target", "patch_corners")
    found = []
    for step, batch in zip(range(count), NoiseLoader(size=SIDE, batch=SAMPLES, dtype=dtype)):
        fields = {name: getattr(batch, name) for name in names}
        found.append(
            Batch(**fields, index=(torch.arange(SAMPLES) + step * SAMPLES) % (3 * SAMPLES))
        )
    return found


def train_step(
    method: Method,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    forward: nn.Module | None = None,
    *,
    progress: float = 0.0,
) -> float:
    """One step as the trainer makes it; returns the loss. `forward`: the method in parallel."""
    scalars = (forward or method)(batch)
    optimizer.zero_grad()
    scalars["loss"].backward()
    optimizer.step()
    method.after_step(progress)
    return scalars["loss"].item()

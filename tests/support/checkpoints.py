"""Checkpoints of untrained networks, as a run writes them."""

import dataclasses
import pathlib

import torch

from maskco_fast.methods.maskco import MaskCoConfig
from maskco_fast.methods.registry import make_method
from maskco_fast.networks.config import ModelConfig
from maskco_fast.training import checkpoint
from maskco_fast.training.config import TrainConfig

MODEL = ModelConfig(trunk="resnet18", view_size=64, group_size=4)


def write_run(folder: pathlib.Path, method: str = "maskco", step: int = 7) -> torch.nn.Module:
    """Write a checkpoint as a run does, without an optimiser; returns the method."""
    config = TrainConfig(model=MODEL, method=method, batch_size=4, recipe="demo", seed=3)
    config = dataclasses.replace(config, maskco=MaskCoConfig(mph_blocks=1))
    network = make_method(method, config.method_config, MODEL, seed=3)
    key = network.state_dict().get("key.trunk.conv1.weight")
    if key is not None:
        key.add_(1)
    state = {
        "config": {**dataclasses.asdict(config), "run_dir": str(folder)},
        "steps_done": step,
        "method": network.state_dict(),
        "loader": {"dataset": "3f00"},
    }
    checkpoint.save(folder / "checkpoints", step, state, keep=3)
    return network

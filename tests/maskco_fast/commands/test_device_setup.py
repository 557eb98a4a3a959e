"""Every command that computes on a device sets it up by `configure_cuda`, before anything else."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

from maskco_fast.commands.detect import DetectConfig, detect
from maskco_fast.commands.distance import DistanceConfig, distance
from maskco_fast.commands.knn import KnnConfig, knn
from maskco_fast.commands.train import train
from maskco_fast.training.config import TrainConfig


class SetUp(Exception):
    """Ends a command where it sets up its device."""


@pytest.mark.parametrize(
    ("module", "start"),
    [
        ("commands.train", lambda: train(TrainConfig(device="cpu"))),
        ("commands.detect", lambda: detect(DetectConfig(weights="random", device="cpu"))),
        (
            "commands.distance",
            lambda: distance(DistanceConfig(weights="random", shards=("x",), device="cpu")),
        ),
        (
            "evaluation.options",
            lambda: knn(
                KnnConfig(weights="random", train_shards=("x",), val_shards=("x",), device="cpu")
            ),
        ),
    ],
)
def test_a_command_configures_its_device(
    monkeypatch: pytest.MonkeyPatch, module: str, start: Callable[[], int]
) -> None:
    def configure(device: torch.device, **options: Any) -> None:
        assert device == torch.device("cpu")
        raise SetUp

    program = importlib.import_module(f"maskco_fast.{module}")
    monkeypatch.setattr(program, "configure_cuda", configure)
    monkeypatch.setattr(program, "keep_freed_memory", lambda: None, raising=False)
    with pytest.raises(SetUp):
        start()

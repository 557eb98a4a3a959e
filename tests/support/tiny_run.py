"""A tiny training run for tests: MaskCo on a one-layer trunk, fed with noise.

The program `tiny_run.py --run-dir DIR …` trains in one process or, under torchrun, as one of
several ranks. Its options make the process receive a signal or fail.
"""

import argparse
import os
import pathlib
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from maskco_fast.errors import report_user_errors
from maskco_fast.loaders import Batch, Quarantine
from maskco_fast.methods.base import Method
from maskco_fast.methods.maskco import MaskCo
from maskco_fast.networks.batch_norm import GroupBatchNorm2d
from maskco_fast.networks.config import ModelConfig
from maskco_fast.networks.encoders import initialise, momentum_copy
from maskco_fast.networks.roi_align import region_features
from maskco_fast.training.config import TrainConfig
from maskco_fast.training.distributed import World, join
from maskco_fast.training.signals import LAUNCHER_POLL
from maskco_fast.training.trainer import Trainer

SIZE, BATCH = 64, 6


class TinyEncoder(nn.Module):
    """One convolution to the 2×2 map, BatchNorm per group, RoIAlign and a linear layer."""

    def __init__(self, group_size: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 32, stride=32, bias=False)
        self.norm = GroupBatchNorm2d(8, group_size=group_size)
        self.head = nn.Linear(8, 5)

    def forward(self, images: torch.Tensor, boxes_NK4: torch.Tensor) -> torch.Tensor:
        feature_map = torch.relu(self.norm(self.convolution(images)))
        features = region_features(
            feature_map, boxes_NK4, stride=32, sampling_ratio=-1, aligned=True
        )
        return self.head(features)


class TinyMaskCo(MaskCo):
    """MaskCo's forward pass and moving average on `TinyEncoder`."""

    def __init__(self, config: TrainConfig) -> None:
        Method.__init__(self)
        self.config = config.maskco
        self.group_size = config.model.group_size
        self.views = config.maskco.views(config.model.view_size)
        self.query = TinyEncoder(self.group_size)
        initialise(self.query, torch.Generator().manual_seed(config.seed))
        self.key = momentum_copy(self.query)


class NoiseLoader:
    """Yields 5 batches of noise an epoch, each a function of its epoch and position.

    A rank gets its share of each batch.
    """

    def __init__(
        self,
        *,
        size: int = SIZE,
        batch: int = BATCH,
        signal_at: int = 0,
        number: int = 0,
        nan_at: int = 0,
        fail_at: int = 0,
        orphan_at: int = 0,
        dtype: torch.dtype = torch.float32,
        world: World | None = None,
    ) -> None:
        """Batches are numbered from 1; 0 is none.

        The process receives signal `number` when batch `signal_at` is requested, batch `nan_at`
        holds a NaN, batch `fail_at` raises OSError, and at `orphan_at` the parent is killed.
        """
        self.quarantine = Quarantine()
        self.epoch = 0
        self._consumed = 0
        self._size, self._batch = size, batch
        self._dtype = dtype
        self._signal_at = signal_at
        self._number = number
        self._nan_at = nan_at
        self._fail_at = fail_at
        self._orphan_at = orphan_at
        self._world = world if world is not None else World()

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[Batch]:
        while self._consumed < len(self):
            place = self.epoch * len(self) + self._consumed
            self._consumed += 1
            if self._consumed == len(self):
                self.epoch += 1
                self._consumed = 0
            if place + 1 == self._signal_at:
                os.kill(os.getpid(), self._number)
            if place + 1 == self._orphan_at:
                os.kill(os.getppid(), signal.SIGKILL)
                time.sleep(3 * LAUNCHER_POLL)
            if place + 1 == self._fail_at:
                raise OSError(f"the disk of rank {self._world.rank} is on fire")
            yield self._make(place).split(self._batch // self._world.size)[self._world.rank]
            if self._consumed == 0:
                return

    def _make(self, place: int) -> Batch:
        # NumPy's random numbers are bit-identical on every CPU; torch's are not.
        random = np.random.default_rng(1000 + place)
        shape = (self._batch, 3, self._size, self._size)
        views = [torch.from_numpy(random.standard_normal(shape)).to(self._dtype) for _ in range(2)]
        if place + 1 == self._nan_at:
            views[0][0, 0, 0, 0] = torch.nan
        ends = np.sort(random.random((self._batch, 18, 2, 2), np.float32), axis=2) * self._size
        boxes = torch.from_numpy(ends).flatten(2)
        # Of patches of at most half the view's side.
        corners = random.integers(0, self._size // 2, (self._batch, 9, 2))
        return Batch(
            views=tuple(view.contiguous(memory_format=torch.channels_last) for view in views),
            sample_id=torch.arange(self._batch) + 100 * place,
            target=torch.full((self._batch,), -1),
            index=torch.arange(self._batch),
            masked_box=boxes[:, 0],
            key_boxes=boxes[:, 1:],
            patch_corners=torch.from_numpy(corners),
        )

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "consumed": self._consumed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self._consumed = state["epoch"], state["consumed"]

    def interrupt(self) -> None:
        """Do nothing: batches are ready at once."""


def tiny_config(run_dir: pathlib.Path, **fields: Any) -> TrainConfig:
    """12 steps with a checkpoint every 3, on the CPU in float32, in two BatchNorm groups."""
    settings: dict[str, Any] = {
        "run_dir": run_dir,
        "batch_size": BATCH,
        "max_steps": 12,
        "checkpoint_every": 3,
        "device": "cpu",
        "precision": "fp32",
        "tensorboard": False,
        "model": ModelConfig(view_size=SIZE, group_size=BATCH // 2),
    }
    return TrainConfig(**{**settings, **fields})


def tiny_trainer(config: TrainConfig, world: World | None = None, **loader: Any) -> Trainer:
    """A trainer of `TinyMaskCo` on `NoiseLoader(**loader)`."""
    return Trainer(config, TinyMaskCo(config).train(), NoiseLoader(world=world, **loader), world)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as `arguments` say; those of the command line by default."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", type=pathlib.Path)
    parser.add_argument(
        "--rank", type=int, default=0, help="the one that the other options are about"
    )
    parser.add_argument("--kill", type=lambda name: signal.Signals[name], default=0)
    parser.add_argument("--kill-at", type=int, default=0)
    parser.add_argument("--fail-at", type=int, default=0)
    parser.add_argument("--orphan-at", type=int, default=0)
    options = parser.parse_args(arguments)
    with join(torch.device("cpu")) as world:
        config = tiny_config(options.run_dir, log_every=4, log_samples=True)
        wrong = {
            "signal_at": options.kill_at,
            "number": options.kill,
            "fail_at": options.fail_at,
            "orphan_at": options.orphan_at,
        }
        goes_wrong = (
            world.rank == options.rank and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        )
        print(tiny_trainer(config, world, **(wrong if goes_wrong else {})).fit())
    return 0


def program(arguments: Sequence[str] | None = None) -> int:
    """`main` with the command line's lines for errors; returns the exit code."""
    return report_user_errors(lambda: main(arguments))


if __name__ == "__main__":
    sys.exit(program())

"""Losses of one run on one process with two groups, on one with two micro-batches, and on two
processes.

    python -m benchmarks.correctness.processes [--shards 'in1k-sample-{0000..0003}.tar']

The three compute the same sums in different orders. In float64 the difference stays in the last
digits. In float32 it grows from step to step: where a unit stands at the kink of a ReLU, rounding
decides on which side it falls. Before each step the processes agree whether to stop; the time of
that exchange is the mean over `EXCHANGES`.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any, Literal

import torch
import tyro

from maskco_fast.bench.harness import machine
from maskco_fast.demo.shards import demo_shards
from maskco_fast.loaders import Batch, Loader, make_loader
from maskco_fast.methods.registry import make_method
from maskco_fast.networks.config import ModelConfig
from maskco_fast.training.config import TrainConfig
from maskco_fast.training.distributed import join
from maskco_fast.training.optimizer import OptimizerConfig
from maskco_fast.training.trainer import Trainer

EXCHANGES = 500


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Train a few steps three times and print the losses side by side."""

    shards: tuple[str, ...] = ()
    """Tar shards or folders; none takes the demo set."""
    steps: int = 20
    """Optimiser steps of each run."""
    batch: int = 32
    """Images a step, in two groups."""
    view_size: int = 64
    """Side of the views, pixels."""
    learning_rate: float = 0.03
    """For a batch of 256, scaled to `batch`."""
    dtypes: tuple[Literal["float32", "float64"], ...] = ("float32", "float64")
    """Arithmetic of the runs."""
    as_rank: tuple[str, str, int] | None = None
    """Run folder, dtype and micro-batches of a process that the command itself starts."""


class Cast:
    """A loader whose views are cast to another dtype."""

    def __init__(self, loader: Loader, dtype: torch.dtype) -> None:
        self._loader = loader
        self._dtype = dtype

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader:
            yield dataclasses.replace(
                batch, views=tuple(view.to(self._dtype) for view in batch.views)
            )

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def train(options: Options, run_dir: str, dtype_name: str, accumulate: int) -> None:
    """Train one of the runs, as the rank that the environment names."""
    dtype = torch.float64 if dtype_name == "float64" else torch.float32
    config = TrainConfig(
        run_dir=pathlib.Path(run_dir),
        max_steps=options.steps,
        batch_size=options.batch,
        accumulate=accumulate,
        model=ModelConfig(
            trunk="resnet18", view_size=options.view_size, group_size=options.batch // 2
        ),
        optimizer=OptimizerConfig(learning_rate=options.learning_rate),
        device="cpu",
        precision="fp32",
        tensorboard=False,
        checkpoint_every=options.steps,
    )
    shards = options.shards or tuple(str(path) for path in demo_shards())
    with join(torch.device("cpu")) as world:
        method = make_method(
            config.method, config.method_config, config.model, seed=config.seed
        ).to(dtype)
        size = config.images_per_process(world.size)
        with make_loader(
            shards, size, views=method.views, rank=world.rank, world_size=world.size
        ) as loader:
            Trainer(config, method, Cast(loader, dtype), world).fit()
        began = time.perf_counter()
        for _ in range(EXCHANGES):
            world.agree_to_stop(None)
        if world.is_rank_zero:
            microseconds = (time.perf_counter() - began) / EXCHANGES * 1e6
            pathlib.Path(run_dir, "exchange").write_text(str(microseconds))


def losses(
    options: Options, dtype: str, *, processes: int, accumulate: int = 1
) -> tuple[list[float], float]:
    """Losses of a run by torchrun, one thread a process, and microseconds of an exchange.

    Raises SystemExit where the run fails.
    """
    fields = {"steps": options.steps, "batch": options.batch, "view-size": options.view_size}
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--standalone",
                "--nproc-per-node",
                str(processes),
            ),
            *(
                "-m",
                "benchmarks.correctness.processes",
                "--as-rank",
                folder,
                dtype,
                str(accumulate),
                "--learning-rate",
                str(options.learning_rate),
            ),
            *(part for name, value in fields.items() for part in (f"--{name}", str(value))),
            *(["--shards", *options.shards] if options.shards else []),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        ended = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )
        if ended.returncode:
            raise SystemExit(ended.stderr)
        lines = pathlib.Path(folder, "metrics.jsonl").read_text().splitlines()
        exchange = float(pathlib.Path(folder, "exchange").read_text())
    return [json.loads(line)["loss"] for line in lines], exchange


def main(options: Options) -> None:
    """Print a table of losses for each dtype."""
    if options.as_rank is not None:
        train(options, *options.as_rank)
        return
    print(machine())
    for dtype in options.dtypes:
        groups, _ = losses(options, dtype, processes=1)
        micro, _ = losses(options, dtype, processes=1, accumulate=2)
        ranks, exchange = losses(options, dtype, processes=2)
        print(
            f"\n{dtype}\n{'step':>6}{'1 process, 2 groups':>24}{'1, 2 micro-batches':>24}"
            f"{'2 processes':>24}"
        )
        for step, row in enumerate(zip(groups, micro, ranks), 1):
            print(f"{step:6}" + "".join(f"{loss:24.15f}" for loss in row))
        for name, one in (("1 process, 2 groups", groups), ("1, 2 micro-batches", micro)):
            worst = max(abs(a - b) / a for a, b in zip(one, ranks))
            print(f"2 processes from {name}: at most {worst:.1e} relative")
        print(f"the exchange before a step: {exchange:.0f} us when no rank is late")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

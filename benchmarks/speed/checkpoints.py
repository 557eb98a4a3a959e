"""Cost of a checkpoint: the time to copy the state, and the step time while a thread writes it.

    python -m benchmarks.speed.checkpoints [--trunk resnet50] [--view-size 32] [--batch 8]

The network has its full size, and so has the checkpoint; small views keep the steps short. "Copied"
is the time that the training loop waits to save. "Synchronous" is the time it would wait if it
wrote the file itself.
"""

import dataclasses
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Literal

import tyro

from maskco_fast.bench.harness import machine
from maskco_fast.demo.shards import demo_shards
from maskco_fast.loaders import make_loader
from maskco_fast.methods.registry import make_method
from maskco_fast.networks.config import ModelConfig
from maskco_fast.training import checkpoint
from maskco_fast.training.checkpoint_writer import CheckpointWriter
from maskco_fast.training.config import TrainConfig
from maskco_fast.training.trainer import Fetched, Trainer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Time steps with and without a checkpoint being written."""

    trunk: Literal["resnet18", "resnet50"] = "resnet50"
    view_size: int = 32
    """Side of the views, pixels."""
    batch: int = 8
    """Images a step."""
    steps: int = 10
    """Steps timed in each round without a checkpoint."""
    rounds: int = 3
    folder: pathlib.Path | None = None
    """Folder on the disk to measure. None: the system's folder for temporary files."""


def main(options: Options) -> None:
    """Print a line a round. The first round's copy includes allocating its memory."""
    print(machine())
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = pathlib.Path(name)
        config = TrainConfig(
            run_dir=folder,
            batch_size=options.batch,
            model=ModelConfig(trunk=options.trunk, view_size=options.view_size),
            tensorboard=False,
        )
        method = make_method(config.method, config.method_config, config.model, seed=config.seed)
        shards = demo_shards(samples=256, shards=1)
        with make_loader(shards, options.batch, views=method.views, threads=1) as loader:
            trainer = Trainer(config, method, loader)
            batches = trainer._batches()

            def step() -> float:
                """Seconds of one training step."""
                began = time.perf_counter()
                trainer._one_step(Fetched(next(batches), epoch=0))
                return time.perf_counter() - began

            for _ in range(3):
                step()
            with CheckpointWriter(folder, keep=1) as writer:
                for number in range(options.rounds):
                    line = one_round(options, trainer, writer, folder, step)
                    print(f"round {number + 1}: {line}", flush=True)


def one_round(
    options: Options,
    trainer: Trainer,
    writer: CheckpointWriter,
    folder: pathlib.Path,
    step: Callable[[], float],
) -> str:
    """Time steps alone, an asynchronous save with steps beside it, and a synchronous save."""
    alone = [step() for _ in range(options.steps)]
    began = time.perf_counter()
    writer.save(trainer.step, trainer.state_dict(), before_write=lambda: None)
    copied = time.perf_counter() - began
    beside = [step()]  # at least one, however fast the disk is
    while writer.busy:
        beside.append(step())
    writer.finish()
    written = time.perf_counter() - began
    began = time.perf_counter()
    path = checkpoint.save(folder, trainer.step, trainer.state_dict(), keep=1)
    synchronous = time.perf_counter() - began
    return (
        f"{path.stat().st_size / 2**20:.0f} MiB; copied in {1e3 * copied:.0f} ms, "
        f"written during {len(beside)} steps in {written:.1f} s; synchronous {synchronous:.1f} s; "
        f"a step takes {1e3 * statistics.median(alone):.0f} ms alone, "
        f"{1e3 * statistics.median(beside):.0f} ms during the write, "
        f"at most {1e3 * max(beside):.0f} ms"
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

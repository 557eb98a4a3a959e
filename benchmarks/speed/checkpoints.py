"""What a checkpoint costs the steps: the wait for its copy, and how the steps go while a thread
writes it.

    python benchmarks/checkpoints.py [--trunk resnet50] [--view-size 32] [--batch 8]

The network is whole, so that the checkpoint has its full size; small views keep the steps short
beside it. "Copied" is what the loop waits for when it saves, "at once" how long it would wait if it
wrote the file itself.
"""

import dataclasses
import pathlib
import statistics
import tempfile
import time
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
from maskco_fast.training.trainer import Trainer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Time steps with and without a checkpoint being written."""

    trunk: Literal["resnet18", "resnet50"] = "resnet50"
    view_size: int = 32
    """Side of the views, pixels."""
    batch: int = 8
    rounds: int = 3
    folder: pathlib.Path | None = None
    """On the disk that is to be measured; None: the system's folder for temporary files."""


def main(options: Options) -> None:
    """Print a line a round; the first copy also makes its memory."""
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
        with make_loader(demo_shards(), options.batch, views=method.views, threads=1) as loader:
            trainer = Trainer(config, method, loader)
            batches = trainer._batches()

            def step() -> float:
                began = time.perf_counter()
                trainer._one_step(batches)
                return time.perf_counter() - began

            for _ in range(3):
                step()
            with CheckpointWriter(folder, keep=1) as writer:
                for number in range(options.rounds):
                    alone = [step() for _ in range(10)]
                    began = time.perf_counter()
                    writer.save(trainer.step, trainer.state_dict(), before_write=lambda: None)
                    copied, beside = time.perf_counter() - began, []
                    while writer.busy:
                        beside.append(step())
                    written = time.perf_counter() - began
                    began = time.perf_counter()
                    path = checkpoint.save(folder, trainer.step, trainer.state_dict(), keep=1)
                    at_once = time.perf_counter() - began
                    print(
                        f"round {number + 1}: {path.stat().st_size / 2**20:.0f} MiB; copied in {1e3 * copied:.0f} ms, "
                        f"written beside {len(beside)} steps in {written:.1f} s; at once {at_once:.1f} s; "
                        f"a step {1e3 * statistics.median(alone):.0f} ms alone, "
                        f"{1e3 * statistics.median(beside):.0f} ms beside and at most {1e3 * max(beside):.0f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

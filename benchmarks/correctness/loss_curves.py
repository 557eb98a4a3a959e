"""Losses of a run fed by each loader, on the same samples in the same order.

    python -m benchmarks.correctness.loss_curves --shards 'in1k-sample-{0000..0003}.tar'

Trains MaskCo's `cpu_small` network from the same weights with each loader (the FFCV loader reads a
.beton of the shards). For comparison, three more runs of the reference loader start from weights
changed at random by a thousandth, about the size of the loaders' eighth of a level in a view.
Writes a run folder for each, loss-curves.png and loss-curves.json, and prints each run's distance
from the reference loader's.
"""

import dataclasses
import pathlib
from dataclasses import dataclass

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure

from maskco_fast.bench.harness import machine
from maskco_fast.loaders import LOADERS, Dataset, make_loader, open_dataset
from maskco_fast.loaders.shards.beton_writer import write_beton
from maskco_fast.loaders.system.files import write_json
from maskco_fast.methods.registry import make_method
from maskco_fast.networks.config import ModelConfig
from maskco_fast.pictures.loss import read_metrics, running_mean
from maskco_fast.training.recipes import cpu_small
from maskco_fast.training.trainer import Trainer

CHANGE = 1e-3
"""Relative change of the weights, the standard deviation."""
NOISE = tuple(f"changed-{draw}" for draw in (1, 2, 3))
"""Runs of the reference loader from slightly changed weights: the scale for the loaders'
differences."""
RUNS = ("reference", *NOISE, *(name for name in LOADERS if name != "reference"))
"""Names of the run folders."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train with each loader and compare the losses."""

    shards: tuple[str, ...]
    """Tar shards or folders of images."""
    out: pathlib.Path = pathlib.Path("runs/loaders")
    """Folder of the runs and the picture; it must not hold such runs yet."""
    steps: int = 200
    """Optimiser steps of each run."""
    batch_size: int = 16
    """Images a step, one group."""
    size: int = 64
    """Side of the views, pixels."""
    seed: int = 0
    """Seed of order, plans and weights."""


def losses(options: Options, name: str, source: Dataset) -> np.ndarray:
    """(steps,) losses of the run `name` of `RUNS`."""
    config = dataclasses.replace(
        cpu_small(),
        run_dir=options.out / name,
        max_steps=options.steps,
        batch_size=options.batch_size,
        model=ModelConfig(trunk="resnet18", view_size=options.size, group_size=options.batch_size),
        seed=options.seed,
        precision="fp32",
        tensorboard=False,
        resume=False,
        log_every=options.steps,
    )
    method = make_method(config.method, config.method_config, config.model, seed=config.seed)
    if name in NOISE:
        random = torch.Generator().manual_seed(NOISE.index(name))
        with torch.no_grad():
            for parameter in method.parameters():
                parameter.mul_(1 + CHANGE * torch.randn(parameter.shape, generator=random))
    backend = "reference" if name in NOISE else name
    with make_loader(
        source,
        options.batch_size,
        views=method.views,
        backend=backend,
        seed=options.seed,
        rank=0,
        world_size=1,
    ) as loader:
        Trainer(config, method, loader).fit()
    return read_metrics(config.run_dir / "metrics.jsonl")["loss"]


def compare(options: Options) -> dict[str, np.ndarray]:
    """The losses of each run, the reference loader's runs first."""
    dataset = open_dataset(options.shards)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "same.beton"
    write_beton(dataset, path, check=False)
    beton = open_dataset([str(path)])
    return {name: losses(options, name, beton if name == "ffcv" else dataset) for name in RUNS}


def difference(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """(mean, largest) difference of the losses in nats: of single steps, and of running means over
    a tenth of the run."""
    window = max(len(one) // 10, 1)
    smooth = np.abs(np.subtract(running_mean(one, window), running_mean(other, window)))
    return float(np.abs(one - other).mean()), float(smooth.max())


def picture(curves: dict[str, np.ndarray], out: pathlib.Path, title: str) -> None:
    """Draw the running means of the losses, and below them their distance from the reference's."""
    figure = Figure(figsize=(8, 7), dpi=100, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    truth = curves["reference"]
    steps, window = np.arange(1, len(truth) + 1), max(len(truth) // 10, 1)
    for name, curve in curves.items():
        style = {"color": "#a0a0a0", "linestyle": ":"} if name in NOISE else {}
        smooth = running_mean(curve, window)
        top.plot(steps, smooth, label=name, linewidth=1.2, **style)
        bottom.plot(steps, np.abs(smooth - running_mean(truth, window)), linewidth=1.2, **style)
    top.set_title(title, fontsize=9, loc="left")
    top.set_ylabel(f"loss (nats), mean of {window} steps")
    bottom.set_ylabel("distance from the reference's")
    bottom.set_xlabel("step")
    top.legend(fontsize=8)
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
    figure.savefig(out)


def main(options: Options) -> None:
    """Train, write the picture and the numbers, print the table."""
    curves = compare(options)
    picture(
        curves,
        options.out / "loss-curves.png",
        f"{options.steps} steps of {options.batch_size} images; {machine()}",
    )
    write_json(
        options.out / "loss-curves.json", {name: curve.tolist() for name, curve in curves.items()}
    )
    print(
        f"{machine()}; {options.steps} steps of {options.batch_size} images, {options.size} "
        "pixels, float32"
    )
    print(
        "| run | mean difference a step | largest, of means over a tenth of the run "
        "| last tenth's mean loss |"
    )
    print("|---|---|---|---|")
    apart = {name: difference(curve, curves["reference"]) for name, curve in curves.items()}
    for name, (mean, largest) in apart.items():
        last = curves[name][-max(options.steps // 10, 1) :].mean()
        print(f"| {name} | {mean:.4f} | {largest:.4f} | {last:.3f} |")
    noise = [max(apart[name][figure] for name in NOISE) for figure in range(2)]
    print(f"the largest of {len(NOISE)} changed runs: {noise[0]:.4f} and {noise[1]:.4f}")


if __name__ == "__main__":
    main(tyro.cli(Options))

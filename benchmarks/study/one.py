"""One run of the study: pre-train an arm with a seed, measure its checkpoints, write the result.

    python -m benchmarks.study.one --arm maskco --seed 0 --folder STUDY --train ... --test ...

`benchmarks.study run` starts it once for each arm and seed. It goes on where it was killed.
"""

import json
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import tyro

from benchmarks.study import plan
from benchmarks.study.measure import Images, measure
from maskco_fast import cli
from maskco_fast.errors import report_user_errors
from maskco_fast.loaders.system.cpus import cpu_model
from maskco_fast.loaders.system.files import write_json

LOSS_STEPS = 100
"""Last steps whose loss is averaged."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Pre-train and measure one arm with one seed."""

    arm: str
    seed: int
    folder: pathlib.Path
    """Where the mosaics are, and the run folder and the result go."""
    train: tuple[str, ...]
    """Labelled shards to pre-train on, and the images that probes and neighbours come from."""
    test: tuple[str, ...]
    """Labelled shards that nothing is trained on."""
    labels: str = "cls"
    steps: int = plan.STEPS
    """Fewer for a trial: the result then counts for nothing."""
    curve: bool = False
    """Also measure the checkpoints of `plan.CURVE_STEPS`."""
    device: str = "cpu"
    """cpu or cuda. On CUDA a step is replayed as one graph."""


def run(options: Options) -> int:
    """Train, measure, write `result_path`; returns the exit code of the training."""
    arm = plan.find_arm(options.arm)
    images = Images.open(options.train, options.test, options.labels)
    run_dir = options.folder / "runs" / f"{arm.name}-{options.seed}"
    result: dict[str, Any] = {
        "plan": plan.stamp(),
        "arm": arm.name,
        "seed": options.seed,
        "steps": options.steps,
        "commit": commit(),
        "machine": f"{device_name(options.device)}, Python {platform.python_version()}",
    }
    size = int(str(plan.COMMON["model.view-size"]))
    trunk = str(plan.COMMON["model.trunk"])
    weights: Mapping[int, str] = {options.steps: "random"}
    if arm.method != "random":
        began = time.process_time()
        code = train(arm, options, run_dir)
        if code:
            return code
        result["train_cpu_s"] = round(time.process_time() - began, 1)
        result["loss"] = last_losses(run_dir)
        weights = checkpoints(run_dir, options)
    began = time.process_time()
    result["measured"] = {
        step: measure(
            source, images, size=size, seed=options.seed, trunk=trunk, device=options.device
        )
        for step, source in weights.items()
    }
    result["measure_cpu_s"] = round(time.process_time() - began, 1)
    write_json(result_path(options.folder, arm.name, options.seed), result)
    return 0


def train(arm: plan.Arm, options: Options, run_dir: pathlib.Path) -> int:
    """Run `maskco-fast train`, which resumes a run that was killed; returns its exit code."""
    chosen = {
        **arm.train_options(options.seed),
        "max-steps": options.steps,
        "run-dir": run_dir,
        "loader": "native",
        "loader-threads": 1,
        "device": options.device,
        "cuda-graphs": options.device != "cpu",
        "log-every": 100,
        "checkpoint-every": 500,
        "loggers": "jsonl",
        "resume": True,
    }
    arguments = ["train", "--shards", *shards(arm, options)]
    for name, value in chosen.items():
        arguments += option(name, value)
    if options.curve:
        arguments += ["--keep-steps", *map(str, plan.CURVE_STEPS)]
    return cli.main(arguments)


def device_name(device: str) -> str:
    """The model of the CPU, or of the GPU."""
    return cpu_model()[0] if device == "cpu" else torch.cuda.get_device_name(device)


def option(name: str, value: object) -> list[str]:
    """An option as the command line takes it."""
    if isinstance(value, bool):
        group, dot, last = name.rpartition(".")
        return [f"--{name}" if value else f"--{group}{dot}no-{last}"]
    return [f"--{name}", str(value)]


def shards(arm: plan.Arm, options: Options) -> tuple[str, ...]:
    """The shards that an arm is trained on."""
    if arm.images == "plain":
        return options.train
    return (str(options.folder / "mosaics" / f"{arm.images}-*.tar"),)


def last_losses(run_dir: pathlib.Path) -> float:
    """The mean loss of the last `LOSS_STEPS` steps."""
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = {}
    for line in map(json.loads, lines):
        if "loss" in line:
            losses[line["step"]] = line["loss"]
    last = [losses[step] for step in sorted(losses)][-LOSS_STEPS:]
    return sum(last) / len(last)


def checkpoints(run_dir: pathlib.Path, options: Options) -> Mapping[int, str]:
    """The checkpoints to measure by step."""
    steps = [*(plan.CURVE_STEPS if options.curve else ()), options.steps]
    return {
        step: str(run_dir / "checkpoints" / f"step-{step:09d}.pt")
        for step in steps
        if step <= options.steps
    }


def result_path(folder: pathlib.Path, arm: str, seed: int) -> pathlib.Path:
    """Where a run's result lies."""
    return folder / "results" / f"{arm}-{seed}.json"


def commit() -> str:
    """The commit of the code, with a plus sign where files differ from it; "" without git."""
    here = pathlib.Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, check=False
        ).stdout.strip()

    return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain") else "")


if __name__ == "__main__":
    sys.exit(report_user_errors(lambda: run(tyro.cli(Options, description=__doc__))))

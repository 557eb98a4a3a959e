"""Runs the study: every arm with every seed, several at once; goes on where it was stopped.

    python -m benchmarks.study run --train 'tiny20-train-{0000..0002}.tar' \\
        --test tiny20-train-0003.tar tiny20-val-0000.tar --folder study

A finished run has a file in FOLDER/results and is not repeated; FOLDER/results.jsonl holds all of
them, a line each. Ctrl-C stops the runs, which save; the same command goes on.
"""

import collections
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.study import plan
from benchmarks.study.one import result_path
from maskco_fast.demo.mosaics import StudyConfig, study
from maskco_fast.errors import say
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders.system.cpus import usable_cpus
from maskco_fast.loaders.system.files import write_atomically
from maskco_fast.progress import duration

POLL_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Run:
    """Run all arms with all seeds and keep their results."""

    train: tuple[str, ...]
    """Labelled shards: pre-trained on without their labels; probes learn on them."""
    test: tuple[str, ...]
    """Labelled shards that nothing is trained on."""
    folder: pathlib.Path = pathlib.Path("study")
    """Folder of the mosaics, the run folders and the results."""
    labels: str = "cls"
    """Where an image's label is: cls, json:FIELD, or folder."""
    arms: tuple[str, ...] = ()
    """Some arms only; default: all."""
    seeds: tuple[int, ...] = plan.SEEDS
    steps: int = plan.STEPS
    """Fewer steps for a trial; `report` then refuses the results."""
    device: str = "cpu"
    """cpu or cuda: where the networks are; the images are always decoded by the CPU."""
    processes: int | None = None
    """Runs at once, each with one thread; None: one for each usable CPU."""

    def __post_init__(self) -> None:
        known = [arm.name for arm in (*plan.ARMS, *plan.SWEEP_ARMS)]
        for name in self.arms:
            if name not in known:
                raise InvalidInput(f"`arms` must be among {', '.join(known)}, got {name!r}.")
        if self.processes is not None and self.processes < 1:
            raise InvalidInput(f"`processes` must be at least 1, got {self.processes}.")


def run(config: Run) -> int:
    """Run what has no result yet; returns 1 where a run failed."""
    arms = [plan.find_arm(name) for name in config.arms] or list(plan.ARMS)
    make_mosaics(config, arms)
    # A whole seed before the next, so that what is there when the study is stopped can be compared.
    waiting = collections.deque(
        (arm, seed)
        for seed in config.seeds
        for arm in arms
        if not result_path(config.folder, arm.name, seed).exists()
    )
    total, began, failed = len(waiting), time.monotonic(), list[str]()
    running: dict[str, subprocess.Popen[bytes]] = {}
    say(f"plan {plan.stamp()}: {total} runs to do, {len(arms) * len(config.seeds) - total} done")
    try:
        while waiting or running:
            while waiting and len(running) < (config.processes or usable_cpus()):
                arm, seed = waiting.popleft()
                running[f"{arm.name}-{seed}"] = start(config, arm, seed)
            time.sleep(POLL_S)
            for name in [name for name, process in running.items() if process.poll() is not None]:
                code = running.pop(name).returncode
                if code:
                    failed.append(name)
                done = total - len(waiting) - len(running)
                spent = time.monotonic() - began
                left = duration(spent / done * (total - done))
                state = f"failed with {code}, see {log_path(config.folder, name)}"
                say(f"{done}/{total} {name} {state if code else 'done'}, {left} left")
                collect(config.folder)
    finally:
        for process in running.values():
            process.send_signal(signal.SIGTERM)  # it saves
        for process in running.values():
            process.wait()
    if failed:
        say(f"{len(failed)} runs failed: {', '.join(failed)}. The same command tries them again.")
    return int(bool(failed))


def make_mosaics(config: Run, arms: Sequence[plan.Arm]) -> None:
    """Write the mosaics of the training images, once."""
    out = config.folder / "mosaics"
    if out.exists() or all(arm.images == "plain" for arm in arms):
        return
    partial = out.with_name("mosaics.partial")
    study(StudyConfig(shards=config.train, out=partial, labels=config.labels))
    partial.rename(out)


def start(config: Run, arm: plan.Arm, seed: int) -> "subprocess.Popen[bytes]":
    """Start a run in a process of its own, with one thread, its output in a log file."""
    arguments = ["--arm", arm.name, "--seed", str(seed), "--folder", str(config.folder)]
    arguments += ["--train", *config.train, "--test", *config.test]
    arguments += ["--labels", config.labels, "--steps", str(config.steps)]
    arguments += ["--device", config.device]
    if seed == config.seeds[0] and arm.method != "random":
        arguments.append("--curve")
    path = log_path(config.folder, f"{arm.name}-{seed}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.study.one", *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C comes to this process, which tells them
        )


def log_path(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Where a run's output goes."""
    return folder / "logs" / f"{name}.log"


def collect(folder: pathlib.Path) -> pathlib.Path:
    """Write all results to FOLDER/results.jsonl, a line each; returns its path."""
    path = folder / "results.jsonl"
    results = [json.loads(one.read_bytes()) for one in sorted((folder / "results").glob("*.json"))]
    with write_atomically(path) as file:
        for result in results:
            file.write(json.dumps(result).encode() + b"\n")
    return path

"""`train` as a user runs it, on a GPU: steps, an end, and the same command again, which resumes.

    python -m benchmarks.gpu.run --shards 'in1k-{0000..0015}.tar' --json run.json

Notes what metrics.jsonl says after the first ten steps: images/s of all of them, with the steps
that write a checkpoint, and of the median one.
"""

import json
import pathlib
import shlex
import statistics
import sys
import tempfile
from dataclasses import dataclass
from typing import Any

import tyro

from benchmarks.gpu.lines import Lines
from benchmarks.gpu.program import run_program


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train by the command line, and resume."""

    shards: str | None = None
    """Shards; None: the built-in demo set."""
    arguments: str = "--recipe paper --loader native"
    """Further arguments of `train`, as one text."""
    steps: int = 40
    """Steps of the first start."""
    resumed_steps: int = 45
    """Steps of the whole run."""
    seconds: float = 120.0
    """Most for one start."""
    json: pathlib.Path | None = None
    """Where the results are written, after each one."""


def start(options: Options, run_dir: pathlib.Path, steps: int) -> dict[str, Any]:
    """One start in a process of its own; RuntimeError with the end of its output."""
    command = ["train", *shlex.split(options.arguments)]
    command += [f"--run-dir={run_dir}", f"--max-steps={steps}", f"--checkpoint-every={steps // 2}"]
    command += ["--shards", options.shards] if options.shards else []
    run_program(command, options.seconds)
    return summarise(run_dir / "metrics.jsonl", steps)


def summarise(path: pathlib.Path, steps: int) -> dict[str, Any]:
    """images/s and data wait after the first ten steps, the losses, and whether no step misses."""
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    rest = lines[10:] or lines
    return {
        "steps_are_whole": [line["step"] for line in lines] == list(range(1, steps + 1)),
        "images_per_s": statistics.harmonic_mean([line["images_per_s"] for line in rest]),
        "median_images_per_s": statistics.median(line["images_per_s"] for line in rest),
        "data_wait": statistics.mean(line["data_wait"] for line in rest),
        "first_and_last_loss": [lines[0]["loss"], lines[-1]["loss"]],
    }


def main(options: Options) -> int:
    """Both starts in one run folder."""
    lines = Lines(options.json)
    with tempfile.TemporaryDirectory() as folder:
        run_dir = pathlib.Path(folder) / "run"
        lines.attempt("first start", lambda: start(options, run_dir, options.steps))
        lines.attempt("resumed", lambda: start(options, run_dir, options.resumed_steps))
    whole = all(result.get("steps_are_whole") for result in lines.found.values())
    return int(bool(lines.failed) or not whole)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))

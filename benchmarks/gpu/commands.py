"""The commands that take a device, as a user runs them: trained on it, then measured there and on
the CPU.

    python -m benchmarks.gpu.commands --json commands.json

A short run on the built-in demo set is evaluated in float32 on both devices; what they find may
differ by a few images at a decision's border. Of several processes a machine with one GPU shows
little: torchrun starts a single one, whose exchanges by NCCL are with itself.
"""

import json
import pathlib
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Any

import tyro

from benchmarks.gpu.lines import Lines
from benchmarks.gpu.program import run_program

EVALUATIONS = {
    "knn": ("knn", "--precision", "fp32"),
    "linear": ("linear", "--precision", "fp32", "--protocol", "last", "--epochs", "2"),
    "distance": ("distance", "--images", "256", "--size", "64"),
}
"""Arguments by name: run with the run's weights on the device, and on the CPU."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train, evaluate, fine-tune and export by the command line."""

    device: str = "cuda"
    """cuda, or cpu for a dry run."""
    steps: int = 150
    """Training steps of the recipe `demo`."""
    detector_steps: int = 20
    """Fine-tuning steps of the detector."""
    evaluations: tuple[str, ...] = tuple(EVALUATIONS)
    seconds: float = 60.0
    """Most for one command."""
    json: pathlib.Path | None = None
    """Where the results are written, after each one."""


def command(
    options: Options, *arguments: str, launcher: tuple[str, ...] = (sys.executable,)
) -> float:
    """Run one command; returns its seconds. RuntimeError with the end of its output."""
    began = time.monotonic()
    run_program(arguments, options.seconds, launcher)
    return round(time.monotonic() - began, 1)


def trained(
    options: Options, run_dir: pathlib.Path, launcher: tuple[str, ...] = (sys.executable,)
) -> dict[str, Any]:
    """Train; the mean loss of the first and of the last ten steps."""
    arguments = ["train", "--recipe", "demo", "--run-dir", str(run_dir), "--no-tensorboard"]
    arguments += ["--device", options.device, "--max-steps", str(options.steps)]
    took = command(options, *arguments, launcher=launcher)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    ends = [sum(part) / len(part) for part in (losses[:10], losses[-10:])]
    return {"seconds": took, "first_and_last_losses": ends}


def evaluated(options: Options, name: str, run_dir: pathlib.Path) -> dict[str, Any]:
    """One evaluation on both devices: seconds and what it found, side by side."""
    found: dict[str, Any] = {}
    for device in (options.device, "cpu"):
        out = run_dir / f"{name}-{device}.json"
        arguments = [*EVALUATIONS[name], "--weights", str(run_dir), "--device", device]
        if name == "linear":
            arguments += ["--run-dir", str(run_dir / f"linear-{device}")]
        took = command(options, *arguments, "--json", str(out))
        numbers = {
            key: value
            for key, value in json.loads(out.read_text()).items()
            if isinstance(value, float | list | dict) and key != "weights"
        }
        found[device] = {"seconds": took, **numbers}
    return found


def exported(options: Options, run_dir: pathlib.Path) -> dict[str, Any]:
    """Weights that were trained on the device, for torchvision, and the head's picture."""
    took = {
        "export": command(
            options,
            *("export", "--weights", str(run_dir), "--to", "torchvision"),
            *("--out", str(run_dir / "trunk.pth")),
        ),
        "mph": command(
            options, "mph", "--weights", str(run_dir), "--out", str(run_dir / "mph.png")
        ),
    }
    return {"seconds": took}


def detected(options: Options, run_dir: pathlib.Path) -> dict[str, Any]:
    """A detector, fine-tuned for a few steps on the built-in scenes."""
    out = run_dir / "detect.json"
    took = command(
        options,
        *("detect", "--recipe", "demo", "--weights", str(run_dir), "--device", options.device),
        *("--max-steps", str(options.detector_steps), "--milestones", "--no-tensorboard"),
        *("--run-dir", str(run_dir / "detect"), "--json", str(out)),
    )
    result = json.loads(out.read_text())
    return {"seconds": took, "AP": result["AP"], "AP50": result["AP50"]}


def main(options: Options) -> int:
    """All commands; one that fails is a line."""
    lines = Lines(options.json)
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1")
    with tempfile.TemporaryDirectory() as folder:
        run_dir = pathlib.Path(folder) / "run"
        lines.attempt("train", lambda: trained(options, run_dir))
        for name in options.evaluations:
            lines.attempt(name, lambda name=name: evaluated(options, name, run_dir))  # type: ignore[misc]
        lines.attempt("export and mph", lambda: exported(options, run_dir))
        lines.attempt("detect", lambda: detected(options, run_dir))
        other = pathlib.Path(folder) / "torchrun"
        lines.attempt("train by torchrun", lambda: trained(options, other, torchrun))
    return int(bool(lines.failed))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))

"""What this machine is, and its ceilings: copies in memory, products in bf16, PCIe, launches.

    python -m benchmarks.gpu.probe --json probe.json

Imports torch and nothing of the project, so that it answers even where the project fails.
"""

import importlib.metadata
import itertools
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from benchmarks.gpu.lines import Lines

PACKAGES = (
    "torch",
    "torchvision",
    "triton",
    "numpy",
    "numba",
    "llvmlite",
    "pillow",
    "simplejpeg",
    "tyro",
    "pytest",
    "nvidia-cudnn-cu13",
    "nvidia-dali-cuda130",
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Describe this machine."""

    device: str = "cuda"
    """cpu measures the same with a hundredth of the bytes, for a dry run."""
    rounds: int = 12
    """Timings of a ceiling; the median is noted."""
    json: Path | None = None
    """Where the results are written, after each one."""


def shell(command: str) -> str:
    """The output of a command, or what the shell says about it."""
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip()[:1500]


def versions() -> dict[str, str | None]:
    """Installed packages; None for one that is missing."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def device_facts() -> dict[str, Any]:
    """Name and size of the CUDA device."""
    found = torch.cuda.get_device_properties(0)
    return {
        "name": found.name,
        "capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "memory_gib": round(found.total_memory / 2**30, 1),
        "cudnn": torch.backends.cudnn.version(),
    }


def seconds(call: Callable[[], Any], options: Options) -> float:
    """Median seconds of a call."""
    # Imported here: a part that must answer without the project.
    from maskco_fast.training.meter import make_clock

    clock = make_clock(torch.device(options.device))
    for _ in range(3):
        call()
    marks = [clock.mark()]
    for _ in range(options.rounds):
        call()
        marks.append(clock.mark())
    if options.device.startswith("cuda"):
        torch.cuda.synchronize()
    return statistics.median(clock.seconds(a, b) for a, b in itertools.pairwise(marks))


def ceilings(options: Options) -> dict[str, Callable[[], float]]:
    """The measurements, by name with their unit."""
    on_cuda = options.device.startswith("cuda")
    side = 8192 if on_cuda else 256
    size = 2**31 if on_cuda else 2**22

    def copy() -> float:
        source = torch.zeros(size, dtype=torch.uint8, device=options.device)
        target = torch.empty_like(source)
        return 2 * size / seconds(lambda: target.copy_(source), options) / 1e12

    def product() -> float:
        # Random values: of zeros the chip computes faster, because it draws less power.
        a, b = (torch.randn(side, side, device=options.device).bfloat16() for _ in range(2))
        return 2 * side**3 / seconds(lambda: a @ b, options) / 1e12

    def upload() -> float:
        host = torch.empty(size // 8, dtype=torch.uint8)
        host = host.pin_memory() if on_cuda else host
        target = torch.empty(size // 8, dtype=torch.uint8, device=options.device)
        return size / 8 / seconds(lambda: target.copy_(host, non_blocking=True), options) / 1e9

    def launch() -> float:
        value = torch.zeros(1, device=options.device)

        def thousand() -> None:
            for _ in range(1000):
                value.add_(1)

        return seconds(thousand, options) * 1e3

    return {
        "copy_tb_per_s": copy,
        "bf16_tflops": product,
        "upload_gb_per_s": upload,
        "microseconds_a_launch": launch,
    }


def main(options: Options) -> int:
    """Note every fact; what fails is a fact too."""
    lines = Lines(options.json)
    lines.note("python", platform.python_version())
    lines.attempt("packages", versions)
    lines.attempt("cpu", lambda: shell("lscpu | grep -E 'Model name|^CPU\\(s\\)|L2|L3'"))
    lines.attempt("cpus_usable", lambda: len(os.sched_getaffinity(0)))
    if options.device.startswith("cuda"):
        lines.attempt("device", device_facts)
        query = "name,driver_version,clocks.sm,clocks.mem,power.limit"
        lines.attempt(
            "nvidia_smi", lambda: shell(f"nvidia-smi --query-gpu={query} --format=csv,noheader")
        )
    for name, measure in ceilings(options).items():
        lines.attempt(name, measure)
    return int(bool(lines.failed))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))

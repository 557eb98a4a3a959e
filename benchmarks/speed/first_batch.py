"""Time from the start of a process to its first batch, with machine code and indexes cached.

    python -m benchmarks.speed.first_batch --shards 'in1k-sample-{0000..0003}.tar' [--runs 7]

Each run is a separate process, timed by its parent from before its start. The first run, which may
compile and index, is reported separately. The table has the medians and ranges of the others.
"""

import dataclasses
import statistics
import subprocess
import sys
import time

import tyro

from maskco_fast.bench.harness import machine

CHILD = """
import sys, time
from maskco_fast.loaders import ViewConfig, make_loader
imported = time.perf_counter()
with make_loader(sys.argv[2:], int(sys.argv[1]), views=ViewConfig.maskco()) as loader:
    opened = time.perf_counter()
    next(iter(loader))
print(opened - imported, time.perf_counter() - opened)
"""
PARTS = ("Python and imports", "open the shards", "first batch", "all")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Time the steps to the first batch."""

    shards: tuple[str, ...]
    """Tar shards or folders of images."""
    batch_size: int = 256
    runs: int = 7
    """Processes timed, after one that fills the caches."""


def one_run(options: Options) -> list[float]:
    """Seconds of each of `PARTS` in a new process."""
    began = time.perf_counter()
    command = [sys.executable, "-c", CHILD, str(options.batch_size), *options.shards]
    ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    whole = time.perf_counter() - began
    opening, batch = map(float, ended.stdout.split())
    return [whole - opening - batch, opening, batch, whole]


def main(options: Options) -> None:
    """Print the table."""
    print(machine())
    print(f"the run that filled the caches: {one_run(options)[-1]:.1f} s")
    print(f"{'':20}{'seconds':>9}  range")
    runs = [one_run(options) for _ in range(options.runs)]
    for name, times in zip(PARTS, zip(*runs)):
        print(f"{name:20}{statistics.median(times):9.2f}  {min(times):.2f} to {max(times):.2f}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

"""Rows of `maskco-fast bench` on a GPU: our loader beside DALI, nvJPEG and nvImageCodec.

    python -m benchmarks.gpu.rows --shards 'in1k-{0000..0015}.tar' --json rows.json

Decoding on the device competes with training for it; these rows have the device to themselves.
"""

import dataclasses
import pathlib
import sys
from dataclasses import dataclass

import tyro

from benchmarks.gpu.lines import Lines
from maskco_fast.bench import harness
from maskco_fast.bench.rows import ROWS
from maskco_fast.bench.setting import Setting
from maskco_fast.bench.timing import time_rows
from maskco_fast.loaders.system.cpus import usable_cpus

ON_GPU = tuple(name for name, row in ROWS.items() if "native_gpu" in (name, row.beside))


@dataclass(frozen=True, kw_only=True)
class Options:
    """Time loaders that decode or finish their views on a GPU."""

    shards: str
    """Shards of JPEGs."""
    rows: tuple[str, ...] = ON_GPU
    """Names of `maskco-fast bench`'s rows, timed one by one: a slow one costs no other its time."""
    batch: int = 256
    """Images a batch."""
    size: int = 224
    """Side of the views, pixels."""
    workers: int | None = None
    """Threads; None for one each usable CPU."""
    rounds: int = 3
    """Passes of each row, after one that is not counted."""
    seconds: float = 3.0
    """Of a pass, about."""
    json: pathlib.Path | None = None
    """Where the results are written, after each one."""


def main(options: Options) -> int:
    """Every row; one that fails is a line, and so is one whose package is missing."""
    lines = Lines(options.json)
    lines.note("machine", harness.machine())
    # The rows' processes are forked from one that finds the package in a plain checkout.
    if "benchmarks.gpu" not in harness.PRELOADED:
        harness.PRELOADED.insert(0, "benchmarks.gpu")
    setting = Setting(
        shards=(options.shards,),
        batch_size=options.batch,
        size=options.size,
        workers=options.workers or usable_cpus(),
        dtype="float16",
    )
    broken = False
    for name in options.rows:
        (result,) = time_rows([name], setting, rounds=options.rounds, seconds=options.seconds)
        lines.note(name, dataclasses.asdict(result))
        broken |= result.error is not None and not result.missing
    return int(broken)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))

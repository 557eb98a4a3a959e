"""The sweep before the study: settings of both methods, by seeds and test images of its own.

    python -m benchmarks.study sweep --train 'tiny20-train-{0000..0002}.tar' \\
        --test tiny20-val-0000.tar --folder study-sweep

Prints the settings by their mean accuracy, the mean of the probe's and the neighbours' at conv5.
The best of each method goes into `plan.METHODS` before the first run of the study; the images that
decide are not among those that the study measures.
"""

import json
import pathlib
from dataclasses import dataclass

import numpy as np

from benchmarks.study import plan
from benchmarks.study.run import Run, collect, run


@dataclass(frozen=True, kw_only=True)
class Sweep(Run):
    """Try settings of both methods, one option at a time."""

    folder: pathlib.Path = pathlib.Path("study-sweep")
    """Folder of the run folders and the results."""
    arms: tuple[str, ...] = tuple(arm.name for arm in plan.SWEEP_ARMS)
    seeds: tuple[int, ...] = plan.SWEEP_SEEDS
    steps: int = plan.SWEEP_STEPS


MEASURES = ("probe conv5", "knn conv5")


def sweep(config: Sweep) -> int:
    """Run what has no result yet and print the table; returns 1 where a run failed."""
    code = run(config)
    found: dict[str, list[float]] = {}
    for line in collect(config.folder).read_text(encoding="utf-8").splitlines():
        result = json.loads(line)
        values = result["measured"][str(result["steps"])]
        found.setdefault(result["arm"], []).append(np.mean([values[name] for name in MEASURES]))
    print(f"{'setting':44}{'top-1':>7}  by seed")
    for name, values in sorted(found.items(), key=lambda item: -np.mean(item[1])):
        by_seed = ", ".join(f"{value:.1f}" for value in values)
        print(f"{plan.find_arm(name).about:44}{np.mean(values):7.1f}  {by_seed}")
    return code

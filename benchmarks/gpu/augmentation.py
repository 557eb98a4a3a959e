"""The augmentation kernel by kernel: microseconds a batch, bytes a second, registers.

    python -m benchmarks.gpu.augmentation --json augmentation.json

`benchmarks.gpu.check` times the passes together, and beside other libraries.
"""

import pathlib
import sys
from dataclasses import dataclass
from typing import Any

import torch
import tyro

from benchmarks.gpu import check
from benchmarks.gpu.lines import Lines
from benchmarks.gpu.timeline import profile
from maskco_fast.kernels.augment import triton as augment_triton
from maskco_fast.kernels.plan import BLUR_SIGMA, JITTER


@dataclass(frozen=True, kw_only=True)
class Options:
    """Time each kernel of the augmentation."""

    batch: int = 256
    """Images a batch, two views each."""
    size: int = 224
    """Side of the views, pixels."""
    calls: int = 20
    """Batches profiled."""
    device: str = "cuda"
    """cuda, or cpu for a dry run, which has no kernels."""
    json: pathlib.Path | None = None
    """Where the results are written, after each one."""


def least_bytes(problem: check.Problem, size: int) -> dict[str, int]:
    """What each kernel must read and write at least, float16 out, by the plan rows."""
    rows = problem.rows.flatten(0, 1).cpu()
    count = len(rows)
    jittered = int((rows[:, JITTER] != 0).sum())
    blurred = int((rows[:, BLUR_SIGMA] > 0).sum())
    image = 3 * size**2
    return {
        "gray_sums": image * jittered,
        # A view that is blurred stays in bytes until the blur.
        "colour": image * (count + blurred + 2 * (count - blurred)),
        "blur": image * 3 * blurred,
    }


def kernels(options: Options, problem: check.Problem, call: Any) -> dict[str, Any]:
    """Microseconds, launches, GB/s of what must move, and registers of each kernel."""
    for _ in range(3):
        call()
    found = profile(call, options.calls, options.device)
    result: dict[str, Any] = {"busy": None if found is None else found.busy}
    for name, amount in least_bytes(problem, options.size).items():
        same = [one for one in (found.kernels if found else ()) if one.name.startswith(name)]
        microseconds = 1000 * sum(one.milliseconds for one in same)
        result[name] = {
            "microseconds": microseconds,
            "launches": sum(one.launches for one in same),
            "gb_per_s": amount / microseconds / 1e3 if microseconds else None,
            "registers": same[0].registers if same else None,
        }
    return result


def main(options: Options) -> int:
    """Both ends of the choice how many views one launch has, and the plain torch version."""
    lines = Lines(options.json)
    shared = check.Options(batch=options.batch, size=options.size, device=options.device)
    problem = check.make_problem(shared, options.device)
    reason = augment_triton.unusable(options.device)
    if reason is not None:
        lines.note("triton", {"left out": reason})
        augment = augment_triton.augmenter(options.size, torch.device(options.device))
        lines.attempt(
            "plain torch",
            lambda: kernels(
                options,
                problem,
                lambda: augment(problem.views, problem.rows, dtype=torch.float16),
            ),
        )
        return int(bool(lines.failed))
    made = check.triton_calls(shared, problem, options.device)
    for views in sorted({min(128, 2 * options.batch), 2 * options.batch}):
        name = f"triton, {views} views a launch"
        if name in made:
            lines.attempt(name, lambda name=name: kernels(options, problem, made[name]()))  # type: ignore[misc]
    return int(bool(lines.failed))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))

"""BatchNorm's kernels layer by layer: microseconds, and bytes a second beside a copy's.

    python -m benchmarks.gpu.batch_norm --json batch-norm.json

Each shape of ResNet-50's layers is run forward and backward on noise, with and without a residual.
A kernel's bytes are the tensors of the layer's size that it reads and writes.
"""

import pathlib
import sys
from dataclasses import dataclass
from typing import Any

import torch
import tyro

from benchmarks.gpu.lines import Lines
from benchmarks.gpu.timeline import profile
from maskco_fast.kernels.batch_norm import triton as operators

LAYERS = (
    (64, 2),
    (64, 4),
    (256, 4),
    (128, 8),
    (512, 8),
    (256, 16),
    (1024, 16),
    (512, 32),
    (2048, 32),
)
"""Channels, and the side of the views over the layer's."""
TENSORS = {
    "moments": (1, 1),
    "normalise": (2, 3),
    "gradient_sums": (2, 4),
    "input_gradient": (3, 3),
}
"""Tensors of the layer's size that a kernel reads and writes: without a residual, and with one."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Time each kernel of BatchNorm."""

    batch: int = 256
    """Images."""
    group: int = 32
    """Images that share BatchNorm."""
    size: int = 224
    """Side of the views, pixels."""
    calls: int = 5
    """Passes profiled."""
    device: str = "cuda"
    """cuda, or cpu for a dry run, which has no kernels."""
    json: pathlib.Path | None = None
    """Where the results are written, after each one."""


def layer(options: Options, channels: int, side: int, with_residual: bool) -> dict[str, Any]:
    """Microseconds and TB/s of each kernel for one layer."""
    groups = options.batch // options.group
    shape = (options.batch, channels, side, side)

    def noise() -> torch.Tensor:
        drawn = torch.randn(shape, device=options.device).bfloat16()
        return drawn.contiguous(memory_format=torch.channels_last)

    x = noise().requires_grad_()
    residual = noise().requires_grad_() if with_residual else None
    gradient = noise()
    weight, bias, mean, variance = torch.rand(4, channels, device=options.device)
    weight.requires_grad_()
    bias.requires_grad_()

    def call() -> None:
        out = operators.batch_norm(
            x,
            residual,
            weight,
            bias,
            (mean, variance, None),
            groups=groups,
            momentum=0.1,
            eps=1e-5,
            relu=True,
        )
        out.backward(gradient)
        x.grad = weight.grad = bias.grad = None
        if residual is not None:
            residual.grad = None

    for _ in range(2):
        call()
    found = profile(call, options.calls, options.device)
    result = {}
    for kernel in found.kernels if found else ():
        entry: dict[str, Any] = {
            "microseconds": 1000 * kernel.milliseconds,
            "registers": kernel.registers,
        }
        if kernel.name in TENSORS:
            moved = TENSORS[kernel.name][with_residual] * x.numel() * x.element_size()
            entry["tb_per_s"] = moved / kernel.milliseconds / 1e9
        if kernel.name in TENSORS or kernel.name in ("statistics", "gradient_means"):
            result[kernel.name] = entry
    return result


def main(options: Options) -> int:
    """Every layer's shape."""
    lines = Lines(options.json)
    if not operators.usable(torch.device(options.device)):
        lines.note("triton", {"left out": f"no Triton kernels on {options.device}"})
        return 0
    for channels, over in LAYERS:
        side = options.size // over
        for with_residual in (False, True) if channels >= 256 else (False,):
            name = f"{channels} x {side} x {side}{' with residual' if with_residual else ''}"
            lines.attempt(name, lambda: layer(options, channels, side, with_residual))  # noqa: B023
    return int(bool(lines.failed))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))

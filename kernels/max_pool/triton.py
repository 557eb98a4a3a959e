"""Max-pooling 3 x 3 with stride 2 and padding 1 on CUDA by Triton kernels, differentiable.

Forward: reads the input once, writes output and one byte of each window's place; backward: reads
both, writes the input's gradient, without atomic operations. Triton is imported at the first call.
"""

import math
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from ..augment.triton import on
from ..batch_norm import triton as batch_norm

PIXELS = 16
"""Pixels of a program."""
CHANNELS = 64
"""Channels of a program, of 2 or 4 bytes: with 4 warps a thread has vectors of 16 bytes."""
OPTIONS = {"num_warps": 4}


def fits(x: torch.Tensor) -> bool:
    """Whether the kernels take the tensor: as BatchNorm's, and in no graph that torch compiles."""
    return not batch_norm.visible() and batch_norm.fits(x, None)


def max_pool(x: torch.Tensor) -> torch.Tensor:
    """Pool channels-last `x` (N, C, H, W), of which `fits` is true: (N, C, ⌈H/2⌉, ⌈W/2⌉).

    Values, and the choice among equal ones, are those of `torch.nn.functional.max_pool2d`.
    """
    return _MaxPool.apply(x)


class _MaxPool(torch.autograd.Function):
    """Keeps each window's place for the backward pass, and not its input."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        from . import triton_kernels as kernels

        count, channels, height, width = x.shape
        ctx.shape = x.shape
        shape = (count, channels, (height + 1) // 2, (width + 1) // 2)
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        tap = torch.empty_like(out, dtype=torch.uint8)
        pixels = count * shape[2] * shape[3]
        with on(x):
            kernels.pool[_grid(pixels, channels)](
                x, out, tap, pixels, height, width, *shape[2:],
                CHANNELS=channels, TILE_CHANNELS=CHANNELS, PIXELS=PIXELS, **OPTIONS,
            )  # fmt: skip
        ctx.save_for_backward(tap)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        from . import triton_kernels as kernels

        (tap,) = ctx.saved_tensors
        count, channels, height, width = ctx.shape
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        out = torch.empty(
            ctx.shape,
            dtype=gradient.dtype,
            device=gradient.device,
            memory_format=torch.channels_last,
        )
        pixels = count * height * width
        with on(gradient):
            kernels.pool_gradient[_grid(pixels, channels)](
                gradient, tap, out, pixels, height, width, *gradient.shape[2:],
                CHANNELS=channels, TILE_CHANNELS=CHANNELS, PIXELS=PIXELS, **OPTIONS,
            )  # fmt: skip
        return out


def _grid(pixels: int, channels: int) -> tuple[int, int]:
    return math.ceil(pixels / PIXELS), math.ceil(channels / CHANNELS)

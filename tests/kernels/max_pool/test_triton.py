"""The Triton kernels of max-pooling against torch's operator: values, ties, NaN, gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

pytest.importorskip("triton")

from maskco_fast.kernels.max_pool.triton import max_pool

Run = Callable[..., Any]


def made(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Channels-last values after a ReLU, so that many are equal; with a NaN, and infinities."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)).relu()
    values[0, 0, 1, 1] = torch.nan
    values[-1, -1] = -torch.inf
    values[-1, 0, 0, 0] = torch.inf
    return values.to(dtype).contiguous(memory_format=torch.channels_last)


def pooled(device: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and input's gradient of the kernels."""
    x = x.to(device).requires_grad_()
    out = max_pool(x)
    assert out.is_contiguous(memory_format=torch.channels_last)
    out.backward(gradient(out))
    assert x.grad is not None
    return out.detach().cpu(), x.grad.cpu()


def gradient(out: torch.Tensor) -> torch.Tensor:
    """Whole numbers, whose sums are exact; not channels-last, as a loss may give it."""
    number = torch.arange(out.numel(), device=out.device) % 50
    return number.reshape(out.shape).to(out.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(2, 64, 8, 6), (3, 10, 5, 7), (1, 130, 3, 4)])
def test_is_torchs_to_the_bit(run: Run, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = made(shape, dtype)
    out, found = run(pooled, x)
    leaf = x.clone().requires_grad_()
    expected = functional.max_pool2d(leaf, 3, 2, 1)
    expected.backward(gradient(expected))
    assert leaf.grad is not None
    torch.testing.assert_close(out, expected.detach(), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(found, leaf.grad)

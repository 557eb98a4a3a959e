"""The Triton kernels of max-pooling compiled: no spills, vectors, whole cache lines."""

import pytest
import torch

pytest.importorskip("triton", "3.3", reason="compiling offline takes Triton 3.3 or newer")

from benchmarks.estimates.compile import compile_max_pool


@pytest.mark.parametrize("architecture", [80, 90, 100])
@pytest.mark.parametrize("kernel", ["pool", "pool_gradient"])
def test_registers_and_vectors(kernel: str, architecture: int) -> None:
    result = compile_max_pool(kernel, architecture, torch.bfloat16)
    assert result.spilled == 0
    assert result.registers <= 128
    tensors = [access for access in result.warp if access.argument in ("x", "gradient", "out")]
    assert tensors
    # The places of windows, a byte each, are read beside 8 or 16 bytes of their gradients.
    assert min(access.width for access in tensors) == (16 if kernel == "pool" else 8)
    assert max(result.spreads.values()) == 1

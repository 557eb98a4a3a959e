"""Tests that run on the CPU and, marked `gpu`, on a CUDA device by the same body."""

import contextlib
from collections.abc import Iterator

import pytest
import torch

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
"""Values of a test's parameter `device`."""


def lag(device: str) -> None:
    """Keep a CUDA device busy for about 30 ms, so that the host gets ahead of it."""
    if device == "cuda":
        torch.cuda._sleep(50_000_000)  # cycles


@contextlib.contextmanager
def another_stream(device: str) -> Iterator[None]:
    """Make another stream current, where the device has streams."""
    if device != "cuda":
        yield
        return
    with torch.cuda.stream(torch.cuda.Stream()):
        yield


@contextlib.contextmanager
def waits_are_errors(device: str) -> Iterator[None]:
    """Make torch raise where the host waits for a CUDA device."""
    if device != "cuda":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")

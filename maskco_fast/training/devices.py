"""Where a run computes, and in which precision."""

import contextlib
import ctypes
import pathlib
from typing import Literal

import torch

from maskco_fast.kernels.errors import InvalidInput

Precision = Literal["fp32", "bf16", "fp16"]

DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""Of the networks' arithmetic and of the views, by `TrainConfig.precision`."""


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """`auto` is CUDA where there is any, and CUDA without a number the device of that local rank.

    ValueError for a device that is not here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidInput(f"device is {name!r}; it wants auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InvalidInput(f"device is {name!r}, but torch finds no CUDA device here")
    if device.type == "cuda" and device.index >= torch.cuda.device_count():
        raise InvalidInput(
            f"device is {name!r}, but there are {torch.cuda.device_count()} here; one process takes one"
        )
    return device


def choose_precision(name: str, device: torch.device) -> Precision:
    """`auto` is bf16 wherever the hardware multiplies it. ValueError for fp16 on a CPU."""
    if name == "auto":
        return "bf16" if device.type == "cuda" or has_bf16_instructions() else "fp32"
    if name == "fp16" and device.type != "cuda":
        raise InvalidInput("precision fp16 wants CUDA; on a CPU take bf16 or fp32")
    return name  # type: ignore[return-value]


def has_bf16_instructions() -> bool:
    """Whether this CPU multiplies bfloat16 itself (AMX, AVX512-BF16, Arm's BF16); False where Linux
    does not tell.

    Without them bf16 is emulated: on a Cascade Lake a ResNet-18 step took 1.8-2.3 times as long as
    in float32.
    """
    facts = pathlib.Path("/proc/cpuinfo")
    if not facts.exists():
        return False
    return not {"amx_bf16", "avx512_bf16", "bf16"}.isdisjoint(facts.read_text().split())


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees: a step's tensors are as large as those of the
    step before.

    glibc hands large blocks back, and the system clears every page anew: a tenth of a ResNet-50's
    step on a CPU. For a program to call that computes there, before it makes tensors; where there
    is another C library, nothing happens.
    """
    trim_threshold, mmap_max = -1, -4  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_MAX
    with contextlib.suppress(AttributeError, OSError):
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(trim_threshold, 2**31 - 1)
        library.mallopt(mmap_max, 0)

"""The device and the precision of a run."""

import contextlib
import ctypes
from typing import Literal

import torch

from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders.system.cpus import cpu_model

Precision = Literal["fp32", "bf16", "fp16"]

DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""Precision to the dtype of the networks' arithmetic and of the views."""


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device named auto, cpu, cuda or cuda:N.

    `auto` is CUDA if torch finds a CUDA device, otherwise the CPU. CUDA without a number is the
    device of `local_rank`. Raises InvalidInput for a device that does not exist here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidInput(f"`device` must be auto, cpu, cuda or cuda:N, got {name!r}.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InvalidInput(
            f"`device` is {name!r}, but torch finds no CUDA device here. Use cpu, or run "
            "`maskco-fast doctor`."
        )
    if device.type == "cuda" and device.index >= torch.cuda.device_count():
        raise InvalidInput(
            f"`device` is {name!r}, but this host has {torch.cuda.device_count()} CUDA devices. "
            "Start at most one process a device."
        )
    return device


def choose_precision(name: str, device: torch.device) -> Precision:
    """The precision named auto, fp32, bf16 or fp16.

    `auto` is bf16 on CUDA and on CPUs with bf16 instructions, otherwise fp32. Raises InvalidInput
    for fp16 on a CPU.
    """
    if name == "auto":
        return "bf16" if device.type == "cuda" or has_bf16_instructions() else "fp32"
    if name == "fp16" and device.type != "cuda":
        raise InvalidInput(
            f"`precision` fp16 requires CUDA, got device {device}. Use bf16 or fp32 on a CPU."
        )
    return name  # type: ignore[return-value]


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context of a network's arithmetic in this precision; changes nothing for fp32."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")


def configure_cuda(
    device: torch.device, *, tf32: bool = False, cudnn_benchmark: bool = False
) -> None:
    """Make a CUDA device current in this process, and set how it computes; nothing on a CPU.

    - `tf32`: whether float32 products and convolutions are rounded to TF32, with 10 bits of
      fraction, in the tensor cores. torch's own default is yes for convolutions, no for products.
    - `cudnn_benchmark`: whether cuDNN times its algorithms for each new shape and takes the
      fastest. A resumed run may then take others, with other last bits.
    """
    if device.type != "cuda":
        return
    torch.cuda.set_device(device)
    torch.backends.cudnn.benchmark = cudnn_benchmark
    torch.backends.cudnn.allow_tf32 = tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")


def describe_arithmetic(precision: Precision, device: torch.device) -> str:
    """Precision and device, and on CUDA what `configure_cuda` has set.

    For example `bf16 on cuda:0 (float32 without TF32, cuDNN benchmark on)`.
    """
    if device.type != "cuda":
        return f"{precision} on {device}"
    with_tf32 = "with" if torch.backends.cudnn.allow_tf32 else "without"
    benchmark = "on" if torch.backends.cudnn.benchmark else "off"
    return f"{precision} on {device} (float32 {with_tf32} TF32, cuDNN benchmark {benchmark})"


def has_bf16_instructions() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AMX, AVX512-BF16 or Arm's BF16).

    Other CPUs emulate bf16, which is slower than float32. False on systems without /proc/cpuinfo.
    """
    return not {"amx_bf16", "avx512_bf16", "bf16"}.isdisjoint(cpu_model()[1])


def keep_freed_memory() -> None:
    """Make glibc keep freed memory in this process instead of returning it to the system.

    A step's tensors are as large as those of the step before. Without this call glibc returns large
    blocks, and the system clears every page again before the next step. Call it before the first
    tensor is made, in a program that computes on the CPU. Does nothing with other C libraries.
    """
    trim_threshold = -1  # M_TRIM_THRESHOLD in malloc.h
    mmap_max = -4  # M_MMAP_MAX
    with contextlib.suppress(AttributeError, OSError):
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(trim_threshold, 2**31 - 1)
        library.mallopt(mmap_max, 0)

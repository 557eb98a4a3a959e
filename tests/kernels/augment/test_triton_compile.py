"""The Triton kernels compiled for three architectures: registers, spills and 16-byte accesses.

No GPU is needed. The bounds are a little above what Triton 3.8 reaches, so that a change that
ruins a kernel fails.
"""

import re
from typing import Any

import pytest
import torch

pytest.importorskip("triton", "3.3", reason="compiling offline takes Triton 3.3 or newer")

from benchmarks.estimates.compile import Variant, compile_variant
from benchmarks.estimates.instructions import model
from maskco_fast.loaders import ViewConfig

REGISTERS = {"gray_sums": (96, 96, 128), "colour": (96, 96, 128), "blur": (200, 200, 200)}
"""Most registers a thread, on sm_80, sm_90 and sm_100."""
SHARED = {"gray_sums": 64, "colour": 8192, "blur": 16384}
"""Most bytes of shared memory a program."""
VECTOR_LOADS = {"gray_sums": 3, "colour": 3, "blur": 4}
OUTPUT_STORES = {torch.float16: 6, torch.bfloat16: 6, torch.float32: 12, torch.uint8: 3}
"""16-byte vectors of a thread's 16 pixels."""
SPREAD = {"views": 3, "levels": 4, "out": 1}
"""Most cache lines that a warp's access touches, over the least. The three loads of a group's 48
bytes touch the same lines; so do the four of a row of levels."""
WORKSPACE_STORES = 3
WRITTEN_FMA = 3 + 3 + 7 + 7 + 3
"""Fused multiply-adds a pixel: brightness, contrast, saturation, hue, gray."""
FLOORS = 3 + 3 + 4 + 3 + 1
INSTRUCTIONS = {"gray_sums": 72, "colour": 125, "blur": 215}
"""Most instructions a pixel of a view that the kernel works on."""


def compiled(**variant: Any) -> Any:
    """Compile one variant of a kernel."""
    return compile_variant(Variant(**variant))


VARIANTS = [
    *[
        {"kernel": kernel, "architecture": sm}
        for kernel in ("gray_sums", "colour", "blur")
        for sm in (80, 90, 100)
    ],
    {"kernel": "colour", "architecture": 90, "dtype": torch.float32},
    {"kernel": "blur", "architecture": 90, "dtype": torch.float32},
    {"kernel": "colour", "architecture": 90, "dtype": torch.bfloat16},
    {
        "kernel": "colour",
        "architecture": 90,
        "dtype": torch.uint8,
        "masked": False,
        "flipped": True,
    },
]


@pytest.mark.parametrize(
    "variant", VARIANTS, ids=lambda v: "-".join(str(value) for value in v.values())
)
def test_registers_shared_memory_and_vectors(variant: dict[str, Any]) -> None:
    """No spills, registers and shared memory in bounds, every access to pixels 16 bytes wide."""
    result = compiled(**variant)
    kernel, dtype = variant["kernel"], variant.get("dtype", torch.float16)
    assert result.spilled == 0
    assert result.registers <= REGISTERS[kernel][(80, 90, 100).index(variant["architecture"])]
    assert result.shared <= SHARED[kernel]
    loads = {name: n for name, n in result.accesses.items() if name.startswith("ld.global")}
    stores = {name: n for name, n in result.accesses.items() if name.startswith("st.global")}
    assert loads.pop("ld.global.v4.b32") == VECTOR_LOADS[kernel]
    assert set(loads) == {"ld.global.b32"}, (
        "anything but the plan's numbers is read in less than 16 bytes"
    )
    if kernel == "gray_sums":
        assert stores == {"st.global.b32": 1}
    else:
        # `colour` has a thread for every vector, and for each fourth one that does not exist.
        expected = OUTPUT_STORES[dtype] * 4 // 3 + WORKSPACE_STORES
        assert stores == {
            "st.global.v4.b32": expected if kernel == "colour" else OUTPUT_STORES[dtype]
        }
    for argument, spread in SPREAD.items():
        assert result.spreads.get(argument, 1) <= spread
    assert kernel != "colour" or result.spreads["out"] == 1


def test_blurs_loop_carries_two_channels() -> None:
    """Triton 3.6 and 3.8 merged three that were handed along, and red came out as zeros."""
    carried = re.findall(
        r"iter_args\(.*?\) -> \((.*?)\)  : i32", compiled(kernel="blur", architecture=90).ttgir
    )
    assert [types.count("tensor<32x32xf16") for types in carried] == [2]


@pytest.mark.parametrize("kernel", ["gray_sums", "colour"])
def test_colour_arithmetic_rounds_as_written(kernel: str) -> None:
    """No fused multiply-add but the written ones, whose products are exact, and no approximate
    division: they would truncate to other levels. Sums are truncated by additions."""
    ptx = compiled(kernel=kernel, architecture=90).ptx
    assert len(re.findall(r"\bmul(?:\.rn)?\.f32", ptx)) > 10
    assert len(re.findall(r"\bfma\.[\w.]*f32", ptx)) == 16 * WRITTEN_FMA
    assert len(re.findall(r"\badd\.rz\.f32", ptx)) == 16 * FLOORS
    assert not re.findall(r"\bdiv\.(?:full|approx)", ptx)


def test_half_precision_is_rounded_to_nearest() -> None:
    """The interpreter truncates to bfloat16; compiled code must round to nearest."""
    ptx = compiled(kernel="colour", architecture=90, dtype=torch.bfloat16).ptx
    assert re.findall(r"\bcvt\.rn\.bf16", ptx)
    assert not re.findall(r"\bcvt\.rz\.bf16", ptx)


@pytest.mark.parametrize("kernel", INSTRUCTIONS)
def test_instructions_a_pixel(kernel: str) -> None:
    found = model(kernel, ViewConfig.maskco())
    assert INSTRUCTIONS[kernel] / 2 < 32 * found.instructions / found.pixels < INSTRUCTIONS[kernel]
    assert found.floor < found.issue


def test_blur_runs_on_tensor_cores() -> None:
    ptx = compiled(kernel="blur", architecture=90).ptx
    assert len(re.findall(r"\bmma\.sync\.aligned\.m16n8k16\S*f32\.f16\.f16\.f32", ptx)) == 112


@pytest.mark.parametrize(
    ("kernel", "architecture", "size", "dtype"),
    [
        ("gray_sums", 100, 33, torch.float16),
        ("colour", 80, 33, torch.float32),
        ("colour", 90, 33, torch.float16),
        ("colour", 100, 511, torch.float16),
        ("blur", 100, 225, torch.float16),
    ],
)
def test_odd_sizes_do_not_spill(
    kernel: str, architecture: int, size: int, dtype: torch.dtype
) -> None:
    """The worst cases of a sweep over sizes, dtypes and flips; each has spilled under other
    compiler options."""
    result = compiled(
        kernel=kernel, architecture=architecture, size=size, dtype=dtype, flipped=size == 511
    )
    assert result.spilled == 0
    assert result.registers <= (224 if kernel == "blur" else 80)


def test_scattered_views_are_read_byte_by_byte() -> None:
    """Byte-wide loads are seen in the PTX, so that the check of accesses above can fail."""
    result = compiled(kernel="gray_sums", architecture=90, dense=False)
    assert result.accesses["ld.global.v4.b32"] == 0
    assert result.accesses["ld.global.b8"] == 48
    assert result.spilled == 0

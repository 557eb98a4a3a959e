"""The BatchNorm kernels compiled for three architectures: registers, spills, contiguous warps."""

import re
from typing import Any

import pytest
import torch

pytest.importorskip("triton", "3.3", reason="compiling offline takes Triton 3.3 or newer")

from benchmarks.estimates.compile import BatchNormVariant, Compiled, compile_batch_norm
from benchmarks.estimates.warp_accesses import warp_accesses
from maskco_fast.kernels.batch_norm import triton as operators

TENSORS = {"x", "residual", "out", "gradient", "output", "masked"}
"""Arguments as large as the layer; the others are vectors and partial sums."""
REGISTERS = {
    "moments": 80,
    "normalise": 96,
    "gradient_sums": 80,
    "input_gradient": 128,
    "fork_gradient": 128,
    "statistics": 255,
    "gradient_means": 255,
}
CASES: list[tuple[int, str, dict[str, Any]]] = [
    (80, "moments", {}),
    (90, "moments", {"channels": 64}),
    (100, "moments", {"dtype": torch.float32}),
    (90, "normalise", {"residual": True}),
    (100, "normalise", {"channels": 64}),
    (80, "normalise", {"dtype": torch.float16, "residual": True}),
    (80, "gradient_sums", {}),
    (90, "gradient_sums", {"mask": operators.MASK_BY_OUTPUT}),
    (90, "gradient_sums", {"channels": 64}),
    (100, "gradient_sums", {"mask": operators.MASK_BY_OUTPUT}),
    (100, "gradient_sums", {"mask": operators.MASK_BY_OUTPUT, "dtype": torch.float32}),
    (80, "input_gradient", {"mask": operators.NO_MASK}),
    (90, "input_gradient", {}),
    (100, "input_gradient", {"channels": 64}),
    (90, "fork_gradient", {}),
    (90, "statistics", {}),
    (90, "gradient_means", {}),
]
VARIANTS = [
    BatchNormVariant(kernel=kernel, architecture=architecture, **options)
    for architecture, kernel, options in CASES
]


def inside_loops(compiled: Compiled) -> str:
    """Triton's own code of the loops."""
    return "".join(re.findall(r"^( *)(?:%.* = )?scf\.for(.*?)^\1}", compiled.ttgir, re.M | re.S)[0])


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: f"{v.kernel}-sm{v.architecture}")
def test_registers_and_contiguous_warps(variant: BatchNormVariant) -> None:
    """No spills, registers in bounds; a warp reads and writes whole lines, 16 bytes a thread."""
    result = compile_batch_norm(variant)
    assert result.spilled == 0
    assert result.registers <= REGISTERS[variant.kernel]
    tensors = [access for access in result.warp if access.argument in TENSORS]
    if variant.kernel == "moments":  # an element a thread of the rows that are sampled
        narrow = [one for one in tensors if ".v4" not in one.instruction]
        assert len(narrow) == 8
        assert all(one.spread == 1 for one in narrow)
        tensors = [one for one in tensors if ".v4" in one.instruction]
    assert all(access.argument for access in result.warp), "an address is unknown"
    assert all(access.instruction[2:] == ".global.v4.b32" for access in tensors)
    assert all(access.spread == 1 for access in tensors)
    assert max(result.spreads.values()) <= 2
    if variant.kernel in operators.SHAPES:
        assert len(tensors) >= operators.SHAPES[variant.kernel].deep
        if variant.kernel in ("moments", "gradient_sums"):
            needed = operators.REDUCE_A_MULTIPROCESSOR
            assert result.programs >= needed, "programs would wait for others to end"
        # Threads exchange values after the loop, never in it.
        assert "convert_layout" not in inside_loops(result)
        assert "tt.load" in inside_loops(result)


@pytest.mark.parametrize("kernel", ["gradient_sums", "input_gradient"])
def test_odd_channels_do_not_spill(kernel: str) -> None:
    """Without vectors; a warp's elements still follow each other."""
    result = compile_batch_norm(
        BatchNormVariant(kernel=kernel, architecture=90, channels=10, mask=operators.MASK_BY_OUTPUT)
    )
    assert result.spilled == 0
    # 20 bytes a row: a warp's 64 bytes may cross from one line into the next.
    assert result.spreads["gradient"] == result.spreads["x"] <= 2


PTX = """.visible .entry kernel(.param .u64 kernel_param_0) {
    ld.param.b64 %rd1, [kernel_param_0];
    mov.u32 %r1, %tid.x;
    mul.lo.s32 %r2, %r1, STEP; // floats
    setp.lt.s32 %p1, %r1, 16;
    mad.wide.s32 %rd2, %r2, 4, %rd1;
    @%p1 ld.global.v4.b32 { %r3, %r4, %r5, %r6 }, [ %rd2 + 0 ];
    add.s32 %r7, %r3, %r1;
    mad.wide.s32 %rd3, %r7, 4, %rd1;
    st.global.b32 [ %rd3 + 0 ], { %r7 };
}"""


@pytest.mark.parametrize(("step", "spread"), [(4, 1), (8, 2), (12, 3), (24, 6), (32, 8), (0, 1)])
def test_scattered_warps_are_seen(step: int, spread: float) -> None:
    """16 lanes of 16 bytes fill two lines; addresses that depend on loaded values are unknown."""
    load, store = warp_accesses(PTX.replace("STEP", str(step)), {"data": None})
    assert (load.argument, load.width, load.spread) == ("data", 16, spread)
    assert store.addresses is None
    assert store.argument == ""

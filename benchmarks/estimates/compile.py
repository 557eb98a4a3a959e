"""Compiles the device kernels for NVIDIA architectures without a GPU; prints registers, spills and
memory accesses: their width in a thread, and their spread over the cache lines in a warp.

    python -m benchmarks.estimates.compile

The table covers sm_80 (A100), sm_90 (H100) and sm_100 (B200). Triton ships the compiler, the
assembler and the tool that reads the machine code. tests/kernels/augment/test_triton_compile.py
and tests/kernels/batch_norm/test_triton_compile.py hold the figures.
"""

import dataclasses
import importlib
import pathlib
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import tyro

from benchmarks.estimates.warp_accesses import Access, warp_accesses
from maskco_fast.kernels.augment import triton as augment_triton
from maskco_fast.kernels.batch_norm import triton as batch_norm_triton
from maskco_fast.kernels.max_pool import triton as max_pool_triton
from maskco_fast.kernels.torch_formats import FORMATS

ARCHITECTURES = (80, 90, 100)
KERNELS = ("gray_sums", "colour", "blur")
# Multiples of 16 bytes for dense views of a size that is a multiple of 16.
ALIGNED_STRIDES = ("stride_v", "stride_n", "stride_y")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compile the device kernels and print their resources."""

    architectures: tuple[int, ...] = ARCHITECTURES
    """Compute capabilities, 10 · major + minor."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One specialisation of a kernel, as `augment_triton.augment` would launch it."""

    kernel: str
    architecture: int
    """Compute capability, 10 · major + minor."""
    size: int = 224
    dtype: torch.dtype = torch.float16
    masked: bool = True
    flipped: bool = False
    dense: bool = True


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """The machine code of a variant."""

    registers: int
    """Registers a thread."""
    spilled: int
    """Bytes of stack and local memory a thread."""
    shared: int
    """Bytes of shared memory a program, without the kilobyte that the system reserves from sm_90
    on."""
    warps: int
    accesses: Counter[str]
    """Loads and stores by PTX instruction, such as `ld.global.v4.b32`."""
    warp: list[Access]
    """The global loads and stores of one warp."""
    ptx: str
    ttgir: str
    """Triton's own form, with the layout of every tensor over the threads."""
    cubin: bytes
    """The machine code."""

    @property
    def spreads(self) -> dict[str, float]:
        """Pointer argument to the worst spread of a warp's accesses to it, without unknown ones."""
        found: dict[str, float] = {}
        for access in self.warp:
            if access.argument:
                found[access.argument] = max(access.spread, found.get(access.argument, 1.0))
        return found

    @property
    def programs(self) -> int:
        """Programs that fit a multiprocessor's 65 536 registers (allocated in units of 256 a warp)
        and 64 warps."""
        of_a_warp = -(-self.registers * 32 // 256) * 256
        return min(65536 // (of_a_warp * self.warps), 64 // self.warps)


def compile_variant(variant: Variant, *, package: str = augment_triton.__package__) -> Compiled:
    """Compile one variant, of the kernels and the settings of a package.

    Raises RuntimeError where the machine code cannot be read.
    """
    kernels = importlib.import_module(f"{package}.triton_kernels")
    launcher = importlib.import_module(f"{package}.triton")
    size = variant.size
    scalars = {
        "stride_v": 256 * 3 * size**2,
        "stride_n": 3 * size**2,
        "stride_y": 3 * size,
        "stride_x": 3,
        "stride_c": 1,
        "stride_pv": 256 * 17,
        "stride_pn": 17,
        "stride_pc": 1,
        "stride_box": 4,
        "stride_side": 1,
        "boxes": 256,
        "batch": 256,
    }
    options_of = launcher.blur_options if variant.kernel == "blur" else launcher.colour_options
    return compile_kernel(
        getattr(kernels, variant.kernel),
        variant.architecture,
        types={
            "views": "*u8",
            "parameters": "*fp32",
            "box": "*fp32",
            "sums": "*i32",
            "levels": "*u8",
            "out": "*" + FORMATS[variant.dtype].triton,
        },
        constants=_constants(variant, getattr(kernels, variant.kernel).arg_names, launcher),
        aligned=ALIGNED_STRIDES if variant.dense else (),
        options=options_of(size),
        scalars=scalars,
    )


@dataclass(frozen=True, kw_only=True)
class BatchNormVariant:
    """One specialisation of a BatchNorm kernel, as the operators of `batch_norm_triton` launch it.

    The tensor is that of ResNet-50's second stage: 8 groups of 32 images of 28 x 28 pixels.
    """

    kernel: str
    architecture: int
    channels: int = 256
    dtype: torch.dtype = torch.bfloat16
    residual: bool = False
    mask: int = batch_norm_triton.MASK_BY_INPUT


def compile_batch_norm(variant: BatchNormVariant) -> Compiled:
    """Compile one variant. Raises RuntimeError where the machine code cannot be read."""
    from maskco_fast.kernels.batch_norm import triton_kernels as kernels

    function = getattr(kernels, variant.kernel)
    problem = batch_norm_triton.Problem(
        8, 32 * 28 * 28, variant.channels, variant.dtype.itemsize, 132
    )
    tiled = variant.kernel in batch_norm_triton.SHAPES
    plan = problem.plan(variant.kernel if tiled else "moments")
    join_groups, join_chunks = batch_norm_triton.join_shape(problem.groups, plan.chunks)
    constants = {
        "TILE_ROWS": plan.tile.rows,
        "TILE_CHANNELS": plan.tile.channels,
        "EVEN": plan.tile.even,
        "DEEP": batch_norm_triton.SHAPES[variant.kernel].deep if tiled else 0,
        "HAS_RESIDUAL": variant.residual,
        "RELU": True,
        "MASK": variant.mask,
        "GROUPS": join_groups,
        "CHUNKS": join_chunks,
        "CHANNELS": batch_norm_triton.JOINED,
        "COUNTED": True,
        "STRIDE": 2,
    }
    tensors = ("x", "residual", "out", "gradient", "output", "masked")
    vectors = ("partials", "mean", "inverse", "running_mean", "running_var", "weight", "bias")
    vectors += ("shift", "slope", "of_weight", "of_bias")  # type: ignore[assignment]
    scalars = {"groups": problem.groups, "rows": problem.rows, "channels": variant.channels}
    scalars |= {"chunk": plan.chunk, "chunks": plan.chunks, "tiles": plan.tiles}
    scalars |= {"height": 28, "width": 28}
    return compile_kernel(
        function,
        variant.architecture,
        types={
            **dict.fromkeys(tensors, "*" + FORMATS[variant.dtype].triton),
            **dict.fromkeys(vectors, "*fp32"),
            "batches": "*i64",
            "momentum": "fp32",
            "eps": "fp32",
        },
        constants={name: value for name, value in constants.items() if name in function.arg_names},
        aligned=("channels",) if variant.channels % 16 == 0 else (),
        options=batch_norm_triton.options_of(variant.kernel, plan.tile.even),
        scalars=scalars,
    )


def compile_max_pool(kernel: str, architecture: int, dtype: torch.dtype) -> Compiled:
    """Compile `pool` or `pool_gradient` for ResNet's 64 channels."""
    from maskco_fast.kernels.max_pool import triton_kernels as kernels

    return compile_kernel(
        getattr(kernels, kernel),
        architecture,
        types={
            **dict.fromkeys(("x", "gradient", "out"), "*" + FORMATS[dtype].triton),
            "tap": "*u8",
        },
        constants={
            "CHANNELS": 64,
            "TILE_CHANNELS": max_pool_triton.CHANNELS,
            "PIXELS": max_pool_triton.PIXELS,
        },
        aligned=(),
        options=max_pool_triton.OPTIONS,
        scalars={"pixels": 2**20, "height": 112, "width": 112, "out_height": 56, "out_width": 56},
    )


def compile_kernel(
    function: Any,
    architecture: int,
    *,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    aligned: Sequence[str],
    options: Mapping[str, Any],
    scalars: Mapping[str, int],
) -> Compiled:
    """Compile a kernel, and read its resources and a warp's accesses.

    `types`: of the arguments that are not int32; pointers start at multiples of 16 bytes, and the
    arguments of `aligned` are multiples of 16. `scalars`: values of the int32 ones, 0 unless given,
    for the addresses.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = function.arg_names
    signature = {
        name: "constexpr" if name in constants else types.get(name, "i32") for name in names
    }
    pointers = [name for name in names if signature[name].startswith("*")]
    attributes = {
        (names.index(name),): [["tt.divisibility", 16]]
        for name in [*pointers, *aligned]
        if name in names
    }
    compiled = triton.compile(
        ASTSource(function, signature, constexprs=dict(constants), attrs=attributes),
        target=GPUTarget("cuda", architecture, 32),
        options=dict(options),
    )
    registers, spilled = _usage(compiled.asm["cubin"])
    ptx = compiled.asm["ptx"]
    arguments = {
        name: None if name in pointers else scalars.get(name, 0)
        for name in names
        if name not in constants
    }
    return Compiled(
        registers=registers,
        spilled=spilled,
        shared=compiled.metadata.shared,
        warps=compiled.metadata.num_warps,
        accesses=Counter(re.findall(r"\b((?:ld|st)\.(?:global|shared|local)[\w.:]*)", ptx)),
        warp=warp_accesses(ptx, arguments, program=3, programs=64),
        ptx=ptx,
        ttgir=compiled.asm["ttgir"],
        cubin=compiled.asm["cubin"],
    )


def _constants(variant: Variant, names: list[str], launcher: ModuleType) -> dict[str, Any]:
    """The compile-time arguments, with the launcher's values."""
    size = variant.size
    constants = {
        "S": size,
        "GROUPS": launcher.GROUPS,
        "SUMS": launcher.padded_programs(size),
        "PITCH": launcher.pitch(size),
        "TILES": getattr(launcher, "BLUR_TILES", 0),
        "VECTOR_LOADS": variant.dense and size % launcher.PIXELS == 0,
        "VECTOR_STORES": size % launcher.PIXELS == 0,
        "FLIPPED": variant.flipped,
        "MASKED": variant.masked,
    }
    return {name: value for name, value in constants.items() if name in names}


def nvidia_tool(name: str) -> pathlib.Path:
    """A program of NVIDIA's that Triton ships."""
    import triton

    return pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name


def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers, and bytes of stack and local memory, a thread."""
    tool = nvidia_tool("cuobjdump")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        report = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        )
    found = re.search(
        r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", report.stdout + report.stderr
    )
    if found is None:
        raise RuntimeError(f"{tool} printed no resource usage:\n{report.stdout}{report.stderr}")
    registers, stack, local = map(int, found.groups())
    return registers, stack + local


def table(architectures: Sequence[int] = ARCHITECTURES) -> str:
    """Every kernel on every architecture: augmentation with float16 and float32 output, masked, 224
    pixels; BatchNorm with bfloat16, 64 and 256 channels; max-pooling with bfloat16."""
    lines = [
        "| kernel | output | sm | registers | spilled bytes | shared bytes | warps | programs/SM "
        "| global loads | global stores | cache lines over the least |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for kernel in KERNELS:
        for dtype in (torch.float16, torch.float32):
            for architecture in architectures:
                variant = Variant(kernel=kernel, architecture=architecture, dtype=dtype)
                if kernel == "gray_sums" and dtype != torch.float16:
                    continue  # writes no output
                output = "sums" if kernel == "gray_sums" else FORMATS[dtype].triton
                lines.append(_line(kernel, output, architecture, compile_variant(variant)))
    for name, variants in BATCH_NORM.items():
        for norm in variants:
            for architecture in architectures:
                norm = dataclasses.replace(norm, architecture=architecture)
                output = f"{FORMATS[norm.dtype].triton}, {norm.channels}"
                lines.append(_line(name, output, architecture, compile_batch_norm(norm)))
    for kernel in ("pool", "pool_gradient"):
        for architecture in architectures:
            found = compile_max_pool(kernel, architecture, torch.bfloat16)
            lines.append(_line(kernel, "bf16, 64", architecture, found))
    return "\n".join(lines)


def _bn(kernel: str, **options: Any) -> list[BatchNormVariant]:
    return [
        BatchNormVariant(kernel=kernel, architecture=90, channels=channels, **options)
        for channels in (64, 256)
    ]


BATCH_NORM = {
    "moments": _bn("moments"),
    "statistics": _bn("statistics"),
    "normalise": _bn("normalise"),
    "normalise + residual": _bn("normalise", residual=True),
    "gradient_sums": _bn("gradient_sums"),
    "gradient_sums + residual": _bn("gradient_sums", mask=batch_norm_triton.MASK_BY_OUTPUT),
    "gradient_means": _bn("gradient_means"),
    "input_gradient": _bn("input_gradient"),
    "input_gradient + residual": _bn("input_gradient", mask=batch_norm_triton.NO_MASK),
    "fork_gradient": _bn("fork_gradient"),
}
"""Name in the table to variants; those of ReLU, with and without a residual."""


def _line(kernel: str, output: str, architecture: int, compiled: Compiled) -> str:
    def count(kind: str) -> str:
        found = {
            name.removeprefix(kind): n
            for name, n in compiled.accesses.items()
            if name.startswith(kind)
        }
        return ", ".join(f"{n} of {name}" for name, n in sorted(found.items()))

    spreads = ", ".join(
        f"{name} {spread:.3g}" for name, spread in compiled.spreads.items() if spread > 1
    )
    cells = [
        kernel,
        output,
        architecture,
        compiled.registers,
        compiled.spilled,
        compiled.shared,
        compiled.warps,
        compiled.programs,
        count("ld.global."),
        count("st.global."),
        spreads or "1",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def main(options: Options) -> int:
    """Print the table; returns 1 where a kernel spills, else 0."""
    import triton

    report = table(options.architectures)
    print(
        f"Triton {triton.__version__}, torch {torch.__version__}, views of 224 pixels\n\n{report}"
    )
    return int(
        any(
            line.split("|")[5].strip() not in ("0", "spilled bytes", "---")
            for line in report.splitlines()
        )
    )


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))

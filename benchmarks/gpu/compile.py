"""Compiles the device kernels for NVIDIA architectures without a GPU; prints registers, spills and
memory accesses.

    python -m benchmarks.gpu.compile

The table covers sm_80 (A100), sm_90 (H100) and sm_100 (B200). Triton ships the compiler, the
assembler and the tool that reads the machine code. tests/kernels/augment/test_triton_compile.py
holds the figures.
"""

import dataclasses
import pathlib
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import tyro

from maskco_fast.kernels.augment import triton as augment_triton
from maskco_fast.kernels.formats import FORMATS

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
    ptx: str

    @property
    def programs(self) -> int:
        """Programs that fit a multiprocessor's 65 536 registers (allocated in units of 256 a warp)
        and 64 warps."""
        of_a_warp = -(-self.registers * 32 // 256) * 256
        return min(65536 // (of_a_warp * self.warps), 64 // self.warps)


def compile_variant(variant: Variant) -> Compiled:
    """Compile one variant. Raises RuntimeError where the machine code cannot be read."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from maskco_fast.kernels.augment import triton_kernels as kernels

    function = getattr(kernels, variant.kernel)
    constants = _constants(variant, function.arg_names)
    pointers = {
        "views": "*u8",
        "parameters": "*fp32",
        "box": "*fp32",
        "sums": "*i32",
        "levels": "*u8",
    }
    pointers["out"] = "*" + FORMATS[variant.dtype].triton
    signature = {
        name: "constexpr" if name in constants else pointers.get(name, "i32")
        for name in function.arg_names
    }
    aligned = [
        name
        for name in function.arg_names
        if name in pointers or (variant.dense and name in ALIGNED_STRIDES)
    ]
    attributes = {(function.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    options_of = (
        augment_triton.blur_options if variant.kernel == "blur" else augment_triton.colour_options
    )
    compiled = triton.compile(
        ASTSource(function, signature, constexprs=constants, attrs=attributes),
        target=GPUTarget("cuda", variant.architecture, 32),
        options=options_of(variant.size),
    )
    registers, spilled = _usage(compiled.asm["cubin"])
    ptx = compiled.asm["ptx"]
    return Compiled(
        registers=registers,
        spilled=spilled,
        shared=compiled.metadata.shared,
        warps=compiled.metadata.num_warps,
        accesses=Counter(re.findall(r"\b((?:ld|st)\.(?:global|shared|local)[\w.:]*)", ptx)),
        ptx=ptx,
    )


def _constants(variant: Variant, names: list[str]) -> dict[str, Any]:
    """The compile-time arguments, with `augment_triton`'s values."""
    size = variant.size
    constants = {
        "S": size,
        "GROUPS": augment_triton.GROUPS,
        "SUMS": augment_triton.padded_programs(size),
        "PITCH": augment_triton.pitch(size),
        "VECTOR_LOADS": variant.dense and size % augment_triton.PIXELS == 0,
        "VECTOR_STORES": size % augment_triton.PIXELS == 0,
        "FLIPPED": variant.flipped,
        "MASKED": variant.masked,
    }
    return {name: value for name, value in constants.items() if name in names}


def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers, and bytes of stack and local memory, a thread."""
    import triton

    tool = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
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
    """Every kernel on every architecture: float16 and float32 output, masked, 224 pixels."""
    lines = [
        "| kernel | output | sm | registers | spilled bytes | shared bytes | warps | programs/SM "
        "| global loads | global stores |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for kernel in KERNELS:
        for dtype in (torch.float16, torch.float32):
            for architecture in architectures:
                variant = Variant(kernel=kernel, architecture=architecture, dtype=dtype)
                if kernel == "gray_sums" and dtype != torch.float16:
                    continue  # writes no output
                lines.append(_line(variant, compile_variant(variant)))
    return "\n".join(lines)


def _line(variant: Variant, compiled: Compiled) -> str:
    def count(kind: str) -> str:
        found = {
            name.removeprefix(kind): n
            for name, n in compiled.accesses.items()
            if name.startswith(kind)
        }
        return ", ".join(f"{n} of {name}" for name, n in sorted(found.items()))

    output = "sums" if variant.kernel == "gray_sums" else FORMATS[variant.dtype].triton
    cells = [
        variant.kernel,
        output,
        variant.architecture,
        *dataclasses.astuple(compiled)[:4],
        compiled.programs,
    ]
    return "| " + " | ".join(map(str, [*cells, count("ld.global."), count("st.global.")])) + " |"


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

"""The model of the augmentation kernels' time: the executions of source lines, and the table."""

import inspect

import pytest

pytest.importorskip("triton", "3.3", reason="compiling offline takes Triton 3.3 or newer")

from benchmarks.estimates import instructions
from maskco_fast.kernels.augment import triton_colour, triton_kernels
from maskco_fast.loaders import ViewConfig

CONFIG = ViewConfig.maskco()


def weight(kernel: str, module: object, text: str) -> float:
    """Executions of the first line of a module that has the text."""
    lines = instructions.Lines(
        instructions.PACKAGE, instructions.shares(kernel, CONFIG), tiles=1.75
    )
    source = inspect.getsource(module).splitlines()  # type: ignore[arg-type]
    place = next(number for number, line in enumerate(source, 1) if text in line)
    name = module.__name__.rpartition(".")[2]  # type: ignore[attr-defined]
    iterations, share = lines.weight(f"{name}.py", place)
    return iterations * share


def test_lines_count_by_their_loops_and_branches() -> None:
    """A line outside branches, an operation in each of the two kernels, and blur's store."""
    jitter = CONFIG.views[0].jitter_probability
    brightness, hue = "_clamp(_times(red, factor))", "_turn_hue(red, green, blue, factor)"
    assert weight("colour", triton_kernels, "flip = tl.load") == 1
    assert weight("colour", triton_kernels, "factor, mean)") == pytest.approx(4 * jitter)
    assert weight("colour", triton_colour, brightness) == 1 / 4
    assert weight("colour", triton_colour, hue) == 1 / 4
    assert weight("gray_sums", triton_colour, hue) == pytest.approx(1 / 3)
    assert weight("blur", triton_kernels, "red_GP = tl.reshape") == pytest.approx(1.75)


def test_a_branch_needs_its_share() -> None:
    with pytest.raises(KeyError, match="State the share of views with `sigma <= 0`"):
        instructions.Lines(instructions.PACKAGE, {}, 1).weight(
            "triton_kernels.py",
            1 + inspect.getsource(triton_kernels).splitlines().index("    if sigma <= 0:") + 1,
        )


def test_the_table_has_every_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    """Modelled on sm_90; the bytes of all kernels are those of the budget."""
    assert instructions.main(instructions.Options()) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split("|")[1].strip() for line in lines if line.startswith("| `")]
    assert names == [f"`{kernel}`" for kernel in instructions.KERNELS]
    us = float(next(line for line in lines if line.startswith("| all")).split("|")[3])
    view = 224**2 * 3 * (CONFIG.views[0].jitter_probability + 3 + 2 * 0.5)
    assert us == pytest.approx(512 * view / 3.35e12 * 1e6, rel=0.02)

"""Every module under benchmarks/ is named by a test, and every command answers `--help`; the
commands that no other file tests."""

import importlib
import pathlib
import re
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import tyro

from benchmarks.correctness import processes
from benchmarks.estimates import compile as gpu_compile

ROOT = pathlib.Path(__file__).parents[2]
FILES = sorted(path for path in (ROOT / "benchmarks").rglob("*.py") if path.name != "__init__.py")
MODULES = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES]
COMMANDS = [
    module
    for module, path in zip(MODULES, FILES)
    if "__name__ ==" in path.read_text(encoding="utf-8")
    and path.name != "program.py"  # which is `maskco-fast`
]


def imported(text: str) -> set[str]:
    """The modules under benchmarks/ that a file imports."""
    found = set()
    for package, names in re.findall(
        r"^ *from (benchmarks[\w.]*) import (\([^)]*\)|.*)$", text, re.MULTILINE
    ):
        found.add(package)
        for name in names.strip("()").split(","):
            if name.strip():
                found.add(f"{package}.{name.split()[0]}")
    return found


def test_a_test_names_every_benchmark() -> None:
    """A part that a command imports is run with it."""
    tests = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    named = set().union(*(imported(text) for text in tests))
    for module, path in zip(MODULES, FILES):
        if module in named:
            named |= imported(path.read_text(encoding="utf-8")) - set(COMMANDS)
    assert [module for module in MODULES if module not in named] == []


def test_the_readme_lists_every_command() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    text = text.replace("make gpu-check", "benchmarks.gpu.check")
    commands = [module.removesuffix(".__main__") for module in COMMANDS]
    assert [module for module in commands if module not in text] == []


@pytest.mark.parametrize("module", COMMANDS)
def test_every_command_answers_help(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = importlib.import_module(module).Options
    with pytest.raises(SystemExit) as ended:
        tyro.cli(options, args=["--help"])
    assert ended.value.code == 0
    assert "--help" in capsys.readouterr().out


def test_losses_by_processes_are_printed(
    make_shards: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One real run, in this process: without torchrun one rank is the same. The others of the table
    repeat its losses. That numbers of processes agree is test_distributed's."""

    def here(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        module = command.index("-m", command.index("torch.distributed.run")) + 1
        assert command[module] == processes.__name__
        processes.main(tyro.cli(processes.Options, args=command[module + 1 :]))
        return subprocess.CompletedProcess(command, 0, "", "")

    shards = tuple(make_shards(1, 8))
    options = processes.Options(shards=shards, steps=2, batch=4, dtypes=("float32",))
    with monkeypatch.context() as patch:
        patch.setattr(processes.subprocess, "run", here)
        losses, exchange_us = processes.losses(options, "float32", processes=1)
    assert len(losses) == 2
    assert all(loss > 0 for loss in losses)
    assert exchange_us > 0
    monkeypatch.setattr(processes, "losses", lambda *_, **__: (losses, exchange_us))
    processes.main(options)
    assert capsys.readouterr().out.count("at most 0.0e+00 relative") == 2


def test_the_compiled_kernels_fill_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("triton", "3.3", reason="compiling offline takes Triton 3.3 or newer")
    assert gpu_compile.main(gpu_compile.Options(architectures=(90,))) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split("|")[1].strip() for line in lines if line.startswith("| ")][1:]
    assert names[:5] == ["gray_sums", "colour", "colour", "blur", "blur"]
    norms = [name for name in gpu_compile.BATCH_NORM for _ in (64, 256)]
    assert names[5:] == [*norms, "pool", "pool_gradient"]

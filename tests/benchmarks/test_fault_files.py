"""The command that tries a folder of damaged files: counts are right, and faults are seen."""

import os
import pathlib
import signal
import time
from typing import Any

import pytest

from benchmarks.correctness import fault_files as command
from benchmarks.correctness.fuzz import seeds


@pytest.fixture(autouse=True)
def _few_loaders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the loaders whose packages take seconds to import; the fuzzer's test has them."""
    monkeypatch.setattr(command.targets, "installed_loaders", lambda: ("reference", "native"))


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder with a file of each kind."""
    jpeg = seeds.jpegs()[0]
    (tmp_path / "files").mkdir()
    files = {
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "index.npz": b"no archive",
        "shard.tar": seeds.tar({"0.jpg": jpeg, "1.jpg": b"", "2.cls": b"3"}),
    }
    for name, data in files.items():
        (tmp_path / "files" / name).write_bytes(data)
    return tmp_path / "files"


def options(folder: pathlib.Path, **changes: Any) -> command.Options:
    return command.Options(folder=folder, **changes)


def test_every_file_is_used_or_named(folder, monkeypatch, capsys):
    monkeypatch.setattr(
        command, "in_children", lambda files, options: [command.try_file(*file) for file in files]
    )
    assert command.main(options(folder)) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:6]] for line in lines[2:5]]
    assert rows[0][:4] == ["cut.jpg", "2", "1", "1"]
    assert rows[1] == ["index.npz", "1", "1", "0", ""]
    assert rows[2][:4] == ["shard.tar", "2", "1", "2"]
    assert set(rows[2][4].split(", ")) == {"1 empty", "1 no image member"}
    assert "3 files, 0 with a fault" in lines
    assert "exit codes: beton 0: 3, index 0: 3, views 0: 3" in lines


def crash(file: pathlib.Path, name: str) -> command.Row:
    if name == "index.npz":
        os.kill(os.getpid(), signal.SIGSEGV)
    return command.Row(name, used=1)


def hang(file: pathlib.Path, name: str) -> command.Row:
    if name == "index.npz":
        time.sleep(3600)
    return command.Row(name, used=1)


@pytest.mark.parametrize(
    ("try_file", "problem"), [(crash, "ends the process by SIGSEGV"), (hang, "hangs")]
)
def test_a_crash_or_a_hang_is_one_files(try_file, problem, folder, monkeypatch, capsys):
    monkeypatch.setattr(command, "try_file", try_file)
    assert command.main(options(folder, hang_s=1.0)) == 1
    printed = capsys.readouterr().out
    assert f"| index.npz |  | 0 | 0 |  |  /  /  | 0 | 0 | {problem} |" in printed
    assert "3 files, 1 with a fault" in printed
    assert "2 images used" in printed


def test_what_commands_do_wrong_is_noted(monkeypatch):
    def escape(arguments):
        raise ZeroDivisionError

    row = command.Row("x")
    monkeypatch.setattr(command.cli, "main", escape)
    command._command(row, ["index"])
    monkeypatch.setattr(command.cli, "main", lambda arguments: 1)
    command._command(row, ["views"])
    monkeypatch.setattr(command.cli, "main", lambda arguments: 2)
    command._command(row, ["beton"])
    assert row.codes == {"index": -1, "views": 1, "beton": 2}
    assert row.problems[0].startswith("index: ZeroDivisionError escapes")
    assert row.problems[1:] == ["views: exit code 1 without an error", "beton: exit code 2"]


def test_a_lost_image_and_loaders_that_differ_are_noted(folder, monkeypatch):
    epochs = command.targets.epochs

    def lossy(shard, index):
        found = epochs(shard, index)
        found["reference"].quarantine.clear()
        found["native"].batches.clear()
        return found

    monkeypatch.setattr(command.targets, "epochs", lossy)
    problems = command.try_file(folder / "cut.jpg", "cut.jpg").problems
    assert "native uses other images than the reference" in problems
    assert "native fast names other images than the reference" in problems
    assert "index and loaders differ in what they use and name" in problems
    assert "beton and loaders differ in what they use and name" in problems

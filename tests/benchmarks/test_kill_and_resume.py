"""The kill-and-resume command at small size: two processes are killed, and one goes on."""

import json
import os
import pathlib
import runpy
import subprocess
import sys
from typing import IO, Any

import pytest

from benchmarks.correctness import kill_and_resume as command
from tests.support.processes import fork_context


def run_module(command: list[str], environment: dict[str, str], log: str) -> None:
    """What `python -m module …` does, with stderr in the file `log`."""
    os.environ.update(environment)
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 2)
    sys.argv = command[command.index("-m") + 1 :]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


class Forked:
    """`subprocess.Popen` of `python -m module …`, as a fork of the server."""

    def __init__(self, command: list[Any], stderr: IO[str], env: dict[str, str]) -> None:
        words = [str(word) for word in command]
        self._process = fork_context().Process(target=run_module, args=(words, env, stderr.name))
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("a fork", timeout or 0)
        return self._process.exitcode


def test_killed_processes_lose_and_repeat_no_image(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """torchrun and the run of one process are forks; torchrun starts its ranks as ever."""
    monkeypatch.setattr(command.subprocess, "Popen", Forked)
    code = command.main(command.Options(kills=1, signals=("SIGKILL",), seed=1))
    told = capsys.readouterr().out
    assert code == 0, told
    last = told.splitlines()[-1]
    assert last == "12 steps in epochs of 9: each step saw exactly the images it should have"


def test_a_wrong_image_is_noticed(tmp_path: pathlib.Path):
    """The check fails when two images are swapped."""
    run = command.Run(tmp_path, command.Options(samples=32))
    run.folder.mkdir()
    ids = run.expected(0)
    samples = run.folder / "samples.jsonl"
    samples.write_text(json.dumps({"step": 1, "epoch": 0, "sample_ids": ids}) + "\n")
    assert run.check() == 1
    ids[3], ids[4] = ids[4], ids[3]
    samples.write_text(json.dumps({"step": 1, "epoch": 0, "sample_ids": ids}) + "\n")
    with pytest.raises(command.Failed, match="step 1 should be"):
        run.check()

"""The kill-and-resume command at small size: two processes are killed, and one goes on."""

import json
import pathlib

import pytest

from benchmarks.correctness import kill_and_resume as command


def test_killed_processes_lose_and_repeat_no_image(capsys: pytest.CaptureFixture[str]):
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

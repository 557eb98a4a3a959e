"""The command line as a person meets it: help, exit codes, one-line errors, reports and pictures."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from maskco_fast.cli import COMMANDS, main
from tests.support.images import encode, picture, write_tar


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in COMMANDS)
    assert main([]) == 2


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert "--" in capsys.readouterr().out


def test_words_that_do_not_fit_are_refused(capsys):
    assert main(["trian"]) == 2
    assert "no command 'trian'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main(["train", "--recipe", "huge"])
    assert end.value.code == 2
    assert "paper" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main(["index", "--shard", "x"])
    assert end.value.code == 2


def test_missing_shards_are_a_line_and_exit_1(capsys):
    for command in ("index", "views", "train"):
        assert main([command, "--shards", "nowhere-{0000..0002}.tar"]) == 1
        told = capsys.readouterr().err
        assert "nowhere-0000.tar" in told
        assert "Traceback" not in told


def test_index_reports_what_is_quarantined(tmp_path, make_shards, capsys):
    shard = write_tar(
        tmp_path / "s.tar", {"a.jpg": encode(picture(20, 30, 0)), "b.jpg": b"", "c.txt": b"alone"}
    )
    report = tmp_path / "report.json"
    assert main(["index", "--shards", str(shard), *make_shards(2, 8), "--report", str(report)]) == 0
    shown = capsys.readouterr().out
    assert "17 usable samples in 3 shards" in shown
    assert "2 quarantined: 1 empty, 1 no image member" in shown
    assert f"{shard}  b: empty" in shown
    assert json.loads(report.read_text())["by_reason"] == {"empty": 1, "no image member": 1}
    assert main(["index", "--shards", str(shard), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["samples"] == 1
    assert facts["quarantine"]["quarantined"] == 2


def test_only_bad_samples_are_an_error(tmp_path, capsys):
    shard = write_tar(tmp_path / "s.tar", {"a.jpg": b"", "b.jpg": b"<html>"})
    assert (
        main(
            [
                "train",
                "--recipe",
                "cpu_small",
                "--shards",
                str(shard),
                "--run-dir",
                str(tmp_path / "run"),
            ]
        )
        == 1
    )
    assert "no usable image in 1 shards" in capsys.readouterr().err


def test_views_are_drawn(tmp_path, make_shards):
    out = tmp_path / "pictures" / "views.png"
    assert main(["views", "--shards", *make_shards(1, 4), "--out", str(out), "--count", "2"]) == 0
    with Image.open(out) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[0] > 400
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100


def test_the_module_runs():
    ended = subprocess.run(
        [sys.executable, "-m", "maskco_fast", "nonsense"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert "no command 'nonsense'" in ended.stderr

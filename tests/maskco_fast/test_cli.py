"""The command line: help, exit codes, one-line errors, reports and pictures."""

import json
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

import maskco_fast
from maskco_fast.cli import COMMANDS, main
from maskco_fast.errors import report_user_errors
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import ViewConfig, make_loader, open_dataset
from maskco_fast.methods.registry import METHODS
from maskco_fast.training.config import TrainConfig
from maskco_fast.training.recipes import RECIPES
from tests.support.images import encode, picture, write_tar


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {command.name} " in shown for command in COMMANDS)
    assert all(len(line) <= 100 for line in shown.splitlines())
    assert main([]) == 2


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"maskco-fast {maskco_fast.__version__}\n"


def test_help_and_version_do_not_import_torch():
    code = """
import sys
from maskco_fast.cli import main
assert main(["--help"]) == main(["--version"]) == 0
assert not {"torch", "numpy", "numba", "tyro"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert "--" in capsys.readouterr().out


def test_unknown_words_are_refused_with_the_choices(capsys):
    assert main(["trian"]) == 2
    told = capsys.readouterr().err
    assert "unknown command 'trian'. Choose one of train, index," in told
    for option, choices in (
        ("recipe", ", ".join(RECIPES)),
        ("method", ", ".join(METHODS)),
    ):
        for arguments in ([f"--{option}", "huge"], [f"--{option}=huge"]):
            with pytest.raises(SystemExit) as end:
                main(["train", *arguments])
            assert end.value.code == 2
            told = capsys.readouterr().err
            assert f"unknown {option} 'huge'. Choose one of {choices}" in told
    with pytest.raises(SystemExit) as end:
        main(["index", "--shard", "x"])
    assert end.value.code == 2


def error_of(command, capsys):
    """What `report_user_errors` prints for a command that fails; checks that it is one line."""

    def run():
        command()
        return 0

    assert report_user_errors(run) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_invalid_input_of_each_layer_is_a_line(make_shards, capsys):
    shards = make_shards(1, 4)
    assert "size" in error_of(lambda: ViewConfig(size=0), capsys)  # kernels
    assert "warp" in error_of(  # loaders
        lambda: make_loader(shards, 4, views=ViewConfig.maskco(), backend="warp"), capsys
    )
    assert "nowhere.tar" in error_of(lambda: open_dataset("nowhere.tar"), capsys)
    assert "max_steps" in error_of(lambda: TrainConfig(max_steps=0), capsys)  # maskco_fast


def test_an_os_error_is_a_line_and_a_foreign_error_keeps_its_traceback(tmp_path, capsys):
    assert "absent" in error_of(lambda: (tmp_path / "absent").read_text(), capsys)
    for error in (ValueError("of another library"), RuntimeError("a defect"), KeyError("key")):
        with pytest.raises(type(error)):
            error_of(lambda error=error: (_ for _ in ()).throw(error), capsys)
    assert capsys.readouterr().err == ""


def test_warnings_are_lines_and_a_rank_names_itself(monkeypatch, capsys):
    def command():
        warnings.warn("the disk is slow", RuntimeWarning, stacklevel=1)
        raise InvalidInput("`size` must be positive, got 0.")

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert report_user_errors(command) == 1
    assert capsys.readouterr().err.splitlines() == [
        "maskco-fast: warning: the disk is slow",
        "maskco-fast: rank 1: error: `size` must be positive, got 0.",
    ]


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


def test_index_lists_what_is_quarantined_where_nothing_is_usable(tmp_path, capsys):
    shard = write_tar(tmp_path / "s.tar", {"b.jpg": b"", "c.txt": b"alone"})
    report = tmp_path / "report.json"
    assert main(["index", "--shards", str(shard), "--report", str(report)]) == 1
    printed = capsys.readouterr()
    assert "0 usable samples in 1 shards" in printed.out
    assert f"{shard}  c: no image member" in printed.out
    assert "no usable image in 1 shards" in printed.err
    assert json.loads(report.read_text())["quarantined"] == 2
    assert main(["index", "--shards", str(shard), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["quarantine"]["quarantined"] == 2


def test_views_draws_no_more_images_than_there_are(tmp_path, make_shards, capsys):
    names = ("--shards", *make_shards(1, 2), "--index-folder", str(tmp_path / "index"))
    assert main(["views", *names, "--count", "3", "--out", str(tmp_path / "v.png")]) == 0
    assert "v.png: 2 images" in capsys.readouterr().out
    assert (tmp_path / "v.png").exists()
    assert len(list((tmp_path / "index").glob("*.npz"))) == 1


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
    assert "unknown command 'nonsense'" in ended.stderr


def test_a_reader_that_has_gone_is_no_error(monkeypatch, capsys):
    """As of `maskco-fast train --help | head`, whose output is longer than a pipe holds."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        assert report_user_errors(lambda: print("x" * 100_000) or 0) == 1
        gone.flush()
    assert capsys.readouterr().err == ""


def test_a_servers_broken_pipe_is_an_error(capsys):
    def fail():
        raise BrokenPipeError(32, "Broken pipe")

    assert report_user_errors(fail) == 1
    assert "error: [Errno 32] Broken pipe" in capsys.readouterr().err

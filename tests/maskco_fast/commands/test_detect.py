"""The `detect` command: a run from start to picture, and one that a signal interrupts."""

import dataclasses
import json
import os
import pathlib
import signal
from collections.abc import Callable

import pytest
import torch

from maskco_fast.commands.detect import defaults, detect, table
from maskco_fast.detection import testing
from maskco_fast.detection.config import RECIPES, DetectConfig
from maskco_fast.errors import SUCCESS
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.training import checkpoint
from tests.maskco_fast.detection.conftest import scenes, tiny, write_voc  # noqa: F401

pytest.importorskip(
    "pycocotools", reason="pycocotools is absent: pip install 'maskco-fast[detect]'"
)


def weights_of(config: DetectConfig) -> dict[str, torch.Tensor]:
    state = checkpoint.load_newest(config.run_dir / "checkpoints")
    assert state is not None
    return state["method"]


def test_a_run_that_a_signal_interrupts_equals_one_that_ran_through(
    tiny: DetectConfig,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Weights to the bit, figures, result files and the picture. The signal comes during a test,
    which ends at once; the resumed run tests at the end."""
    whole = dataclasses.replace(tiny, eval_every=1)
    assert detect(whole) == SUCCESS
    result = json.loads((whole.run_dir / "detect.json").read_text())
    assert result["images"] == 3
    assert len(result["classes"]) == 12
    assert {"AP", "AP50", "AP75"} <= result.keys()
    assert {"AP", "AP50", "AP75"} <= result["masks"].keys()
    assert [test["step"] for test in result["tests"]] == [1, 2]
    assert result["weights"]["source"] == "random"
    assert str(whole.run_dir) not in json.dumps(result)
    assert (whole.run_dir / "detections.png").read_bytes().startswith(b"\x89PNG")
    assert "this run, 2 steps, masks" in capsys.readouterr().out

    out = tiny.run_dir.parent / "results"
    broken = dataclasses.replace(
        tiny,
        run_dir=tiny.run_dir.parent / "broken",
        eval_every=1,
        out=out,
        json=str(out / "copy.json"),
        pictures=0,
    )
    detect_images = testing.detect_images

    def interrupted(*arguments, **options):
        monkeypatch.undo()
        os.kill(os.getpid(), signal.SIGTERM)
        return detect_images(*arguments, **options)

    monkeypatch.setattr(testing, "detect_images", interrupted)
    assert detect(broken) == SUCCESS
    assert "SIGTERM: saved at step 1 of 2" in capsys.readouterr().err
    assert not out.exists()
    assert detect(broken) == SUCCESS
    expected = weights_of(whole)
    found = weights_of(broken)
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    again = json.loads((out / "detect.json").read_text())
    assert again["AP_by_class"] == result["AP_by_class"]
    assert json.loads((out / "copy.json").read_text()) == again
    assert not (out / "detections.png").exists()

    with pytest.raises(InvalidInput, match="started with other settings"):
        detect(dataclasses.replace(broken, learning_rate=0.01))


def test_voc_boxes_are_tested_by_vocs_rule(
    tiny: DetectConfig,  # noqa: F811
    write_voc: Callable[..., pathlib.Path],  # noqa: F811
) -> None:
    """Faster R-CNN on a VOC folder, and the paper's rows in the table."""
    folder = write_voc(("dog", (5, 5, 30, 25), 0), ("person", (1, 1, 9, 9), 1), size=(64, 48))
    config = dataclasses.replace(
        tiny,
        recipe="voc",
        data=folder.parent,
        train=("VOC2007:test", "VOC2007:test"),
        val=("VOC2007:test",),
        rule="voc",
        max_steps=1,
        milestones=(),
        model=dataclasses.replace(tiny.model, masks=False),
    )
    assert detect(config) == SUCCESS
    result = json.loads((config.run_dir / "detect.json").read_text())
    assert result["rule"] == "voc"
    assert len(result["classes"]) == 20
    assert result["AP_by_class"].keys() == {"dog"}  # the person is difficult
    assert "masks" not in result
    assert "paper: maskco, ImageNet, 100 epochs" in table(result)


def test_images_must_be_named(tmp_path: pathlib.Path) -> None:
    config = dataclasses.replace(RECIPES["voc"](), run_dir=tmp_path, device="cpu")
    with pytest.raises(InvalidInput, match="give --data"):
        detect(config)


def test_the_recipe_sets_the_defaults() -> None:
    assert defaults(["--recipe", "demo"]).model.trunk == "resnet18"
    assert defaults([]).recipe == "voc"
    with pytest.raises(SystemExit):
        defaults(["--recipe=yolo"])


def test_milestones_lie_within_the_run() -> None:
    config = RECIPES["demo"]()
    with pytest.raises(InvalidInput, match=r"below `max_steps`, 250, got 220 270\..* own"):
        dataclasses.replace(config, max_steps=250)
    with pytest.raises(InvalidInput, match="ascending"):
        dataclasses.replace(config, milestones=(30, 20))
    assert dataclasses.replace(config, max_steps=20, milestones=()).milestones == ()

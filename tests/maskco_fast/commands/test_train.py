"""The `train` command: the run folder it writes, and its one-line errors."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import pytest
import torch
import tyro

from maskco_fast.commands import train as command
from maskco_fast.commands.train import _loader, defaults, expand, train
from maskco_fast.errors import report_user_errors
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.kernels.plan import plan
from maskco_fast.loaders import ViewConfig, make_loader, open_dataset
from maskco_fast.loaders.process import ProcessLoader
from maskco_fast.methods.moco_v2 import MoCoV2Config
from maskco_fast.methods.registry import make_method
from maskco_fast.methods.view_options import ViewOptions
from maskco_fast.networks.config import ModelConfig
from maskco_fast.training.config import TrainConfig
from maskco_fast.training.distributed import World


def small_run(shards: list[str], run_dir: pathlib.Path, **fields: Any) -> TrainConfig:
    model = ModelConfig(trunk="resnet10-small", view_size=32, group_size=4)
    settings: dict[str, Any] = {
        "max_steps": 3,
        "batch_size": 4,
        "model": model,
        "device": "cpu",
        "loader_threads": 1,
    }
    return TrainConfig(
        **{**settings, "shards": tuple(shards), "run_dir": run_dir, "loader": "reference", **fields}
    )


def recorded(make: Any, views: list[ViewConfig]) -> Any:
    """`make_loader` that appends the views of each loader that it makes."""

    def making(*arguments: Any, **options: Any) -> Any:
        views.append(options["views"])
        return make(*arguments, **options)

    return making


def defaults_and_options(arguments: list[str]) -> TrainConfig:
    """The configuration of these arguments of `train`, as the command line makes it."""
    expanded = expand(arguments)
    return tyro.cli(TrainConfig, args=expanded, default=defaults(expanded))


def test_the_command_trains_on_shards_with_a_bad_sample(tmp_path, make_shards, capsys):
    run_dir = tmp_path / "run"
    shards = make_shards(shards=1, samples=8, bad=(3,), side=64)
    assert report_user_errors(lambda: train(small_run(shards, run_dir, max_steps=2))) == 0
    names = {path.name for path in run_dir.iterdir()}
    assert names >= {
        "checkpoints",
        "config.json",
        "loss.png",
        "metrics.jsonl",
        "quarantine.json",
        "tensorboard",
    }
    assert json.loads((run_dir / "quarantine.json").read_text())["samples"][0]["key"] == "000003"
    told = capsys.readouterr().err
    assert "quarantined: 1" in told
    assert "done: 2 steps" in told


def test_crop_and_jitter_are_options_of_a_run(tmp_path, make_shards, monkeypatch, capsys):
    made: list[ViewConfig] = []
    monkeypatch.setattr(command, "make_loader", recorded(make_loader, made))
    shards = make_shards(shards=1, samples=8, side=64)
    views = ViewOptions(area=(0.5, 0.6), jitter=(0.1, 0.2, 0.3, 0.0))
    moco = MoCoV2Config(queue=8)
    config = small_run(
        shards, tmp_path / "run", method="moco_v2", moco_v2=moco, max_steps=1, views=views
    )
    assert train(config) == 0
    (planned,) = made
    assert [view.area for view in planned.views] == [(0.5, 0.6)] * 2
    assert [view.jitter for view in planned.views] == [(0.1, 0.2, 0.3, 0.0)] * 2
    drawn = plan(planned, 0, 0, np.arange(50, dtype=np.uint64), np.full(50, 64), np.full(50, 64))
    crops = drawn.view(planned.plan_dtype)["views"]["crop"]
    share = crops[..., 2] * crops[..., 3] / 64**2
    assert 0.45 < share.min() < share.max() < 0.65
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written["views"] == {"area": [0.5, 0.6], "jitter": [0.1, 0.2, 0.3, 0.0]}
    # A resumed run has the same views, whether they are given or read from its own file.
    file = ["--config", str(tmp_path / "run" / "config.json")]
    assert defaults_and_options(file).views == views
    changed = dataclasses.replace(config, max_steps=2, views=ViewOptions(area=(0.2, 1.0)))
    assert report_user_errors(lambda: train(changed)) == 1
    told = capsys.readouterr().err
    assert (
        "views.area: [0.5, 0.6] -> [0.2, 1.0]; views.jitter: [0.1, 0.2, 0.3, 0.0] -> None" in told
    )


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("relative_loc", {"area": (0.2, 1.0)}, "`views.area` is for methods with a random resized"),
        (
            "relative_loc",
            {"jitter": (0.4, 0.4, 0.4, 0.1)},
            "and the views of relative_loc have none",
        ),
        ("rotation", {"jitter": (0.4, 0.4, 0.4, 0.1)}, "`views.jitter` is for methods with colour"),
    ],
)
def test_options_that_no_view_of_the_method_reads_are_refused(method, options, message):
    views = getattr(ViewConfig, method)(64)
    assert ViewOptions().apply(views, method) == views
    with pytest.raises(InvalidInput, match=message):
        ViewOptions(**options).apply(views, method)


def test_ranges_of_the_view_options_are_checked():
    with pytest.raises(InvalidInput, match="0 < low <= high <= 1, got"):
        ViewOptions(area=(0.9, 0.2))
    # Every other setting of the views stays, such as BYOL's two blurs.
    byol = ViewOptions(area=(0.3, 0.9)).apply(ViewConfig.byol(64), "byol")
    assert [view.blur_probability for view in byol.views] == [1.0, 0.1]


def test_a_run_may_load_in_a_process_of_its_own(tmp_path, make_shards):
    """tests/loaders/test_process.py iterates it."""
    config = small_run(make_shards(shards=1, samples=8), tmp_path, loader_process=True)
    method = make_method(config.method, config.method_config, config.model, seed=0)
    loader = _loader(
        config,
        method,
        torch.device("cpu"),
        torch.float32,
        World(),
        open_dataset(config.shards),
        "native",
    )
    assert isinstance(loader, ProcessLoader)
    assert loader.config.threads == 1


def test_the_command_names_what_is_wrong_in_one_line(tmp_path, make_shards, capsys):
    def error_of(config: TrainConfig) -> str:
        assert report_user_errors(lambda: train(config)) == 1
        *_, last = capsys.readouterr().err.strip().splitlines()
        assert last.startswith("maskco-fast: error: ")
        return last

    assert "nothing-*.tar" in error_of(small_run([str(tmp_path / "nothing-*.tar")], tmp_path / "a"))
    good = make_shards(shards=1, samples=3, side=64)
    assert "Lower --batch-size" in error_of(small_run(good, tmp_path / "b"))
    assert "got 'warp'" in error_of(small_run(good, tmp_path / "c", loader="warp"))
    garbage = tmp_path / "garbage.tar"
    garbage.write_bytes(b"\0" * 512 + b"no tar" * 100)
    assert "garbage.tar" in error_of(small_run([str(garbage)], tmp_path / "d"))

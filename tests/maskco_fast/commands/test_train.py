"""The `train` command: the run folder it writes, and its one-line errors."""

import json
import pathlib
from typing import Any

import torch

from maskco_fast.commands.train import _loader, train
from maskco_fast.errors import report_user_errors
from maskco_fast.loaders import open_dataset
from maskco_fast.loaders.process import ProcessLoader
from maskco_fast.methods.registry import make_method
from maskco_fast.networks.config import ModelConfig
from maskco_fast.training.config import TrainConfig
from maskco_fast.training.distributed import World


def small_run(shards: list[str], run_dir: pathlib.Path, **fields: Any) -> TrainConfig:
    model = ModelConfig(trunk="resnet18", view_size=32, group_size=4)
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

"""`train --config`: what a run wrote is read back, the command line wins, mistakes are named."""

import json
import pathlib

import pytest
import tyro

from maskco_fast.cli import main
from maskco_fast.config_file import as_file, with_config_file
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import RemoteConfig
from maskco_fast.loaders.system.files import write_json
from maskco_fast.training.config import TrainConfig
from maskco_fast.training.recipes import RECIPES


def read(path, *options) -> TrainConfig:
    """The configuration of `train --config path options`."""
    from maskco_fast.commands.train import defaults

    arguments = with_config_file(["--config", str(path), *options], TrainConfig())
    return tyro.cli(TrainConfig, args=arguments, default=defaults(arguments))


def write(path: pathlib.Path, values: object) -> pathlib.Path:
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize(("recipe", "method"), [("paper", "maskco"), ("demo", "relative_loc")])
def test_what_a_run_wrote_is_read_back(tmp_path, recipe, method):
    config = RECIPES[recipe](method)
    path = tmp_path / "config.json"
    write_json(path, as_file(config))
    assert as_file(read(path)) == {**as_file(config), "config": path}


def test_options_win_over_the_file_and_the_file_over_the_recipe(tmp_path):
    values = {
        "recipe": "demo",
        "seed": 3,
        "tensorboard": False,
        "shards": ["a.tar", "b.tar"],
        "remote": {"s3_anonymous": True},
        "model": {"view_size": 96},
        "loader_threads": None,
        "optimizer": {"learning_rate": 1},
    }
    path = write(tmp_path / "part.json", values)
    config = read(path)
    demo = RECIPES["demo"]("maskco")
    assert (config.seed, config.tensorboard, config.shards) == (3, False, ("a.tar", "b.tar"))
    assert (config.model.view_size, config.model.trunk) == (96, demo.model.trunk)
    assert (config.max_steps, config.loader_threads) == (demo.max_steps, None)
    assert config.remote.s3_anonymous
    assert config.optimizer.learning_rate == 1
    options = ("--seed=4", "--tensorboard", "--shards", "c.tar", "--remote.no-s3-anonymous")
    config = read(path, *options, "--model.view_size", "64", "--recipe", "cpu_small")
    assert (config.seed, config.tensorboard, config.shards) == (4, True, ("c.tar",))
    assert (config.model.view_size, config.max_steps) == (64, 1000)
    assert not config.remote.s3_anonymous


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"sead": 1, "model": {"trunc": 2}}', r"unknown keys: model\.trunc, sead\."),
        ('{"model": "resnet18"}', "unknown keys: model"),
        ("[1]", "JSON object, got list"),
        ("{", "must be a JSON file"),
        ('{"redacted": 1}', "must be a list"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path, text, message):
    path = tmp_path / "part.json"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=message):
        read(path)


def test_a_folder_an_absent_file_and_a_wrong_value_are_errors(tmp_path, capsys):
    assert main(["train", "--config", str(tmp_path)]) == 1
    assert "Add /config.json" in capsys.readouterr().err
    assert main(["train", f"--config={tmp_path / 'absent.json'}"]) == 1
    assert "absent.json" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "--config", str(write(tmp_path / "part.json", {"seed": "three"}))])
    assert "--seed" in capsys.readouterr().err


@pytest.mark.parametrize("shard", ["https://host/a.tar?sig=s3cret", "pipe:curl -H s3cret x.tar"])
def test_redacted_values_must_be_passed_again(tmp_path, shard):
    remote = RemoteConfig(headers=("Authorization: s3cret",))
    path = tmp_path / "config.json"
    write_json(path, as_file(TrainConfig(shards=(shard, "b.tar"), remote=remote)))
    assert "s3cret" not in path.read_text()
    with pytest.raises(InvalidInput, match=r"Pass --shards and --remote\.headers as for that run"):
        read(path)
    with pytest.raises(InvalidInput, match=r"Pass --remote\.headers as"):
        read(path, "--shards", shard)
    assert read(path, "--shards", shard, "--remote.headers", "A: b").shards == (shard,)


def test_a_hidden_part_of_a_command_is_seen_without_the_list(tmp_path):
    with pytest.raises(InvalidInput, match="Pass --shards"):
        read(write(tmp_path / "old.json", {"shards": ["pipe:curl … https://host/a.tar"]}))

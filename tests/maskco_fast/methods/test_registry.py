"""The registry of methods, their recipe values, and the errors of wrong settings."""

import ast
import dataclasses
import pathlib

import pytest
import torch

import maskco_fast
from maskco_fast.methods.maskco import MaskCoConfig
from maskco_fast.methods.moco_v2 import MoCoV2Config
from maskco_fast.methods.registry import METHODS, MethodFields, MethodName, make_method
from maskco_fast.networks.config import ModelConfig
from maskco_fast.training.config import TrainConfig
from maskco_fast.training.recipes import RECIPES

SMALL = ModelConfig(trunk="resnet10-small", view_size=32)


def test_every_method_has_a_config_field():
    configs = {field.name: field.type for field in dataclasses.fields(MethodFields)}
    assert configs.pop("method") == MethodName
    assert configs == {name: entry.config for name, entry in METHODS.items()}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("method", METHODS)
def test_every_recipe_is_for_every_method(recipe, method):
    config = RECIPES[recipe](method)
    assert (config.recipe, config.method) == (recipe, method)
    assert isinstance(config.method_config, METHODS[method].config)


def test_a_recipe_takes_the_methods_values():
    config = RECIPES["demo"]("moco_v2")
    assert config.moco_v2 == MoCoV2Config(queue=1024, momentum=0.99)
    assert (config.model.group_size, config.optimizer.learning_rate) == (8, 0.24)
    assert config.maskco == MaskCoConfig(
        momentum=0.95, mph_blocks=1
    )  # the other methods' configs too


def test_networks_import_no_method_and_methods_no_training():
    package = pathlib.Path(maskco_fast.__file__).parent
    for folder, above in (("networks", ("methods", "training")), ("methods", ("training",))):
        for path in (package / folder).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and node.module:
                    assert not node.module.startswith(
                        tuple(f"maskco_fast.{name}" for name in above)
                    ), path


def test_making_a_method_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    make_method("maskco", MaskCoConfig(), SMALL, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_another_methods_config_is_refused():
    with pytest.raises(ValueError, match="must be a MoCoV2Config for moco_v2, got MaskCoConfig"):
        make_method("moco_v2", MaskCoConfig(), SMALL, seed=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainConfig(method="byol_v9"), "`method` must be one of .*, got 'byol_v9'"),
        (lambda: TrainConfig(method="simclr", accumulate=2), "must be 1 for simclr, got 2"),
        (lambda: TrainConfig(batch_size=48), "multiple of the group size, 32, .*, got 48"),
        (lambda: TrainConfig(batch_size=1), "`batch_size` must be at least 2, got 1"),
        (lambda: ModelConfig(view_size=100), "multiple of 32 pixels with resnet50, got 100"),
        (lambda: MaskCoConfig(mph_blocks=20), r"`mph_blocks` must be in \[0, 16\], got 20\."),
        (lambda: MaskCoConfig(temperature=0), "`temperature` must be greater than 0, got 0"),
        (lambda: MaskCoConfig(boxes=1), "`boxes` must be at least 2 .*, got 1"),
    ],
)
def test_a_wrong_setting_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()

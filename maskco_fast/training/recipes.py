"""Recipes: named training configurations, each for every method.

A recipe is a function from a method's name to a `TrainConfig`; command-line options change single
fields of it. The values that depend on the method are in the methods' modules (`recipe_values`).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from maskco_fast.methods.registry import METHODS, find_method
from maskco_fast.networks.config import ModelConfig
from maskco_fast.training.config import TrainConfig
from maskco_fast.training.optimizer import OptimizerConfig


def paper(method: str = "maskco") -> TrainConfig:
    """The paper's run: ResNet-50 at 224 pixels, batch 256 in groups of 32, 500k steps."""
    return _recipe("paper", method, "paper", ModelConfig())


def cpu_small(method: str = "maskco") -> TrainConfig:
    """A small run for a CPU with a few cores: ResNet-18 at 96 pixels, batch 32, 1000 steps.

    MaskCo's contrast has the paper's size: one group with 496 negatives, so chance is ln 497 =
    6.21. The methods' "short" values differ from the paper's where a short run needs it; the
    methods' modules give the reasons.
    """
    return _short("cpu_small", method, max_steps=1000, checkpoint_every=100, view_size=96)


def demo(method: str = "maskco") -> TrainConfig:
    """The run of `make train`: built-in scenes, ResNet-18 at 64 pixels, batch 32, 800 steps.

    The loss falls clearly within minutes on 2 cores. The methods' values are those of `cpu_small`.
    """
    return _short("demo", method, max_steps=800, checkpoint_every=200, view_size=64)


def _short(
    recipe: str, method: str, *, max_steps: int, checkpoint_every: int, view_size: int
) -> TrainConfig:
    return _recipe(
        recipe,
        method,
        "short",
        ModelConfig(trunk="resnet18", view_size=view_size),
        max_steps=max_steps,
        batch_size=32,
        checkpoint_every=checkpoint_every,
    )


def _recipe(
    recipe: str, method: str, values: str, model: ModelConfig, **fields: Any
) -> TrainConfig:
    """Compose a configuration from its fields and the methods' recipe values named `values`."""
    own = find_method(method).method.recipe_values[values]
    configs = {name: entry.method.recipe_values[values].config for name, entry in METHODS.items()}
    return TrainConfig(
        recipe=recipe,
        method=method,
        model=dataclasses.replace(model, **own.model),
        optimizer=OptimizerConfig(**own.optimizer),
        **configs,
        **fields,
    )


RECIPES: Mapping[str, Callable[..., TrainConfig]] = {
    "paper": paper,
    "cpu_small": cpu_small,
    "demo": demo,
}
"""By the name that `--recipe` takes; each takes a method's name (default: MaskCo)."""

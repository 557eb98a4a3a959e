"""Named training configurations; the command line changes single fields of one."""

from collections.abc import Callable, Mapping

from maskco_fast.config import MaskCoConfig, ModelConfig, OptimizerConfig, TrainConfig


def paper() -> TrainConfig:
    """The paper's run: ResNet-50 at 224, batch 256 in groups of 32, 500k steps, weight decay 1e-3 (SPEC 1)."""
    return TrainConfig(recipe="paper", optimizer=OptimizerConfig(weight_decay=1e-3))


def cpu_small() -> TrainConfig:
    """For a CPU of a few cores: ResNet-18 at 96 pixels, one group of 32; 300 steps take minutes, not days.

    The contrast is the paper's whole one, 496 negatives, so chance is ln 497 = 6.21. Two values are a short run's, not
    the paper's. The rate is .24 for a batch of 256, so .03 for these 32, where linear scaling from .03 leaves .00375.
    The key network's momentum is .95: the paper's .999 averages over a thousand steps, more than such a run has. (150
    steps at 64 pixels on 1000 ImageNet images ended at 5.66 with momentum .99 and at 5.55 with .95; rates from .03 to
    .12 differed by .05.)
    """
    return TrainConfig(
        recipe="cpu_small",
        max_steps=300,
        batch_size=32,
        checkpoint_every=50,
        model=ModelConfig(trunk="resnet18", view_size=96),
        maskco=MaskCoConfig(momentum=0.95),
        optimizer=OptimizerConfig(learning_rate=0.24),
    )


def demo() -> TrainConfig:
    """`make train`: the built-in scenes, ResNet-18 at 64 pixels; the loss falls clearly within minutes on 2 cores.

    Rate and momentum as in `cpu_small`, for the same reason.
    """
    return TrainConfig(
        recipe="demo",
        max_steps=400,
        batch_size=32,
        checkpoint_every=100,
        model=ModelConfig(trunk="resnet18", view_size=64),
        maskco=MaskCoConfig(momentum=0.95),
        optimizer=OptimizerConfig(learning_rate=0.24),
    )


RECIPES: Mapping[str, Callable[[], TrainConfig]] = {"paper": paper, "cpu_small": cpu_small, "demo": demo}
"""By the name that `--recipe` takes."""

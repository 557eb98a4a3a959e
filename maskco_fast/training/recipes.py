"""Named training configurations, each for every method; the command line changes single fields of
one."""

from collections.abc import Callable, Mapping

from maskco_fast.training.config import (
    MaskCoConfig,
    MoCoV2Config,
    ModelConfig,
    NPIDConfig,
    OptimizerConfig,
    TrainConfig,
)

_PAPER_OPTIMIZERS: Mapping[str, OptimizerConfig] = {
    "maskco": OptimizerConfig(weight_decay=1e-3),
    "moco_v2": OptimizerConfig(),
    "simclr": OptimizerConfig(
        name="lars", learning_rate=0.3, weight_decay=1e-6, warmup_steps=50_000
    ),
    "npid": OptimizerConfig(),
}
"""SPEC 1 and 2. SimCLR's warm-up is OpenSelfSup's, 10 ImageNet epochs of 5004 steps. NPID's authors
divide the rate by 10 at some epochs; here it has the cosine of the others."""

_SHORT_OPTIMIZERS: Mapping[str, OptimizerConfig] = {
    "maskco": OptimizerConfig(learning_rate=0.24),
    "moco_v2": OptimizerConfig(learning_rate=0.24),
    "simclr": OptimizerConfig(name="lars", learning_rate=8.0, weight_decay=1e-6, warmup_steps=10),
    "npid": OptimizerConfig(learning_rate=0.24),
}
"""Of runs of some hundred steps of 32 images."""


def paper(method: str = "maskco") -> TrainConfig:
    """The paper's run: ResNet-50 at 224, batch 256 in groups of 32, 500k steps; weight decay 1e-3
    for MaskCo (SPEC)."""
    return TrainConfig(recipe="paper", method=method, optimizer=_PAPER_OPTIMIZERS[method])


def cpu_small(method: str = "maskco") -> TrainConfig:
    """For a CPU of a few cores: ResNet-18 at 96 pixels, batch 32; 300 steps take minutes, not days.

    MaskCo's contrast is the paper's whole one, one group and 496 negatives, so chance is ln 497 =
    6.21. Two values are a short run's, not the paper's. The rate is .24 for a batch of 256, so .03
    for these 32, where linear scaling from .03 leaves .00375. The key network's momentum is .95:
    the paper's .999 averages over a thousand steps, more than such a run has. (150 steps at 64
    pixels on 1000 ImageNet images ended at 5.66 with momentum .99 and at 5.55 with .95; rates from
    .03 to .12 differed by .05.) MoCo v2 has a queue that such a run fills, and groups of 8 for its
    shuffle. NPID has as many negatives, and the softmax: with NCE's fixed partition function the
    loss on a few thousand images rose to hundreds in the first epochs, while the bank filled with
    features that were still much alike.
    """
    return _short("cpu_small", method, max_steps=300, checkpoint_every=50, view_size=96)


def demo(method: str = "maskco") -> TrainConfig:
    """`make train`: the built-in scenes, ResNet-18 at 64 pixels; the loss falls clearly within
    minutes on 2 cores.

    The method's values as in `cpu_small`, for the same reasons.
    """
    return _short("demo", method, max_steps=400, checkpoint_every=100, view_size=64)


def _short(
    recipe: str, method: str, *, max_steps: int, checkpoint_every: int, view_size: int
) -> TrainConfig:
    return TrainConfig(
        recipe=recipe,
        method=method,
        max_steps=max_steps,
        batch_size=32,
        checkpoint_every=checkpoint_every,
        model=ModelConfig(
            trunk="resnet18", view_size=view_size, group_size=8 if method == "moco_v2" else 32
        ),
        maskco=MaskCoConfig(momentum=0.95),
        moco_v2=MoCoV2Config(queue=1024, momentum=0.95),
        npid=NPIDConfig(objective="softmax", negatives=1024),
        optimizer=_SHORT_OPTIMIZERS[method],
    )


RECIPES: Mapping[str, Callable[..., TrainConfig]] = {
    "paper": paper,
    "cpu_small": cpu_small,
    "demo": demo,
}
"""By the name that `--recipe` takes; each takes the name of a method, MaskCo where none is given.
"""

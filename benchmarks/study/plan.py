"""The study's plan: arms, seeds, measures and claims, fixed before the first run.

    python -m benchmarks.study plan

A change of this file changes `stamp()`, which every result carries; `report` refuses to mix plans.
docs/study.md gives the reasons for the design, and what a pilot had found.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

SEEDS = (0, 1, 2, 3, 4)
"""Of the weights, the order and the augmentations; the arms of a seed are compared in pairs."""
STEPS = 2000
"""Optimiser steps of every run: 17 passes over 7500 images."""
CURVE_STEPS = (250, 500, 1000)
"""Earlier steps that are measured too."""

COMMON: Mapping[str, object] = {
    "recipe": "cpu_small",
    "model.trunk": "resnet10-small",
    "model.view-size": 64,
    "batch-size": 64,
    "optimizer.weight-decay": 1e-4,
    "max-steps": STEPS,
}
"""Options of every run. resnet10-small has a stride of 16, so that a 64-pixel view has a 4x4 map:
in the pilot nothing mattered more than the map's size."""

PILOTED: Mapping[str, Mapping[str, object]] = {
    "maskco": {
        "method": "maskco",
        "maskco.mph-blocks": 0,
        "maskco.momentum": 0.99,
        "maskco.temperature": 0.2,
        "optimizer.learning-rate": 0.24,
        "model.group-size": 32,
    },
    "moco_v2": {
        "method": "moco_v2",
        "moco-v2.momentum": 0.99,
        "moco-v2.temperature": 0.2,
        "moco-v2.queue": 2048,
        "optimizer.learning-rate": 0.24,
        "model.group-size": 8,
    },
}
"""Each method's options in the pilot, where the sweep begins. The learning rate is for 256 images,
.06 for the 64 of a step."""

METHODS: Mapping[str, Mapping[str, object]] = {
    "maskco": {**PILOTED["maskco"], "maskco.temperature": 0.1},
    "moco_v2": {**PILOTED["moco_v2"], "moco-v2.temperature": 0.1},
}
"""Each method's options in the study: those that were best in the sweep (docs/study.md), by other
seeds and test images than the study's."""


Images = Literal["plain", "same", "mixed"]
_MOSAICS: Mapping[Images, str] = {
    "same": "mosaics of four images of one class",
    "mixed": "mosaics of four images of four classes",
}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to pre-train."""

    name: str
    method: str
    """A key of `METHODS`; "random" is not trained."""
    images: Images = "plain"
    """plain: the training images. same, mixed: mosaics of four of one class, of four classes."""
    options: Mapping[str, object] = dataclasses.field(default_factory=dict)
    """Options beyond those of the method."""
    about: str

    def train_options(self, seed: int) -> dict[str, object]:
        """The options of `maskco-fast train`, without the shards and the run folder."""
        return {**COMMON, **METHODS[self.method], **self.options, "seed": seed}


ARMS = (
    Arm(name="maskco", method="maskco", about="MaskCo without a mask prediction head"),
    Arm(
        name="maskco-mph3",
        method="maskco",
        options={"maskco.mph-blocks": 3},
        about="MaskCo with three blocks in the head, the paper's default",
    ),
    Arm(
        name="maskco-mph3-zero",
        method="maskco",
        options={"maskco.mph-blocks": 3, "maskco.mph-zero-init": True},
        about="three blocks that begin as the identity",
    ),
    Arm(
        name="maskco-unmasked",
        method="maskco",
        options={"maskco.mask": False},
        about="MaskCo that sees the box it must find",
    ),
    Arm(
        name="maskco-intra",
        method="maskco",
        options={"maskco.negatives": "intra"},
        about="negatives from the image itself",
    ),
    Arm(
        name="maskco-both",
        method="maskco",
        options={"maskco.negatives": "both"},
        about="negatives from the image and from others",
    ),
    Arm(name="moco_v2", method="moco_v2", about="MoCo v2"),
    *(
        Arm(name=f"{method}-{images}", method=method, images=images, about=f"{method} on {text}")
        for method in ("maskco", "moco_v2")
        for images, text in _MOSAICS.items()
    ),
    Arm(name="random", method="random", about="not trained: the floor of every measure"),
)

SWEEP_SEEDS = (100, 101)
SWEEP_STEPS = 1000
_SWEPT: Mapping[str, Mapping[str, tuple[object, ...]]] = {
    "maskco": {
        "optimizer.learning-rate": (0.12, 0.24),
        "maskco.momentum": (0.95, 0.99, 0.999),
        "maskco.temperature": (0.1, 0.2),
    },
    "moco_v2": {
        "optimizer.learning-rate": (0.12, 0.24),
        "moco-v2.momentum": (0.95, 0.99, 0.999),
        "moco-v2.temperature": (0.1, 0.2),
        "model.group-size": (8, 32),
    },
}
"""What the sweep tries of each method, one option at a time: about as much for either."""

SWEEP_ARMS = (
    *(
        Arm(name=f"sweep-{method}", method=method, options=options, about=f"{method} as piloted")
        for method, options in PILOTED.items()
    ),
    *(
        Arm(
            name=f"sweep-{method}-{name.rpartition('.')[2]}-{value}",
            method=method,
            options={**PILOTED[method], name: value},
            about=f"{method} with {name} {value}",
        )
        for method, swept in _SWEPT.items()
        for name, values in swept.items()
        for value in values
        if value != PILOTED[method][name]
    ),
)
"""`PILOTED`, and settings one option away from it."""

LAYERS = ("conv3", "conv4", "conv5")
MEASURES = (*(f"probe {layer}" for layer in LAYERS), *(f"knn {layer}" for layer in LAYERS), "loss")
"""Top-1 accuracies, per cent, of the frozen query trunk on images that no arm has seen, and the
mean loss of the last 100 steps. probe: logistic regression on standardised average-pooled features
of the training images; knn: 20 neighbours, temperature .07. BatchNorm's statistics are those of
clean training images."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement about a sum of arms' measures, paired by seed.

    It holds where the mean over the seeds lies beyond `bound` and the 95 % t-interval excludes 0 on
    that side; it fails where the interval lies wholly below `bound`; else it cannot be told.
    """

    name: str
    says: str
    measure: str
    terms: Mapping[str, float]
    """Arm to factor: the claim is about the sum of factor times measure."""
    bound: float | None
    """Least mean, in per cent points or units of the loss. None: both signs are of interest, and
    the claim is that the interval excludes 0."""
    paper: str = ""
    """The paper's figure, where it has one."""


def _difference(one: str, other: str) -> dict[str, float]:
    return {one: 1.0, other: -1.0}


_COMPANY = {"moco_v2-same": 1.0, "moco_v2-mixed": -1.0, "maskco-same": -1.0, "maskco-mixed": 1.0}

CLAIMS = (
    *(
        Claim(
            name=f"company {measure}",
            says="mixing classes in a scene costs MoCo v2 more than MaskCo",
            measure=measure,
            terms=_COMPANY,
            bound=bound,
            paper="the central claim; no figure of this kind",
        )
        for measure, bound in (("knn conv4", 2.0), ("knn conv5", 2.0), ("probe conv5", 0.0))
    ),
    Claim(
        name="company of MoCo v2",
        says="mixing classes in a scene costs MoCo v2",
        measure="knn conv4",
        terms=_difference("moco_v2-same", "moco_v2-mixed"),
        bound=2.0,
    ),
    *(
        Claim(
            name=f"inter {measure}",
            says="negatives of other images carry MaskCo, those of the image itself do not",
            measure=measure,
            terms=_difference("maskco", "maskco-intra"),
            bound=bound,
            paper=paper,
        )
        for measure, bound, paper in (
            ("probe conv5", 5.0, "63.1 - 48.6 (Table 6)"),
            ("probe conv4", 2.0, "57.6 - 50.8 (Table 6)"),
        )
    ),
    Claim(
        name="both conv5",
        says="both kinds of negatives differ from those of other images",
        measure="probe conv5",
        terms=_difference("maskco-both", "maskco"),
        bound=None,
        paper="61.3 - 63.1 (Table 6)",
    ),
    Claim(
        name="mask loss",
        says="the mask makes the task harder",
        measure="loss",
        terms=_difference("maskco", "maskco-unmasked"),
        bound=0.3,
        paper="about 2.51 - 1.83",
    ),
    Claim(
        name="mask conv4",
        says="the mask makes conv4 better",
        measure="probe conv4",
        terms=_difference("maskco", "maskco-unmasked"),
        bound=1.0,
        paper="57.2 - 51.9 (Table 5)",
    ),
    Claim(
        name="mask conv5",
        says="without a head the mask changes conv5",
        measure="probe conv5",
        terms=_difference("maskco", "maskco-unmasked"),
        bound=None,
        paper="41.9 - 52.3 (Table 5); the pilot had the other sign",
    ),
    Claim(
        name="head conv5",
        says="three blocks of the head change conv5",
        measure="probe conv5",
        terms=_difference("maskco-mph3", "maskco"),
        bound=None,
        paper="63.1 - 41.9 (Table 4); the pilot had the other sign",
    ),
    Claim(
        name="head from zero conv5",
        says="a head that begins as the identity changes conv5",
        measure="probe conv5",
        terms=_difference("maskco-mph3-zero", "maskco"),
        bound=None,
    ),
    *(
        Claim(
            name=f"floor {arm.name}",
            says=f"{arm.name} learns: it is above an untrained trunk",
            measure="probe conv5",
            terms=_difference(arm.name, "random"),
            bound=5.0,
        )
        for arm in ARMS
        if arm.method != "random"
    ),
)


def find_arm(name: str) -> Arm:
    """The arm of this name; KeyError where there is none."""
    return {arm.name: arm for arm in (*ARMS, *SWEEP_ARMS)}[name]


def as_json() -> str:
    """The whole plan as JSON text."""
    return json.dumps(
        {
            "seeds": SEEDS,
            "steps": STEPS,
            "curve_steps": CURVE_STEPS,
            "common": COMMON,
            "methods": METHODS,
            "arms": [dataclasses.asdict(arm) for arm in ARMS],
            "measures": MEASURES,
            "claims": [dataclasses.asdict(claim) for claim in CLAIMS],
        },
        indent=1,
    )


def stamp() -> str:
    """A hash of the plan, 12 hex digits."""
    return hashlib.sha256(as_json().encode()).hexdigest()[:12]

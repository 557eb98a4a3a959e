"""Accuracy of a frozen trunk at several depths, on labelled images that it was not trained on.

Shapes: N images, D features of all layers side by side.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from benchmarks.study.plan import LAYERS
from maskco_fast.evaluation.features import Features, extract
from maskco_fast.evaluation.knn import SETTINGS, knn_top1
from maskco_fast.evaluation.labelled import open_pair
from maskco_fast.evaluation.recalibrate import recalibrate
from maskco_fast.evaluation.weights import frozen_trunk, read_weights
from maskco_fast.loaders import Dataset, Loader, ViewConfig, make_loader
from maskco_fast.networks.resnet import Trunk
from maskco_fast.training.devices import (
    Precision,
    choose_device,
    choose_precision,
    configure_cuda,
)

BATCH = 125
RECALIBRATE = 7500
"""Images over which BatchNorm's statistics are computed, at most."""
PROBE_ITERATIONS = 1000
"""Most steps of L-BFGS; it stops where the gradient is small."""


@dataclass(frozen=True, kw_only=True)
class Images:
    """The labelled images of all measurements."""

    train: Dataset
    test: Dataset
    classes: tuple[str, ...]

    @classmethod
    def open(cls, train: Sequence[str], test: Sequence[str], labels: str) -> "Images":
        """Open both sets, named as in `train`."""
        opened = open_pair(train, test, labels, announce=False)
        return cls(train=opened[0], test=opened[1], classes=opened[2])

    def loader(
        self, dataset: Dataset, size: int, device: torch.device, *, drop_last: bool = False
    ) -> Loader:
        """Whole images at `size` pixels, in their order; for recalibration in a random one."""
        return make_loader(
            dataset,
            min(BATCH, len(dataset)),
            views=ViewConfig.evaluation(size),
            device=device,
            shuffle=drop_last,
            drop_last=drop_last,
            threads=1,
        )


def measure(
    weights: str, images: Images, *, size: int, seed: int, trunk: str, device: str = "cpu"
) -> dict[str, float]:
    """Top-1 accuracies, per cent, by the names of `plan.MEASURES`, of a checkpoint or "random".

    `size`: side of the images, pixels. `trunk`, `seed`: of random weights. `device`: of all but
    the probes.
    """
    on = choose_device(device)
    configure_cuda(on)
    network = frozen_trunk(read_weights(weights, trunk=trunk, seed=seed)).to(on)
    precision = choose_precision("auto", on)
    with images.loader(images.train, size, on, drop_last=True) as loader:
        recalibrate(network, loader, precision, images=RECALIBRATE)
    train, test = (
        by_layer(network, images.loader(dataset, size, on), precision)
        for dataset in (images.train, images.test)
    )
    top1: dict[str, float] = {}
    for layer in LAYERS:
        top1[f"probe {layer}"] = probe_top1(train[layer], test[layer])
        top1[f"knn {layer}"] = knn_top1(
            train[layer],
            test[layer],
            SETTINGS[:1],
            classes=len(images.classes),
            device=on,
        )[0]
    return top1


def by_layer(network: Trunk, loader: Loader, precision: Precision) -> Mapping[str, Features]:
    """Average-pooled features of each of `LAYERS`; closes the loader."""
    widths: list[int] = []

    def encode(batch: torch.Tensor) -> torch.Tensor:
        maps = network.maps(batch)[-len(LAYERS) :]
        widths[:] = [one.shape[1] for one in maps]
        return torch.cat([one.float().mean((2, 3)) for one in maps], 1)

    with loader:
        found = extract(encode, loader, precision)
    assert found is not None  # nothing stops it
    values = found.values.split(widths, 1)
    return {
        layer: Features(values=part, target=found.target, index=found.index)
        for layer, part in zip(LAYERS, values)
    }


def probe_top1(train: Features, test: Features) -> float:
    """Top-1 accuracy, per cent, of scikit-learn's logistic regression on standardised features."""
    scaler = StandardScaler().fit(train.values.numpy())
    probe: Any = LogisticRegression(max_iter=PROBE_ITERATIONS)
    probe.fit(scaler.transform(train.values.numpy()), train.target.numpy())
    return 100 * float(probe.score(scaler.transform(test.values.numpy()), test.target.numpy()))

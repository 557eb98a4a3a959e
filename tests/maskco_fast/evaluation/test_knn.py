"""k-NN against scikit-learn and against a loop, over any number of blocks and ranks."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from maskco_fast.evaluation import knn
from maskco_fast.evaluation.features import Features
from maskco_fast.evaluation.knn import SETTINGS, KnnSetting, knn_top1
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.training.distributed import World

CPU = torch.device("cpu")
CLASSES = 5


def features(count: int, seed: int) -> Features:
    """Overlapping clusters, so that the settings disagree."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(CLASSES, (count,), generator=generator)
    centres = torch.eye(CLASSES, 16)
    values = centres[target] + 0.5 * torch.randn(count, 16, generator=generator)
    return Features(values=values, target=target, index=torch.arange(count))


@pytest.fixture(scope="module")
def sets():
    return features(301, 0), features(50, 1)


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b)) / math.hypot(*a) / math.hypot(*b)


def in_a_loop(train: Features, val: Features, setting: KnnSetting) -> float:
    """The published formula, image by image."""
    correct = 0
    for query, target in zip(val.values.double(), val.target.tolist()):
        query = query.tolist()
        cosines = [cosine(query, one) for one in train.values.tolist()]
        nearest = sorted(range(len(cosines)), key=lambda n: -cosines[n])[: setting.k]
        votes = [0.0] * CLASSES
        for n in nearest:
            votes[train.target[n]] += math.exp(cosines[n] / setting.temperature)
        correct += votes.index(max(votes)) == target
    return 100 * correct / len(val)


@pytest.mark.parametrize("block", [1 << 16, 7])
def test_accuracy_equals_a_loop_of_the_formula(monkeypatch, sets, block):
    train, val = sets
    monkeypatch.setattr(knn, "TRAIN_BLOCK", block)
    monkeypatch.setattr(knn, "VAL_BLOCK", block)
    found = knn_top1(train, val, SETTINGS, classes=CLASSES, device=CPU)
    assert found == pytest.approx([in_a_loop(train, val, setting) for setting in SETTINGS])
    assert 50 < found[0] < 100
    assert found[0] != found[1]


def test_accuracy_equals_scikit_learns(sets):
    neighbors = pytest.importorskip("sklearn.neighbors", reason="compares with scikit-learn")
    train, val = sets
    settings = [KnnSetting(k=1, temperature=1), KnnSetting(k=30, temperature=0.5), *SETTINGS]
    for setting, found in zip(
        settings, knn_top1(train, val, settings, classes=CLASSES, device=CPU), strict=True
    ):
        classifier = neighbors.KNeighborsClassifier(
            setting.k,
            metric="cosine",
            algorithm="brute",
            weights=lambda distance, setting=setting: np.exp((1 - distance) / setting.temperature),
        ).fit(train.values.numpy(), train.target.numpy())
        assert found == pytest.approx(100 * classifier.score(val.values, val.target), abs=1e-9)


class Ranks(World):
    """A rank whose exchanges with the other ranks are played by hand."""

    def gather_objects(self, value):
        return self.control(value)


def test_the_number_of_ranks_does_not_matter(sets):
    """Each rank's neighbours among its own training images are merged."""
    train, val = sets

    def share_of(one: Features, r: int) -> Features:
        return Features(values=one.values[r::3], target=one.target[r::3], index=one.index[r::3])

    shares = [(share_of(train, r), share_of(val, r)) for r in range(3)]
    exchanges: list[list[Any]] = [
        [len(share[0]) for share in shares],
        [(share[1].values, share[1].target) for share in shares],
    ]
    queries = torch.cat([values for values, _ in exchanges[1]])
    exchanges.append([knn.nearest(share[0], queries, 200, CPU) for share in shares])
    for rank, (own_train, own_val) in enumerate(shares):
        answers = iter(exchanges)
        world = Ranks(rank=rank, size=3, control=lambda value, answers=answers: next(answers))
        found = knn_top1(own_train, own_val, SETTINGS, classes=CLASSES, device=CPU, world=world)
        assert found == knn_top1(train, val, SETTINGS, classes=CLASSES, device=CPU)


def test_bad_settings_are_refused(sets):
    train, val = sets
    with pytest.raises(InvalidInput, match="number of training images, 301, got 302"):
        knn_top1(train, val, [KnnSetting(k=302)], classes=CLASSES, device=CPU)
    with pytest.raises(InvalidInput, match="`k` must be at least 1, got 0"):
        KnnSetting(k=0)
    with pytest.raises(InvalidInput, match="`temperature` must be greater than 0"):
        KnnSetting(temperature=0)
    empty = Features(
        values=torch.empty(0, 0),
        target=torch.empty(0, dtype=torch.int64),
        index=torch.empty(0, dtype=torch.int64),
    )
    with pytest.raises(InvalidInput, match="at least one usable image"):
        knn_top1(train, empty, SETTINGS, classes=CLASSES, device=CPU)


def test_a_low_temperature_does_not_overflow(sets):
    train, val = sets
    coldest, first = knn_top1(
        train,
        val,
        [KnnSetting(k=20, temperature=1e-6), KnnSetting(k=1)],
        classes=CLASSES,
        device=CPU,
    )
    assert coldest == first

"""Tests of a detector between two steps."""

import pathlib

import pytest
import torch

from maskco_fast.commands.detect import make_trainer
from maskco_fast.detection.annotations import read_annotations
from maskco_fast.detection.config import DetectConfig
from maskco_fast.detection.network import DetectionMethod
from maskco_fast.detection.testing import Tester
from maskco_fast.evaluation.weights import read_weights
from maskco_fast.training.distributed import World


@pytest.fixture
def parts(tiny: DetectConfig) -> tuple[DetectionMethod, Tester]:
    pytest.importorskip("pycocotools")
    weights = read_weights("random", trunk="resnet18")
    root = tiny.data or pathlib.Path()
    train, val = (read_annotations(one, root=root, masks=True) for one in (tiny.train, tiny.val))
    trainer, tester = make_trainer(
        tiny, tiny.run(weights), weights.trunk_state, train, val, World()
    )
    assert isinstance(trainer.method, DetectionMethod)
    return trainer.method, tester


def test_a_test_leaves_the_run_as_it_was(parts: tuple[DetectionMethod, Tester]) -> None:
    """Weights, statistics, mode, position and torch's generator; the boxes lie in the images."""
    method, tester = parts
    before = {name: value.clone() for name, value in method.state_dict().items()}
    generator = torch.get_rng_state()
    values = tester.measure(method, lambda: False)
    assert set(values) == {"AP", "AP50", "AP75", "mask_AP", "mask_AP50"}
    assert method.training
    assert torch.equal(torch.get_rng_state(), generator)
    for name, value in method.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert tester.last is not None
    assert len(tester.last.found) == 3
    for image, found in zip(tester.val.images, tester.last.found):
        assert 0 < len(found.boxes) <= 5
        assert len(found.masks) == len(found.scores) == len(found.boxes)
        assert (found.boxes >= 0).all()
        assert (found.boxes <= [image.width, image.height] * 2).all()
        assert all(mask["size"] == [image.height, image.width] for mask in found.masks)


def test_a_stopped_test_has_no_result(parts: tuple[DetectionMethod, Tester]) -> None:
    method, tester = parts
    assert tester.measure(method, lambda: True) == {}
    assert method.training

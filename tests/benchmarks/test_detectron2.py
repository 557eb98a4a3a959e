"""The comparison with Detectron2: what runs without it, and all of it where it is installed."""

import importlib.util
import pathlib

import numpy as np
import pytest
import torch

from benchmarks.correctness import detectron2


def test_without_detectron2_the_commands_are_printed(tmp_path: pathlib.Path) -> None:
    if importlib.util.find_spec("detectron2") is not None:
        pytest.skip("detectron2 is installed")
    with pytest.raises(SystemExit, match="pip install --no-build-isolation"):
        detectron2.import_detectron2(tmp_path)


def test_the_anchors_are_put_into_detectron2s_order() -> None:
    """Ours: ratios outside, sizes inside; Detectron2's the other way round."""
    ours = [(ratio, size) for ratio in range(3) for size in range(5)]
    found = [ours[at] for at in detectron2._anchor_order(5)]
    assert found == [(ratio, size) for size in range(5) for ratio in range(3)]


def test_scores_are_distinct_and_rounding_changes_nothing() -> None:
    """VOC's evaluator prints three decimals of scores and one of coordinates."""
    pytest.importorskip("pycocotools")
    scenes = detectron2.random_scenes(detectron2.Options(images=5), classes=3, side=64)
    scores = np.concatenate([scene.found.scores for scene in scenes])
    assert len(np.unique(scores.round(3))) == len(scores)
    boxes = np.concatenate([scene.found.boxes for scene in scenes])
    assert np.array_equal(boxes, boxes.round(1))
    assert torch.from_numpy(boxes[:, 2:] - boxes[:, :2]).min() > 0

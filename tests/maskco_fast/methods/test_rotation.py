"""Rotation: the rotated images, their labels and the loss against loops."""

import math

import pytest
import torch

from maskco_fast.methods.rotation import rotations
from tests.support.small_methods import SAMPLES, batches, small_config, small_method


def turned(image: list[list], turns: int) -> list[list]:
    """Rows of pixels, turned counter-clockwise: the last column becomes the first row."""
    for _ in range(turns):
        image = [list(column) for column in zip(*image)][::-1]
    return image


def test_rotations_equal_loops():
    images = torch.arange(2 * 3 * 5 * 5, dtype=torch.float32).view(2, 3, 5, 5)
    found = rotations(images.contiguous(memory_format=torch.channels_last))
    assert found.is_contiguous(memory_format=torch.channels_last)
    wanted = [
        [turned(channel, turns) for channel in image]
        for image in images.tolist()
        for turns in range(4)
    ]
    assert found.tolist() == wanted


def test_the_loss_is_the_cross_entropy_of_the_four_turns():
    method = small_method(small_config("rotation"), torch.float64)
    batch = batches(1, torch.float64)[0]
    scalars = method(batch)
    logits = method.query(rotations(batch.query)).tolist()
    assert len(logits) == 4 * SAMPLES
    loss = right = 0.0
    for row, values in enumerate(logits):
        label = row % 4
        loss += math.log(sum(math.exp(value) for value in values)) - values[label]
        right += values[label] == max(values)
    assert scalars["loss"].item() == pytest.approx(loss / len(logits), rel=1e-9)
    assert scalars["accuracy"].item() == pytest.approx(right / len(logits))

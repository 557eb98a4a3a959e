"""The order of training images, and their resizing and flips."""

import itertools
import pathlib

import numpy as np
import pytest
import torch
from PIL import Image

from maskco_fast.detection.annotations import read_annotations
from maskco_fast.detection.batches import (
    DetectionLoader,
    Draw,
    load_training,
    read_image,
    resized,
    training_order,
)
from maskco_fast.kernels.errors import InvalidInput

SIDES = (64, 80)


def test_every_image_comes_once_an_epoch_in_batches_of_one_orientation() -> None:
    """Seven wide and five high images: what is left of an epoch comes first in the next."""
    wide = np.arange(12) < 7
    batches = list(itertools.islice(training_order(wide, 2, SIDES, seed=0), 12))
    assert all(len({bool(wide[draw.number]) for draw in batch}) == 1 for batch in batches)
    counts = np.bincount([draw.number for batch in batches for draw in batch], minlength=12)
    assert counts.tolist() == [2] * 12
    draws = [draw for batch in batches for draw in batch]
    assert {draw.short_side for draw in draws} == set(SIDES)
    assert {draw.flip for draw in draws} == {False, True}
    assert list(itertools.islice(training_order(wide, 2, SIDES, seed=0), 12)) == batches
    assert list(itertools.islice(training_order(wide, 2, SIDES, seed=1), 12)) != batches


@pytest.mark.parametrize(
    ("size", "short", "long", "expected"),
    [
        ((375, 500), 800, 1333, (800, 1067)),
        ((500, 375), 480, 1333, (640, 480)),
        ((200, 500), 800, 1333, (533, 1333)),
    ],
)
def test_sizes_are_detectron2s(
    size: tuple[int, int], short: int, long: int, expected: tuple[int, int]
) -> None:
    assert resized(*size, short, long) == expected


def test_boxes_and_masks_follow_the_image(scenes: pathlib.Path) -> None:
    """The box of each resized mask is the resized box, within two pixels, flipped or not."""
    pytest.importorskip("pycocotools")
    image = read_annotations(("train.json:train",), root=scenes, masks=True).images[0]
    straight, flipped = (load_training(image, Draw(0, 128, flip), 200) for flip in (False, True))
    assert torch.equal(flipped.image, straight.image.flip(-1))
    assert min(straight.image.shape[1:]) == 128
    assert torch.equal(straight.target["labels"], torch.from_numpy(image.labels + 1))
    for sample in (straight, flipped):
        for box, mask in zip(sample.target["boxes"], sample.target["masks"]):
            ys, xs = torch.nonzero(mask, as_tuple=True)
            around = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
            assert (around - box).abs().max() <= 2


def test_ranks_share_a_batch_and_a_position_resumes(scenes: pathlib.Path) -> None:
    images = read_annotations(("train.json:train",), root=scenes).images

    def loader(rank: int = 0, size: int = 1) -> DetectionLoader:
        return DetectionLoader(
            images,
            2,
            short_sides=SIDES,
            long_side=96,
            seed=0,
            threads=2,
            rank=rank,
            world_size=size,
        )

    whole = loader()
    batches = list(itertools.islice(whole, 3))
    assert whole.state_dict()["next"] == 3
    resumed = loader()
    resumed.load_state_dict({**whole.state_dict(), "next": 2})
    again = next(iter(resumed))
    assert torch.equal(again.sample_id, batches[2].sample_id)
    assert all(torch.equal(a, b) for a, b in zip(again.images, batches[2].images))
    shares = [next(iter(loader(rank, 2))) for rank in range(2)]
    assert torch.equal(torch.cat([share.sample_id for share in shares]), batches[0].sample_id)
    with pytest.raises(InvalidInput, match="other training images"):
        resumed.load_state_dict({"next": 0, "annotations": "others"})


def test_images_that_do_not_fit_their_annotation_are_named(scenes: pathlib.Path) -> None:
    image = read_annotations(("val.json:val",), root=scenes).images[0]
    original = image.path.read_bytes()
    try:
        Image.new("RGB", (32, 32)).save(image.path)
        with pytest.raises(InvalidInput, match=rf"{image.path.name} has 32x32 pixels"):
            read_image(image)
        image.path.write_bytes(original[:100])
        with pytest.raises(InvalidInput, match=rf"{image.path.name} cannot be decoded"):
            read_image(image)
        image.path.unlink()
        with pytest.raises(InvalidInput, match=rf"{image.path.name} does not exist"):
            read_image(image)
    finally:
        image.path.write_bytes(original)

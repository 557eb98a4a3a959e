"""Exact and fast decoding, and the region of an image that its crops need."""

from typing import Any

import numpy as np
import pytest
import torch

from maskco_fast.kernels.plan import plan
from maskco_fast.loaders import View, ViewConfig, make_loader, open_dataset
from maskco_fast.loaders.regions import crop_regions, scale_crops, shrink_factors
from maskco_fast.loaders.shards.build_index import index_shard
from maskco_fast.loaders.shards.decode import BadImage, Decoder
from maskco_fast.loaders.shards.index import SAMPLE_DTYPE
from tests.support.batches import key_boxes
from tests.support.images import encode, picture, write_tar

VIEWS = ViewConfig.maskco(48)
KINDS: dict[str, dict[str, Any]] = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "gray": {},
    "progressive": {"progressive": True},
}


def plans(count, height, width, views=VIEWS):
    return plan(views, 0, 0, np.arange(count), np.full(count, height), np.full(count, width))


def record(data, tmp_path):
    return index_shard(str(write_tar(tmp_path / "one.tar", {"0.jpg": data}))).samples[0]


def test_regions_hold_all_crops_and_no_more():
    rows = plans(200, 90, 130)
    regions = crop_regions(rows, 2)
    crops = rows.view(VIEWS.plan_dtype)[:, 0]["views"]["crop"].astype(np.int64)
    ends = (crops[..., :2] + crops[..., 2:]).max(1)
    assert (regions[:, :2] == crops[..., :2].min(1)).all()
    assert (regions[:, :2] + regions[:, 2:] == ends).all()
    assert (ends <= (90, 130)).all()


def test_images_shrink_as_far_as_their_crops_allow():
    for side in (40, 96, 200, 2000):
        rows = plans(200, side, side)
        sides = rows.view(VIEWS.plan_dtype)[:, 0]["views"]["crop"][..., 2:].min((1, 2))
        shrinks = shrink_factors(rows, VIEWS.layout.sizes)
        assert np.isin(shrinks, (1, 2, 4, 8)).all()
        assert ((sides / shrinks >= VIEWS.size) | (shrinks == 1)).all()
        assert ((sides / shrinks < 2 * VIEWS.size) | (shrinks == 8)).all()


def test_each_view_bounds_the_shrinking_by_its_own_size():
    views = ViewConfig(views=(View(size=64), View(size=(16, 32))))
    row = plan(views, 0, 0, np.arange(1), np.array([500]), np.array([500]))
    for first, second, factor in (((400, 300), (60, 260), 2), ((400, 300), (64, 128), 4)):
        for v, sides in enumerate((first, second)):
            row.view(views.plan_dtype)[0, 0]["views"][v]["window"] = (0, 0, *sides)
        assert shrink_factors(row, views.layout.sizes).tolist() == [factor]


def test_shrunk_crops_stay_inside_and_keep_the_rest_of_the_plan():
    for row in plans(100, 301, 403):
        small = scale_crops(row, 2, 4, 76, 101)
        crops = small.view(VIEWS.plan_dtype)[0]["views"]["crop"]
        assert (crops[:, :2] >= 0).all()
        assert (crops[:, 2:] >= 1).all()
        assert (crops[:, :2] + crops[:, 2:] <= (76, 101)).all()
        assert np.abs(4 * crops - row.view(VIEWS.plan_dtype)[0]["views"]["crop"]).max() <= 4
        changed = small.view(VIEWS.plan_dtype)[0].copy()
        for field in ("crop", "window"):
            changed["views"][field] = row.view(VIEWS.plan_dtype)[0]["views"][field]
        assert changed.tobytes() == row.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_fast_decoding_shrinks_as_told(kind, tmp_path):
    image = picture(401, 603, 1)
    data = encode(image[..., 0] if kind == "gray" else image, quality=95, **KINDS[kind])
    sample = record(data, tmp_path)
    exact = torch.from_numpy(Decoder().decode(data, sample).copy()).permute(2, 0, 1)[None].float()
    for shrink in (1, 2, 4, 8):
        small, by = Decoder(fast=True).decode_scaled(data, sample, shrink)
        assert by == shrink
        means = torch.nn.functional.avg_pool2d(exact, by, ceil_mode=True)[0].permute(1, 2, 0)
        # 4:2:2 chroma keeps half the width at every scale.
        loss = 2 * shrink + 1 if kind == "4:2:2" else 3
        assert (means - torch.from_numpy(small)).abs().mean() < loss
    assert Decoder().decode_scaled(data, sample, 8).shrink == 1


@pytest.mark.parametrize("fast", [False, True])
def test_damage_is_judged_alike(fast, tmp_path):
    data = encode(picture(203, 187, 3), quality=90)
    sample, decoder = record(data, tmp_path), Decoder(fast=fast)
    with pytest.raises(BadImage):
        decoder.decode_scaled(data[: len(data) * 3 // 4], sample, 2)
    with pytest.raises(BadImage, match="not an image"):
        decoder.decode_scaled(b"rubbish", sample, 2)
    other: Any = np.array(sample, SAMPLE_DTYPE)
    other["height"] = 100
    with pytest.raises(BadImage, match="size differs"):
        decoder.decode_scaled(data, other[()], 2)


def test_fast_views_are_those_of_the_plan(tmp_path):
    """Crop edges are off by at most half a pixel of the smaller image; colours and boxes agree."""
    members = {f"{n}.jpg": encode(picture(400 + n, 601, n), quality=95) for n in range(4)}
    path = str(write_tar(tmp_path / "s.tar", members))
    batches = {}
    for decode in ("exact", "fast"):
        with make_loader(
            path, 4, views=VIEWS, backend="native", dtype=torch.uint8, decode=decode
        ) as loader:
            batches[decode] = next(iter(loader))
    exact, fast = batches["exact"], batches["fast"]
    assert torch.equal(exact.sample_id, fast.sample_id)
    assert torch.equal(key_boxes(exact), key_boxes(fast))
    apart = torch.cat(
        [(one.float() - other.float()).abs() for one, other in zip(exact.views, fast.views)]
    )
    assert 0 < apart.mean() < 6
    with pytest.raises(ValueError, match="must be exact or fast"):
        make_loader(open_dataset(path), 4, views=VIEWS, decode="quick")

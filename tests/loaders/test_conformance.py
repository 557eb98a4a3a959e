"""The contract of `Loader`, tested for every backend; views within tolerance of the reference's.

Tolerances are in levels of 255. Decode, crop and resize differ from Pillow by at most 1. The colour
operations multiply that difference by their factors (at most 1.4 each, SwAV's 1.8); a hue rotation
of a nearly gray pixel multiplies it by more. The whole path is therefore held to 0.5 in the mean, 3
for all but one value in 200 (SwAV: in 50), and 16 at most. tests/kernels holds the colour
operations alone to closer tolerances.
"""

import dataclasses
import io
import itertools
import math
import os
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from maskco_fast.kernels.formats import FORMAT_NAMES
from maskco_fast.kernels.plan import plan
from maskco_fast.kernels.views import BRIGHTNESS, CONTRAST, HUE, IMAGENET_STD, SATURATION
from maskco_fast.loaders import (
    LOADERS,
    IteratorSuperseded,
    TooManyBadSamples,
    View,
    ViewConfig,
    make_loader,
)
from tests.support.batches import key_boxes, masked_box
from tests.support.images import encode, picture, write_tar

LEVEL = 1 / (255 * min(IMAGENET_STD))
"""One level after normalisation, in the channel where it is largest."""

VIEWS = ViewConfig.maskco(48)


def own_threads():
    """Names of the running threads that loaders started."""
    return [
        thread.name for thread in threading.enumerate() if thread.name.startswith(tuple(LOADERS))
    ]


def ids(loader, batches=None):
    return [batch.sample_id.tolist() for batch in itertools.islice(loader, batches)]


def flat(batches):
    return list(itertools.chain.from_iterable(batches))


def assert_close(mine, theirs, level=LEVEL, share=1 / 200):
    """Check the tolerance of the whole path. `level`: one level in the views' own unit. `share`: of
    the values that may differ by more than 3."""
    for view, truth in zip(mine.views, theirs.views, strict=True):
        difference = (view.float() - truth.float()).abs() / level
        assert difference.mean() <= 0.5
        assert (difference > 3).float().mean() <= share
        assert difference.max() <= 16


def same(first, second):
    """Whether two batches are equal bit for bit."""
    names = ("sample_id", "target", "index", "masked_box", "key_boxes")
    pairs = [(getattr(first, name), getattr(second, name)) for name in names]
    pairs += list(zip(first.views, second.views, strict=True))
    return all(torch.equal(one, other) for one, other in pairs)


def test_views_and_boxes_are_the_references(backend, make_shards):
    shards = make_shards(2, 16)
    with (
        make_loader(shards, 8, views=VIEWS, backend=backend) as loader,
        make_loader(shards, 8, views=VIEWS, backend="reference") as reference,
    ):
        assert len(loader) == len(reference) == 4
        for mine, theirs in zip(loader, reference, strict=True):
            for name in ("sample_id", "target", "index", "masked_box", "key_boxes"):
                assert torch.equal(getattr(mine, name), getattr(theirs, name)), name
            assert all(view.is_contiguous(memory_format=torch.channels_last) for view in mine.views)
            assert_close(mine, theirs)


def test_the_seam_is_within_a_level(backend, make_shards):
    """Decode, crop, resize and flip alone: views with unchanged colours, as levels."""
    plain = View(jitter_probability=0.0, gray_probability=0.0, blur_probability=0.0)
    views = ViewConfig(views=(plain, plain, plain), size=97)
    shards = make_shards(1, 12)
    options: dict[str, Any] = {"views": views, "dtype": torch.uint8}
    with (
        make_loader(shards, 12, backend=backend, **options) as loader,
        make_loader(shards, 12, backend="reference", **options) as reference,
    ):
        (mine,), (theirs,) = loader, reference
    for view, truth in zip(mine.views, theirs.views, strict=True):
        difference = (view.int() - truth.int()).abs()
        assert difference.max() <= 1
        assert difference.float().mean() <= 0.2


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_views_of_every_kind_are_the_references(backend, make_shards, dtype):
    """Views for classifiers, their evaluation and the other methods, side by side in one batch."""
    presets = (
        ViewConfig.supervised,
        ViewConfig.evaluation,
        ViewConfig.relative_loc,
        ViewConfig.rotation,
        ViewConfig.byol,
    )
    views = tuple(view for preset in presets for view in preset(48).views)
    config = ViewConfig(views=views, size=48, patch_grid=3, patch_size=12)
    options: dict[str, Any] = {"views": config, "dtype": dtype}
    shards = make_shards(1, 16, side=90)
    with (
        make_loader(shards, 16, backend=backend, **options) as loader,
        make_loader(shards, 16, backend="reference", **options) as reference,
    ):
        (mine,), (theirs,) = loader, reference
    assert mine.patch_corners is not None
    assert theirs.patch_corners is not None
    assert mine.patch_corners.dtype == torch.int64
    assert torch.equal(mine.patch_corners, theirs.patch_corners)
    assert_close(mine, theirs, 1 if dtype == torch.uint8 else LEVEL)


WIDE = View(size=(40, 64), mean=(0.5, 0.4, 0.3), std=(0.3, 0.3, 0.5))
UNEQUAL = {
    "dino": ViewConfig.dino(48, 24, 3),
    "dinov2": ViewConfig.dinov2(48, 21, 2),
    "swav": ViewConfig.swav(48, 24, 3),
    "rectangles": ViewConfig(
        views=(
            WIDE,
            dataclasses.replace(WIDE, size=(64, 40), interpolation="bicubic"),
            dataclasses.replace(WIDE, size=(24, 48), short_side=60),
        )
    ),
}
"""Multi-crop, and rectangles with statistics of their own."""
SHARES = {"swav": 1 / 50}


@pytest.mark.parametrize("name", UNEQUAL)
def test_views_of_unequal_sizes_are_the_references(backend, make_shards, name):
    shards, views = make_shards(1, 11, side=90), UNEQUAL[name]
    level = 1 / (255 * min(views.views[0].std))
    options: dict[str, Any] = {"views": views, "drop_last": False}
    with (
        make_loader(shards, 8, backend=backend, **options) as loader,
        make_loader(shards, 8, backend="reference", **options) as reference,
    ):
        for mine, theirs, count in zip(loader, reference, (8, 3), strict=True):
            assert torch.equal(mine.sample_id, theirs.sample_id)
            shapes = [tuple(view.shape) for view in mine.views]
            assert shapes == [(count, 3, *size) for size in views.layout.sizes]
            assert all(view.is_contiguous(memory_format=torch.channels_last) for view in mine.views)
            assert_close(mine, theirs, level, SHARES.get(name, 1 / 200))


def by_torchvision(image, view, size, mean, std):
    """A view (3, height, width) float32 as torchvision's operators make it of a Pillow image.

    `view`: its part of the plan row, without a `short_side`.
    """
    y, x, height, width = (int(side) for side in view["crop"])
    mode = v2.InterpolationMode.BICUBIC if view["bicubic"] else v2.InterpolationMode.BILINEAR
    image = v2.functional.resized_crop(image, y, x, height, width, list(size), mode)
    if view["flip"]:
        image = v2.functional.horizontal_flip(image)
    image = v2.functional.pil_to_tensor(image)
    operations = {
        BRIGHTNESS: v2.functional.adjust_brightness,
        CONTRAST: v2.functional.adjust_contrast,
        SATURATION: v2.functional.adjust_saturation,
        HUE: v2.functional.adjust_hue,
    }
    if view["jitter"]:
        for operation in view["order"].astype(int).tolist():
            image = operations[operation](image, float(view["factors"][operation]))
    if view["gray"]:
        image = v2.functional.rgb_to_grayscale(image, 3)
    if view["blur_sigma"]:
        taps = 2 * math.ceil(3 * view["blur_sigma"]) + 1
        image = v2.functional.gaussian_blur(image, [taps, taps], [float(view["blur_sigma"])] * 2)
    if view["solarize"]:
        image = v2.functional.solarize(image, 128)
    return v2.functional.normalize(v2.functional.to_dtype(image, scale=True), mean, std)


@pytest.mark.parametrize("name", UNEQUAL)
def test_views_are_torchvisions(make_shards, name):
    """Each view of the multi-crop settings, by torchvision's operators on Pillow's images."""
    views = UNEQUAL[name]
    shards = make_shards(1, 12, side=90)
    with make_loader(shards, 12, views=views, shuffle=False) as loader:
        (batch,) = loader
        files = [loader.dataset.read(n) for n in range(12)]
        sides = (loader.dataset.samples[field] for field in ("height", "width"))
        rows = plan(views, 0, 0, batch.sample_id.numpy(), *sides)
    images = [Image.open(io.BytesIO(data)).convert("RGB") for data in files]
    for v, (settings, size) in enumerate(zip(views.views, views.layout.sizes)):
        if settings.short_side is None:
            truth = [
                by_torchvision(image, row["views"][v], size, settings.mean, settings.std)
                for image, row in zip(images, rows.view(views.plan_dtype)[:, 0])
            ]
            difference = (batch.views[v] - torch.stack(truth)).abs() * 255 * min(settings.std)
            assert difference.mean() <= 0.5
            assert (difference > 3).float().mean() <= SHARES.get(name, 1 / 200)


@pytest.mark.parametrize("size", [48, (24, 48), (50, 30)])
@pytest.mark.parametrize("decode", ["exact", "fast"])
def test_evaluation_views_are_torchvisions(make_shards, decode, size):
    """Resize of the short side, then CenterCrop, on Pillow images and on tensors."""
    centre = dataclasses.replace(ViewConfig.evaluation(48).views[0], size=size)
    shards = make_shards(1, 8, side=300 if decode == "fast" else 90)
    options: dict[str, Any] = {"dtype": torch.uint8, "shuffle": False, "decode": decode}
    with make_loader(shards, 8, views=ViewConfig(views=(centre,)), **options) as loader:
        (batch,) = loader
        files = [loader.dataset.read(n) for n in range(8)]
    torchvisions = v2.Compose([v2.Resize(55), v2.CenterCrop(size)])
    for view, data in zip(batch.views[0], files, strict=True):
        image = Image.open(io.BytesIO(data)).convert("RGB")
        for truth in (
            v2.functional.pil_to_tensor(torchvisions(image)),
            torchvisions(v2.functional.pil_to_tensor(image)),
        ):
            difference = (view.int() - truth.int()).abs()
            if decode == "exact":
                assert difference.max() <= 1
            assert difference.float().mean() < (0.5 if decode == "exact" else 2)


@pytest.mark.parametrize(
    "form", [form for form in FORMAT_NAMES.values() if form.half_unit], ids=lambda form: form.name
)
def test_dtypes_hold_the_same_values(backend, make_shards, form):
    shards, dtype = make_shards(1, 8), getattr(torch, form.name)
    with make_loader(shards, 8, views=VIEWS, backend=backend) as loader:
        (full,) = loader
    with make_loader(shards, 8, views=VIEWS, backend=backend, dtype=dtype) as loader:
        (half,) = loader
    for one, other in zip(full.views, half.views, strict=True):
        assert other.dtype == dtype
        assert (one - other.float()).abs().max() <= 4 * form.half_unit


def test_the_masked_box_is_zero_and_nothing_else(backend, make_shards):
    shards = make_shards(1, 16)
    with make_loader(shards, 16, views=VIEWS, backend=backend) as loader:
        (masked,) = loader
    with make_loader(
        shards, 16, views=ViewConfig.maskco(48, mask=False), backend=backend
    ) as loader:
        (clean,) = loader
    for n, (x1, y1, x2, y2) in enumerate(masked_box(masked).numpy()):
        inside = torch.zeros(48, 48, dtype=torch.bool)
        inside[
            max(int(np.floor(y1)), 0) : int(np.ceil(y2)),
            max(int(np.floor(x1)), 0) : int(np.ceil(x2)),
        ] = True
        assert (masked.query[n][:, inside] == 0).all()
        assert torch.equal(masked.query[n][:, ~inside], clean.query[n][:, ~inside])
    assert torch.equal(masked.key, clean.key)
    assert torch.equal(masked_box(masked), masked_box(clean))


def test_batches_are_the_same_for_any_number_of_threads(backend, make_shards):
    shards = make_shards(2, 16)
    epochs = []
    for threads in (1, 2, 4):
        with make_loader(shards, 8, views=VIEWS, backend=backend, threads=threads) as loader:
            epochs.append(list(loader))
    for other in epochs[1:]:
        assert all(same(one, two) for one, two in zip(epochs[0], other, strict=True))


def test_batches_unpack_and_move(backend, make_shards):
    with make_loader(make_shards(1, 8), 4, views=VIEWS, backend=backend) as loader:
        batch = next(iter(loader))
    query, key, masked_box, key_boxes, target = batch
    assert query.shape == key.shape == (4, 3, 48, 48)
    assert masked_box.shape == (4, 4)
    assert key_boxes.shape == (4, 17, 4)
    assert target is batch.target
    assert len(batch) == 4
    moved = batch.to("cpu")
    assert same(batch, moved)
    assert all(0 <= label < 4 for label in batch.target.tolist())


def test_plain_views(backend, make_shards):
    shards = make_shards(1, 8)
    for views, count in (
        (ViewConfig.npid(64), 1),
        (ViewConfig.simclr(64), 2),
        (ViewConfig.moco_v2(64, views=4), 4),
    ):
        with make_loader(shards, 8, views=views, backend=backend) as loader:
            (batch,) = loader
        *tensors, target = batch
        assert [tuple(tensor.shape) for tensor in tensors] == [(8, 3, 64, 64)] * count
        assert target is batch.target
        assert batch.masked_box is None


def test_two_ranks_are_disjoint_and_complete(backend, make_shards):
    shards = make_shards(3, 11)
    ranks = []
    for rank in range(2):
        with make_loader(
            shards, 4, views=VIEWS, backend=backend, rank=rank, world_size=2
        ) as loader:
            assert len(loader) == 33 // 8
            ranks.append(ids(loader))
    with make_loader(shards, 8, views=VIEWS, backend=backend) as loader:
        single = ids(loader)
    assert [one + two for one, two in zip(*ranks, strict=True)] == single


def test_rank_is_looked_up_late(backend, make_shards, monkeypatch):
    loader = make_loader(make_shards(1, 16), 4, views=VIEWS, backend=backend)
    iterator = iter(loader)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert len(loader) == 2
    first = next(iterator).sample_id.tolist()
    loader.close()
    with make_loader(
        loader.dataset, 4, views=VIEWS, backend=backend, rank=1, world_size=2
    ) as explicit:
        assert ids(explicit)[0] == first


def test_epochs_differ_and_repeat(backend, make_shards):
    with make_loader(make_shards(1, 16), 4, views=VIEWS, backend=backend, seed=3) as loader:
        first, second = ids(loader), ids(loader)
        assert first != second
        assert sorted(flat(first)) == sorted(flat(second))
        loader.set_epoch(0)
        assert ids(loader) == first
        loader.set_epoch(1)
        loader.set_epoch(1)
        assert ids(loader) == second


def test_iter_has_no_side_effect_and_the_epoch_binds_at_next(backend, make_shards):
    with make_loader(make_shards(1, 16), 4, views=VIEWS, backend=backend) as loader:
        epoch_0 = ids(loader)
        loader.set_epoch(0)
        iterator = iter(loader)
        iter(loader)
        assert not own_threads()
        loader.set_epoch(7)
        loader.set_epoch(0)
        assert len(iterator) == 4
        assert [batch.sample_id.tolist() for batch in iterator] == epoch_0


def test_the_epoch_advances_with_its_last_batch(backend, make_shards):
    """Lightning stops after `len` batches and never reaches StopIteration."""
    with make_loader(make_shards(1, 16), 4, views=VIEWS, backend=backend) as loader:
        iterator = iter(loader)
        for _ in range(len(loader)):
            assert loader.epoch == 0
            next(iterator)
        assert loader.epoch == 1
        assert loader.state_dict()["consumed"] == 0
        with pytest.raises(StopIteration):
            next(iterator)
        assert loader.epoch == 1


def test_state_resumes_in_mid_epoch(backend, make_shards):
    shards = make_shards(2, 16)
    with make_loader(shards, 4, views=VIEWS, backend=backend, seed=5) as loader:
        loader.set_epoch(2)
        whole = list(loader) + list(loader)
    for stop in (0, 3, 8, 11):
        with make_loader(shards, 4, views=VIEWS, backend=backend, seed=5) as loader:
            loader.set_epoch(2)
            endless = itertools.chain.from_iterable(itertools.repeat(loader))
            for _ in range(stop):
                next(endless)
            state = loader.state_dict()
        with make_loader(shards, 4, views=VIEWS, backend=backend, seed=5, threads=1) as loader:
            loader.load_state_dict(state)
            loader.set_epoch(state["epoch"])  # naming the present epoch keeps the position
            rest = list(loader) + (list(loader) if stop < 8 else [])
        assert len(rest) == 16 - stop
        assert all(same(one, two) for one, two in zip(whole[stop:], rest, strict=True))


def test_another_world_size_goes_on_in_the_same_order(backend, make_shards):
    shards = make_shards(2, 16)
    with make_loader(shards, 4, views=VIEWS, backend=backend) as loader:
        order = flat(ids(loader))
    with make_loader(shards, 4, views=VIEWS, backend=backend, rank=0, world_size=2) as loader:
        iterator = iter(loader)
        for _ in range(2):
            next(iterator)
        state = loader.state_dict()
    with make_loader(shards, 4, views=VIEWS, backend=backend) as loader:
        loader.load_state_dict(state)
        assert flat(ids(loader)) == order[16:]
    with make_loader(shards, 8, views=VIEWS, backend=backend) as loader:
        loader.load_state_dict(state)
        assert flat(ids(loader)) == order[16:]


def test_states_of_other_runs_are_refused(backend, make_shards, tmp_path):
    shards = make_shards(2, 8)
    with make_loader(shards, 4, views=VIEWS, backend=backend) as loader:
        state = loader.state_dict()
    for change in ({"seed": 1}, {"batch_size": 3}, {"shards": shards[:1]}, {"shuffle": False}):
        options = {"shards": shards, "batch_size": 4, "views": VIEWS, "backend": backend, **change}
        with make_loader(**options) as loader, pytest.raises(ValueError, match="this"):
            loader.load_state_dict(state)


def test_the_caller_owns_the_tensors(backend, make_shards):
    with make_loader(make_shards(2, 24), 4, views=VIEWS, backend=backend) as loader:
        kept, copies = [], []
        for batch in loader:
            kept.append(batch.query[1:2, :, ::2])  # only a view of a view is kept
            copies.append(kept[-1].clone())
        list(loader)
    assert all(torch.equal(one, copy) for one, copy in zip(kept, copies, strict=True))


def test_leaving_early_leaks_no_thread(backend, make_shards):
    loader = make_loader(make_shards(2, 24), 4, views=VIEWS, backend=backend)
    for _ in loader:
        break
    assert not own_threads()
    iterator = iter(loader)
    next(iterator)
    loader.close()
    assert not own_threads()
    with pytest.raises(StopIteration):
        next(iterator)


def test_a_newer_iterator_ends_the_older_one(backend, make_shards):
    with make_loader(make_shards(1, 16), 4, views=VIEWS, backend=backend) as loader:
        older = iter(loader)
        first = next(older)
        newer = iter(loader)
        second = next(newer)
        with pytest.raises(IteratorSuperseded, match="a newer iterator ended this iterator"):
            next(older)
        assert not same(first, second)
        assert len(older) == len(newer) == 4
        assert len(list(newer)) == 3
        assert loader.epoch == 2


def test_keyboard_interrupt_leaves_nothing_behind(backend, make_shards, monkeypatch):
    loader = make_loader(make_shards(1, 16), 4, views=VIEWS, backend=backend)
    real = loader.dataset.read

    def slow(index):
        time.sleep(0.3)
        return real(index)

    def all_slow(indices, memory):
        return [slow(index) for index in indices]

    monkeypatch.setattr(loader.dataset, "read", slow)
    monkeypatch.setattr(loader.dataset, "read_stored", all_slow)
    threading.Timer(0.2, signal.raise_signal, (signal.SIGINT,)).start()
    with pytest.raises(KeyboardInterrupt):
        list(loader)
    assert not own_threads()
    monkeypatch.undo()
    assert len(list(loader)) == 4


def test_a_sample_that_does_not_decode_is_replaced_alike(backend, make_shards):
    shards = make_shards(2, 16, bad=(3, 20, 21))
    with make_loader(shards, 8, views=VIEWS, backend="reference") as reference:
        truth = list(reference)
    with make_loader(shards, 8, views=VIEWS, backend=backend) as loader:
        mine = list(loader)
        assert len(mine) == len(loader) == 4
        report = loader.quarantine.report()
        assert report["quarantined"] == 3
        # Each of the 32 places decoded once, its own sample or a substitute; 3 samples failed.
        assert loader.quarantine.tried == 32 + 3
        assert [entry["key"] for entry in report["samples"]] == ["000003", "000020", "000021"]
        assert {entry["found"] for entry in report["samples"]} == {"decode"}
        assert list(report["by_reason"].values()) == [3]
        list(loader)
        assert len(loader.quarantine) == 3  # known bad samples are neither tried nor counted again
        assert loader.quarantine.tried == 2 * 32 + 3
    for one, two in zip(mine, truth, strict=True):
        assert torch.equal(one.sample_id, two.sample_id)
        assert torch.equal(key_boxes(one), key_boxes(two))
    counts = torch.cat([batch.index for batch in mine]).bincount(minlength=32)
    assert counts[[3, 20, 21]].tolist() == [0, 0, 0]
    assert counts[[4, 22]].tolist() == [2, 3]


def test_a_marker_amid_the_scan_is_seen_by_all(backend, tmp_path):
    """Pillow rejects such a JPEG; DALI renders it, and other decoders stop above the damage."""
    whole = {f"{n}.jpg": encode(picture(80, 90, n), quality=95) for n in range(8)}
    scan, near_the_end = (data := whole["3.jpg"]).rindex(b"\xff\xda"), len(data) - 40
    assert scan < near_the_end
    damaged = whole | {"3.jpg": data[:near_the_end] + b"\xff\x05" + data[near_the_end:]}
    shard = write_tar(tmp_path / "damaged.tar", damaged)
    with make_loader(shard, 8, views=VIEWS, backend=backend, shuffle=False) as loader:
        (batch,) = loader
        assert batch.index.tolist() == [0, 1, 2, 4, 4, 5, 6, 7]
        assert [(entry.key, entry.found) for entry in loader.quarantine.entries] == [
            ("3", "decode")
        ]


def test_too_many_bad_samples_end_the_run(backend, make_shards):
    loader = make_loader(make_shards(1, 6, bad=range(6)), 2, views=VIEWS, backend=backend)
    with pytest.raises(
        TooManyBadSamples, match=r"6 of 6 samples tried do not decode.*shard-0000.tar"
    ):
        list(loader)
    assert not own_threads()


def test_a_shard_that_vanishes_is_named(backend, make_shards):
    shards = make_shards(1, 8)
    loader = make_loader(shards, 4, views=VIEWS, backend=backend)
    with open(shards[0], "r+b") as file:
        file.truncate(2000)
    with pytest.raises(EOFError, match=r"shard-0000\.tar.*index"):
        list(loader)


def test_fewer_samples_than_a_batch_is_an_error(backend, make_shards):
    with pytest.raises(ValueError, match="6 usable samples make no batch of 8"):
        next(iter(make_loader(make_shards(1, 6), 8, views=VIEWS, backend=backend)))


def test_odd_images_of_every_kind(backend, tmp_path):
    image = picture(40, 56, 1)
    members = {
        "one.jpg": encode(picture(1, 1, 0)),
        "thin.jpg": encode(picture(3, 700, 0)),
        "tall.png": encode(picture(900, 2, 0), "png"),
        "gray.jpg": encode(image[..., 0]),
        "progressive.jpg": encode(image, progressive=True),
        "alpha.png": encode(np.dstack([image, image[..., 0]]), "png"),
        "gif.gif": encode(image, "gif"),
        "webp.webp": encode(image, "webp"),
    }
    shard = write_tar(tmp_path / "odd.tar", members)
    with (
        make_loader(shard, 8, views=VIEWS, backend=backend, shuffle=False) as loader,
        make_loader(shard, 8, views=VIEWS, backend="reference", shuffle=False) as reference,
    ):
        (mine,), (theirs,) = loader, reference
        assert not loader.quarantine.entries
    assert_close(mine, theirs)


HOSTILE = {"not an image": 2, "truncated": 1, "empty": 1, "too many pixels": 1}


@pytest.mark.parametrize(
    ("name", "samples", "bad"),
    [
        ("hostile-0000.tar", 48, HOSTILE | {"no image member": 1}),
        ("hostile-0000-cut.tar", 32, HOSTILE | {"shard cut short": 1}),
    ],
)
def test_the_hostile_shards_end_an_epoch(backend, shared_data, name, samples, bad):
    with make_loader(str(shared_data / name), 8, views=VIEWS, backend=backend) as loader:
        assert sum(len(batch) for batch in loader) == samples
        assert loader.quarantine.by_reason() == bad


def test_options_that_do_not_fit_are_refused(make_shards):
    shards = make_shards(1, 4)
    with pytest.raises(ValueError, match=r"`backend` must be auto or one of .*, got 'fast'"):
        make_loader(shards, 2, backend="fast")
    for wrong in ({"rank": 1}, {"rank": 2, "world_size": 2}, {"dtype": torch.int8}, {"threads": 0}):
        with pytest.raises(ValueError, match=r"`(rank|dtype|threads)` .*must be"):
            make_loader(shards, 2, **wrong)
    with pytest.raises(ValueError, match="max_bad_share"):
        make_loader(shards, 2, max_bad_share=0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_in_mid_epoch_raises_where_it_is_used(make_shards):
    """Instead of waiting for threads that it does not have."""
    with make_loader(make_shards(1, 8), 2, views=VIEWS) as loader:
        running, fresh = iter(loader), iter(loader)
        next(running)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            for iterator in (running, fresh):
                try:
                    next(iterator)
                except RuntimeError as error:
                    os.write(writer, str(error).encode() + b"\n")
            os._exit(0)
        os.close(writer)
        os.waitpid(child, 0)
        with os.fdopen(reader) as told:
            assert told.read().count("make a loader in each process") == 2
        assert len(list(running)) == 3


def is_open(descriptor):
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def test_more_shards_than_files_may_be_open(make_shards, tmp_path):
    """As with `ulimit -n 64` in a new process: 50 numbers are free, wherever they lie."""
    resource = pytest.importorskip("resource")
    make_shards(70, 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = (number for number in itertools.count() if not is_open(number))
    limit = next(itertools.islice(free, 50, None))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        with make_loader(tmp_path, 8, views=VIEWS) as loader:
            assert sum(len(batch) for batch in loader) == 136
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

"""Plan rows: their constraints on any image size, determinism, and distributions against
torchvision's.
"""

import dataclasses
import hashlib
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms import ColorJitter, RandomResizedCrop
from torchvision.transforms.functional import _compute_resized_output_size

from maskco_fast.kernels import plan as plan_module
from maskco_fast.kernels.plan import PAIR_TRIES, VIEW_FLOATS, plan
from maskco_fast.kernels.views import (
    BOX_PARAMETERS,
    INTERPOLATIONS,
    LIGHTING_EIGENVALUES,
    LIGHTING_EIGENVECTORS,
    VIEW_PARAMETERS,
    VIEW_ROW,
    View,
    ViewConfig,
    column,
    plan_dtype,
)

sides = st.one_of(st.integers(1, 40), st.integers(1, 20000))
settings.register_profile("plan", max_examples=300, deadline=None)
settings.load_profile("plan")


def draw(
    config: ViewConfig,
    n: int,
    height: int,
    width: int,
    *,
    seed: int = 0,
    epoch: int = 0,
    first: int = 0,
):
    """Named plans of n samples of one image size."""
    ids = np.arange(first, first + n)
    rows = plan(config, seed, epoch, ids, np.full(n, height), np.full(n, width))
    return rows.view(config.plan_dtype)[:, 0]


def project(box, key, key_flip, query, query_flip, size):
    """A key box in the query view, step by step (docs/method.md, masked box): undo the key's flip,
    map to the image, map to the query, flip."""
    x1, y1, x2, y2 = map(float, box)
    if key_flip:
        x1, x2 = size - x2, size - x1
    image = [key[1] + x1 * key[3] / size, key[0] + y1 * key[2] / size, key[1] + x2 * key[3] / size]
    image.append(key[0] + y2 * key[2] / size)
    x1, x2 = ((x - query[1]) * size / query[3] for x in (image[0], image[2]))
    y1, y2 = ((y - query[0]) * size / query[2] for y in (image[1], image[3]))
    if query_flip:
        x1, x2 = size - x2, size - x1
    return np.array([x1, y1, x2, y2])


def iou(a, b):
    wide = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    high = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return wide * high / (area - wide * high)


@given(
    height=sides,
    width=sides,
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 10**6),
    size=st.sampled_from([96, 112, 224, 225]),
)
def test_every_plan_keeps_the_rules(height, width, seed, epoch, size):
    config = ViewConfig.maskco(size)
    low, high = config.box_side
    for row in draw(config, 4, height, width, seed=seed, epoch=epoch):
        crops = row["views"]["crop"].astype(np.float64)
        assert (crops[:, :2] >= 0).all()
        assert (crops[:, 2:] >= 1).all()
        assert (crops[:, 0] + crops[:, 2] <= height).all()
        assert (crops[:, 1] + crops[:, 3] <= width).all()
        assert (crops == np.round(crops)).all()
        query, key = crops
        overlap = np.minimum(query[:2] + query[2:], key[:2] + key[2:]) - np.maximum(
            query[:2], key[:2]
        )
        assert (overlap * size / key[2:] >= config.min_overlap - 1e-6).all()
        if row["draws"] == PAIR_TRIES + 1:
            assert (query == key).all()

        boxes = row["key_boxes"].astype(np.float64)
        spans = boxes[:, 2:] - boxes[:, :2]
        assert (spans >= low - 1e-4).all()
        assert (spans <= high + 1e-4).all()
        assert (boxes >= -1e-4).all()
        assert (boxes <= size + 1e-4).all()
        assert (
            max(iou(boxes[0], negative) for negative in boxes[1:]) < config.max_negative_iou + 1e-6
        )

        flips = row["views"]["flip"]
        masked = row["masked_box"].astype(np.float64)
        np.testing.assert_allclose(
            masked, project(boxes[0], key, flips[1], query, flips[0], size), atol=2e-3
        )
        assert (masked >= -2e-3).all()  # box 0 lies in the overlap, so in the query view too
        assert (masked <= size + 2e-3).all()
        share = (masked[2] - masked[0]) * (masked[3] - masked[1]) / size**2
        assert share <= config.max_mask_share + 1e-4

        for view in row["views"]:
            assert sorted(view["order"]) == [0, 1, 2, 3]
            assert (np.abs(view["factors"][:3] - 1) <= 0.4 + 1e-6).all()
            assert abs(view["factors"][3]) <= 0.1 + 1e-6
            assert view["blur_sigma"] == 0 or 0.1 <= view["blur_sigma"] <= 2
            assert {float(view[name]) for name in ("flip", "jitter", "gray", "solarize")} <= {
                0.0,
                1.0,
            }


def test_the_fallbacks_are_reached_and_keep_the_rules():
    """Small crops that rarely overlap, and large boxes that rarely leave room for a negative."""
    small = draw(ViewConfig(views=(View(area=(0.2, 0.25)),) * 2, min_overlap=223.0), 200, 400, 400)
    assert (small["draws"] == PAIR_TRIES + 1).any()
    fallback = small[small["draws"] == PAIR_TRIES + 1]
    assert (fallback["views"]["crop"][:, 0] == fallback["views"]["crop"][:, 1]).all()

    config = ViewConfig(
        min_overlap=160.0,
        boxes=17,
        box_side=(32.0, 160.0),
        max_negative_iou=1e-9,
        max_mask_share=0.02,
    )
    for row in draw(config, 200, 300, 300):
        boxes = row["key_boxes"]
        assert max(iou(boxes[0], negative) for negative in boxes[1:]) == 0


def test_free_views_of_any_number():
    for config, views in (
        (ViewConfig.moco_v2(views=1), 1),
        (ViewConfig.simclr(), 2),
        (ViewConfig.moco_v2(views=6), 6),
    ):
        rows = draw(config, 500, 300, 400)
        assert rows["views"].shape == (500, views)
        assert rows["key_boxes"].shape == (500, 0, 4)
        assert (rows["draws"] == 1).all()
        assert len({tuple(crop) for crop in rows["views"]["crop"].reshape(-1, 4)}) > 490 * views


def test_streams_of_crops_colour_and_boxes_are_apart():
    """Changing the settings of one leaves the others unchanged."""
    masked, plain = (
        draw(ViewConfig.maskco(), 50, 300, 400),
        draw(ViewConfig(min_overlap=128.0), 50, 300, 400),
    )
    assert masked["views"].tobytes() == plain["views"].tobytes()
    three = draw(ViewConfig.moco_v2(views=3), 50, 300, 400)["views"]
    two = draw(ViewConfig.moco_v2(views=2), 50, 300, 400)["views"]
    assert three[:, :2].tobytes() == two.tobytes()


def test_seed_epoch_and_sample_each_change_the_plan():
    config = ViewConfig.maskco()
    base = draw(config, 20, 300, 400)
    for other in (
        draw(config, 20, 300, 400, seed=1),
        draw(config, 20, 300, 400, epoch=1),
        draw(config, 20, 300, 400, first=20),
    ):
        assert not (base["views"]["factors"] == other["views"]["factors"]).any()


def test_a_plan_does_not_depend_on_batch_thread_or_process():
    config = ViewConfig.maskco()
    ids, sides = np.arange(1000) * 7919, np.arange(1000) % 700 + 1
    whole = plan(config, 3, 5, ids, sides, sides[::-1])
    single = np.concatenate(
        [
            plan(config, 3, 5, ids[n : n + 1], sides[n : n + 1], sides[::-1][n : n + 1])
            for n in ids // 7919
        ]
    )
    assert whole.tobytes() == single.tobytes()
    with ThreadPoolExecutor(4) as pool:
        parts = pool.map(
            lambda s: plan(config, 3, 5, ids[s], sides[s], sides[::-1][s]),
            [slice(i, i + 10) for i in range(0, 1000, 10)],
        )
    assert whole.tobytes() == np.concatenate(list(parts)).tobytes()
    script = """if True:
        import numpy as np
        from hashlib import sha256
        from maskco_fast.kernels.plan import plan
        from maskco_fast.kernels.views import ViewConfig
        ids, sides = np.arange(1000) * 7919, np.arange(1000) % 700 + 1
        rows = plan(ViewConfig.maskco(), 3, 5, ids, sides, sides[::-1])
        print(sha256(rows.tobytes()).hexdigest())
    """
    printed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert printed == hashlib.sha256(whole.tobytes()).hexdigest()


FIRST_FIELDS = ("crop", "flip", "jitter", "order", "factors", "gray", "blur_sigma", "solarize")
"""The fields of a view for which the digests below were computed."""


@pytest.mark.parametrize(
    ("config", "digest"),
    [
        (ViewConfig.maskco(), "e9c4c0ebeabb5b6ba4f1adb9295d4cf857186f97f2da73b11330f0d3d6582537"),
        (ViewConfig.byol(), "ebdccca831be99d82caff614c4921f233c80e3304e71c3e9c12bb93548a88794"),
    ],
    ids=["maskco", "byol"],
)
def test_plans_are_those_of_earlier_versions(config, digest):
    """A resumed run draws the same crops, colours and boxes. A new augmentation adds a field and
    leaves these as they are."""
    ids, sides = np.arange(1000) * 7919, np.arange(1000) % 700 + 1
    named = plan(config, 3, 5, ids, sides, sides[::-1]).view(config.plan_dtype)[:, 0]
    drawn = [named["views"][name].tobytes() for name in FIRST_FIELDS]
    drawn += [named[name].tobytes() for name in ("masked_box", "draws", "key_boxes")]
    assert hashlib.sha256(b"".join(drawn)).hexdigest() == digest


@pytest.mark.parametrize(("views", "boxes"), [(1, 0), (2, 17), (3, 1)])
def test_column_constants_address_the_named_fields(views, boxes):
    """Every field of a row, read by its constant, is the field read by its name."""
    dtype = plan_dtype(views, boxes)
    rows = np.arange(5 * dtype.itemsize // 4, dtype=np.float32).reshape(5, -1)
    named = rows.view(dtype)[:, 0]
    for field in VIEW_ROW.names or ():
        constant = getattr(plan_module, field.upper())
        for v in range(views):
            expected = named["views"][:, v][field].reshape(5, -1)
            first = v * VIEW_FLOATS + constant
            assert (rows[:, first : first + expected.shape[1]] == expected).all(), field
    for field in ("masked_box", "draws", "key_boxes"):
        expected = named[field].reshape(5, -1)
        first = views * VIEW_FLOATS + getattr(plan_module, field.upper())
        assert (rows[:, first : first + expected.shape[1]] == expected).all(), field


def test_parameters_are_laid_out_by_name():
    """Settings reach the kernel's columns through their fields' names."""
    config = ViewConfig(
        views=(View(area=(0.25, 0.5), jitter=(1, 2, 3, 0.5), flip_probability=0.125), View()),
        min_overlap=100.0,
        box_side=(10.0, 20.0),
    )
    parameters = config.view_parameters()
    assert parameters.shape == (2, VIEW_PARAMETERS.itemsize // 8)
    for field, expected in (("area", (0.25, 0.5)), ("jitter", (1, 2, 3, 0.5))):
        first = column(VIEW_PARAMETERS, field)
        assert tuple(parameters[0, first : first + len(expected)]) == expected
    assert parameters[0, column(VIEW_PARAMETERS, "flip_probability")] == 0.125
    first = column(BOX_PARAMETERS, "box_side")
    assert config.box_parameters()[first : first + 2].tolist() == [10, 20]


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 333), (64, 64)])
def test_crops_are_distributed_as_torchvision_draws_them(height, width):
    n = 8000
    mine = draw(ViewConfig.moco_v2(), n, height, width)["views"]["crop"][:, 0].astype(np.float64)
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(n)],
        np.float64,
    )
    for name, fact in {
        "area": lambda c: c[:, 2] * c[:, 3],
        "ratio": lambda c: c[:, 3] / c[:, 2],
        "y": lambda c: c[:, 0],
        "x": lambda c: c[:, 1],
    }.items():
        assert stats.ks_2samp(fact(mine), fact(theirs)).pvalue > 1e-4, name


def test_colour_is_distributed_as_torchvision_draws_it():
    n = 8000
    views = draw(ViewConfig.moco_v2(), n, 375, 500)["views"][:, 1]
    torch.manual_seed(0)
    jitter = ColorJitter(0.4, 0.4, 0.4, 0.1)
    drawn = [
        jitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
        for _ in range(n)
    ]
    for operation in range(4):
        theirs = np.array([one[1 + operation] for one in drawn])
        assert stats.ks_2samp(views["factors"][:, operation], theirs).pvalue > 1e-4
    orders = np.unique(views["order"], axis=0, return_counts=True)[1]
    assert len(orders) == math.factorial(4)
    assert stats.chisquare(orders).pvalue > 1e-4
    for name, probability in (("jitter", 0.8), ("gray", 0.2), ("flip", 0.5)):
        assert stats.binomtest(int(views[name].sum()), n, probability).pvalue > 1e-4, name
    blurred = views["blur_sigma"] > 0
    assert stats.binomtest(int(blurred.sum()), n, 0.5).pvalue > 1e-4
    assert stats.kstest(views["blur_sigma"][blurred], "uniform", (0.1, 1.9)).pvalue > 1e-4


def test_byol_views_differ():
    views = draw(ViewConfig.byol(), 4000, 375, 500)["views"]
    assert (views["blur_sigma"][:, 0] > 0).all()
    assert stats.binomtest(int((views["blur_sigma"][:, 1] > 0).sum()), 4000, 0.1).pvalue > 1e-4
    assert stats.binomtest(int(views["solarize"][:, 1].sum()), 4000, 0.2).pvalue > 1e-4
    assert not views["solarize"][:, 0].any()


@given(height=sides, width=sides, seed=st.integers(0, 999), size=st.sampled_from([8, 96, 224]))
def test_squares_of_the_resized_image_are_torchvisions(height, width, seed, size):
    """Windows are whole pixels of the image as torchvision's Resize makes it, inside it; crops hold
    the filter's support and lie in the image."""
    short = size + seed % 40
    square = View(short_side=short, interpolation=INTERPOLATIONS[seed % 2])
    centred = dataclasses.replace(square, position="centre")
    (row,) = draw(ViewConfig(views=(square, centred), size=size), 1, height, width, seed=seed)
    resized = _compute_resized_output_size((height, width), [short])
    scale = np.divide((height, width), resized)
    windows, crops = row["views"]["window"].astype(float), row["views"]["crop"].astype(float)
    np.testing.assert_allclose(windows[:, 2:], [size * scale] * 2, rtol=1e-6)
    corners = windows[:, :2] / scale
    np.testing.assert_allclose(corners, np.round(corners), rtol=1e-6, atol=1e-3)
    assert (corners >= 0).all()
    assert (np.round(corners) + size <= resized).all()
    centre = [round((side - size) / 2.0) for side in resized]  # as in CenterCrop
    assert np.round(corners[1]).tolist() == centre
    assert (crops == np.round(crops)).all()
    assert (crops[:, :2] >= 0).all()
    assert (crops[:, :2] <= windows[:, :2] + 1e-3).all()
    ends, window_ends = crops[:, :2] + crops[:, 2:], windows[:, :2] + windows[:, 2:]
    assert (ends <= (height, width)).all()
    assert (ends >= window_ends * (1 - 1e-6)).all()


def test_squares_lie_everywhere_with_equal_probability():
    view = View(short_side=24)
    windows = draw(ViewConfig(views=(view,), size=16), 4000, 48, 60)["views"]["window"][:, 0] / 2
    for axis, places in ((0, 24 - 16 + 1), (1, 30 - 16 + 1)):
        counts = np.bincount(np.round(windows[:, axis]).astype(int), minlength=places)
        assert len(counts) == places
        assert stats.chisquare(counts).pvalue > 1e-4


def test_overlap_and_boxes_of_squares():
    """The overlap of query and key is that of their windows, which are smaller than their crops."""
    view = View(short_side=300)
    config = dataclasses.replace(ViewConfig.maskco(), views=(view, view))
    for row in draw(config, 50, 500, 700):
        windows, flips = row["views"]["window"].astype(float), row["views"]["flip"]
        expected = project(row["key_boxes"][0], windows[1], flips[1], windows[0], flips[0], 224)
        np.testing.assert_allclose(row["masked_box"], expected, atol=2e-3)


def test_lighting_is_alexnets():
    """Factors recovered from the offsets are three independent normal numbers of deviation 0.1."""
    lighting = draw(ViewConfig.supervised(), 8000, 300, 400)["views"]["lighting"][:, 0]
    basis = np.array(LIGHTING_EIGENVECTORS) * np.array(LIGHTING_EIGENVALUES)
    factors = np.linalg.solve(basis, lighting.T.astype(np.float64))
    for factor in factors:
        assert stats.kstest(factor / 0.1, "norm").pvalue > 1e-4
    assert np.abs(np.corrcoef(factors) - np.eye(3)).max() < 0.05
    assert not draw(ViewConfig.moco_v2(), 10, 300, 400)["views"]["lighting"].any()


def test_patches_lie_anywhere_in_their_cells():
    config = ViewConfig.relative_loc()
    assert (config.patch_grid, config.patch_size, config.views[0].short_side) == (3, 64, 292)
    corners = draw(config, 4000, 300, 400)["patch_corners"]
    assert corners.shape == (4000, 9, 2)
    cells = np.array([(85 * y, 85 * x) for y in range(3) for x in range(3)])
    jitter = (corners - cells).reshape(-1, 18)
    for place in jitter.T:
        counts = np.bincount(place.astype(int), minlength=22)
        assert len(counts) == 22  # 0 to 21: a jitter of 21 pixels
        assert stats.chisquare(counts).pvalue > 1e-5


@pytest.mark.parametrize(
    "wrong",
    [
        {"views": (View(short_side=223),)},
        {"patch_grid": 3},
        {"patch_grid": 3, "patch_size": 75},
        {"patch_size": 9},
        {"views": ()},
        {"size": 4},
        {"boxes": 17},
        {"mask": True},
        {"views": (View(),), "min_overlap": 128.0},
        {"boxes": 17, "min_overlap": 128.0, "box_side": (64.0, 128.0)},
        {"boxes": 17, "min_overlap": 128.0, "views": (View(), View(size=96))},
        {"patch_grid": 3, "patch_size": 9, "views": (View(size=(224, 96)),)},
        {"views": (View(size=(96, 224), short_side=200),)},
    ],
)
def test_impossible_configurations_are_refused(wrong):
    with pytest.raises(ValueError, match="ViewConfig"):
        ViewConfig(**wrong)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="must have one length"):
        plan(ViewConfig.maskco(), 0, 0, np.arange(3), np.ones(2), np.ones(3))
    with pytest.raises(ValueError, match="at least 1 pixel"):
        plan(ViewConfig.maskco(), 0, 0, np.arange(1), np.zeros(1), np.ones(1))
    with pytest.raises(ValueError, match="probability"):
        View(flip_probability=1.5)
    for wrong in (
        {"lighting": -0.1},
        {"interpolation": "nearest"},
        {"position": "left", "short_side": 256},
        {"position": "centre"},
        {"size": 7},
        {"size": (96, 1025)},
        {"size": (96, 96, 3)},
        {"size": 96.0},
        {"mean": (0.5, 0.5)},
        {"std": (0.2, 0.0, 0.2)},
    ):
        with pytest.raises(
            ValueError, match=r"`View\.(lighting|interpolation|position|size|mean)` "
        ):
            View(**wrong)


def test_views_of_multi_crop():
    """Sizes, areas and chances of the published settings, as drawn."""
    for config, small, areas, blurs in (
        (ViewConfig.dino(), 96, ((0.4, 1), (0.05, 0.4)), (1, 0.1, 0.5)),
        (ViewConfig.dinov2(), 98, ((0.32, 1), (0.05, 0.32)), (0, 0.9, 0.5)),
        (ViewConfig.swav(local_views=8), 96, ((0.14, 1), (0.05, 0.14)), (0.5, 0.5, 0.5)),
    ):
        assert config.layout.sizes == [(224, 224)] * 2 + [(small, small)] * 8
        views = draw(config, 2000, 400, 500)["views"]
        area = views["crop"][..., 2:].prod(-1) / (400 * 500)
        for v in range(10):
            low, high = areas[v > 1]
            assert low - 0.005 <= area[:, v].min() <= low + 0.02
            assert high - 0.02 - 0.1 * (v < 2) <= area[:, v].max() <= high + 0.005
            blurred = (views["blur_sigma"][:, v] > 0).mean()
            assert abs(blurred - blurs[min(v, 2)]) < 0.05
        assert len(np.unique(views["crop"].reshape(len(views), 10, 4)[0], axis=0)) == 10
    std = ViewConfig.swav().views[5].std
    assert std == (0.228, 0.224, 0.225)


@pytest.mark.parametrize("position", ["centre", "random"])
def test_rectangles_lie_in_the_resized_image(position):
    view = View(size=(40, 90), short_side=100, position=position)
    named = draw(ViewConfig(views=(view,)), 200, 300, 400)["views"][:, 0]
    window = named["window"].astype(float)
    assert np.allclose(window[:, 2:], (40 * 3, 90 * 400 / 133))
    assert (window[:, :2] >= 0).all()
    assert (window[:, :2] + window[:, 2:] <= (300.001, 400.001)).all()
    places = len(np.unique(window[:, 0]))
    assert places == 1 if position == "centre" else places > 40

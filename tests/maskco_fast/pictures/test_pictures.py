"""The pictures: they show what the plan holds, refuse bad input and leave pyplot alone."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageColor

from maskco_fast.kernels.plan import plan
from maskco_fast.kernels.views import ViewConfig
from maskco_fast.pictures.loss import loss_picture, read_metrics, running_mean
from maskco_fast.pictures.views import (
    MASK_LEVELS,
    POSITIVE_COLOUR,
    VIEW_COLOURS,
    PlannedImage,
    box_in_image,
    masked,
    view_facts,
    views_picture,
)

BLACK = 0


def planned(config, height=90, width=140, seed=0, sample=1):
    """The plan of one sample with a black image and black views, so only outlines have colour."""
    row = plan(config, seed, 0, np.array([sample]), np.array([height]), np.array([width]))
    views = tuple(np.full((*size, 3), BLACK, np.uint8) for size in config.layout.sizes)
    original = np.full((height, width, 3), BLACK, np.uint8)
    return PlannedImage(
        name="000", original=original, plan=row.view(config.plan_dtype)[0, 0], views=views
    )


def near(picture, colour, tolerance=12):
    """The number of pixels of `picture` (H, W, 3) that have `colour`, a name or levels."""
    levels = ImageColor.getrgb(colour) if isinstance(colour, str) else colour
    return int((np.abs(picture.astype(int) - levels).max(axis=2) <= tolerance).sum())


def test_maskco_picture_shows_crops_mask_and_positive(tmp_path):
    config = ViewConfig.maskco(64)
    out = tmp_path / "new folder" / "views.png"
    views_picture([planned(config), planned(config, sample=2)], config, out)
    picture = np.asarray(Image.open(out).convert("RGB"))
    assert picture.shape == (860, 1200, 3)
    for colour in (VIEW_COLOURS[0], VIEW_COLOURS[1], POSITIVE_COLOUR):
        assert near(picture, colour) > 300
    assert near(picture, MASK_LEVELS, 1) > 1000
    assert [path.name for path in out.parent.iterdir()] == ["views.png"]

    multi_crop = ViewConfig.swav(64, 32, 2)
    views_picture([planned(multi_crop)], multi_crop, out)
    assert near(np.asarray(Image.open(out).convert("RGB")), VIEW_COLOURS[2]) > 50

    unmasked = ViewConfig.maskco(64, mask=False)
    views_picture([planned(unmasked)], unmasked, out)
    assert near(np.asarray(Image.open(out).convert("RGB")), MASK_LEVELS, 1) < 100


@pytest.mark.parametrize(
    "config", [ViewConfig.npid(128), ViewConfig.simclr(128, views=6), ViewConfig.byol(128)]
)
def test_plain_views_have_no_boxes(tmp_path, config):
    views_picture([planned(config)], config, tmp_path / "views.png")
    picture = np.asarray(Image.open(tmp_path / "views.png").convert("RGB"))
    assert picture.shape == (430, 400 * (1 + len(config.views)), 3)
    assert near(picture, POSITIVE_COLOUR) == 0


def test_patches_are_outlined_where_the_plan_places_them(tmp_path):
    config = ViewConfig.relative_loc(255)
    image = planned(config, 300, 400)
    views_picture([image], config, tmp_path / "views.png")
    picture = np.asarray(Image.open(tmp_path / "views.png").convert("RGB"))
    assert picture.shape == (430, 800, 3)
    # The view's axes span the 255 pixels of its blue frame; the centre is the red rectangle in it.
    view = np.abs(picture[:, 400:].astype(int) - ImageColor.getrgb(VIEW_COLOURS[0])).max(2) < 12
    frame = [np.flatnonzero(view.any(axis)) for axis in (1, 0)]
    red = np.abs(picture[:, 400:].astype(int) - ImageColor.getrgb(POSITIVE_COLOUR)).max(2) < 12
    for axis, corner in enumerate(image.plan["patch_corners"][4]):
        first, last = frame[axis][[0, -1]]
        begin, end = np.flatnonzero(red.any(1 - axis))[[0, -1]]
        scale = 255 / (last - first)
        assert (begin - first) * scale == pytest.approx(corner, abs=4)
        assert (end - first) * scale == pytest.approx(corner + 64, abs=4)


def test_refusals_name_the_image(tmp_path):
    config = ViewConfig.maskco(64)
    image = planned(config)
    out = tmp_path / "views.png"
    with pytest.raises(ValueError, match="got no images"):
        views_picture([], config, out)
    with pytest.raises(ValueError, match="000: the views must be"):
        views_picture([image], ViewConfig.maskco(96), out)
    with pytest.raises(ValueError, match="000: the plan"):
        views_picture([image], ViewConfig(size=64, box_side=(8, 32)), out)
    gray = PlannedImage(
        name="gray", original=image.original[..., 0], plan=image.plan, views=image.views
    )
    with pytest.raises(ValueError, match=r"gray: the original must be .*got \(90, 140\)"):
        views_picture([gray], config, out)
    assert not out.exists()


def test_masked_is_floor_to_ceil():
    view = np.zeros((8, 8, 3), np.uint8)
    result = masked(view, [1.5, 2.0, 4.2, 5.0])
    expected = np.zeros((8, 8, 3), np.uint8)
    for y in range(8):
        for x in range(8):
            if x + 1 > 1.5 and x < 4.2 and y + 1 > 2 and y < 5:
                expected[y, x] = MASK_LEVELS
    np.testing.assert_array_equal(result, expected)
    assert not view.any()
    assert masked(view, [-3, -2, 2, 20]).any(axis=2).sum() == 16


@pytest.mark.parametrize("sample", range(12))
def test_box_in_image_agrees_with_the_masked_box(sample):
    """The positive box, mapped from the key to the image and on to the query, is the masked box."""
    config = ViewConfig.maskco()
    record = planned(config, 333, 500, sample=sample).plan
    x1, y1, x2, y2 = box_in_image(record, config.size)
    y, x, h, w = (float(value) for value in record["views"]["crop"][0])
    x1, x2 = (x1 - x) * config.size / w, (x2 - x) * config.size / w
    y1, y2 = (y1 - y) * config.size / h, (y2 - y) * config.size / h
    if record["views"]["flip"][0]:
        x1, x2 = config.size - x2, config.size - x1
    np.testing.assert_allclose([x1, y1, x2, y2], record["masked_box"], atol=1e-3)


def test_view_facts_say_what_was_drawn():
    record = np.zeros((), ViewConfig.npid().plan_dtype)["views"].copy()[0]
    record["window"] = (0, 0, 50, 40)
    assert view_facts(record, 100, 80) == "area 25%"
    for name in ("flip", "jitter", "gray", "solarize"):
        record[name] = 1
    record["blur_sigma"] = 1.25
    record["order"] = (3, 0, 2, 1)
    record["factors"] = (0.6, 1.4, 1, -0.05)
    record["lighting"] = (0.02, -0.01, 0)
    assert (
        view_facts(record, 100, 80)
        == "area 25%, flip, hbsc 0.60 1.40 1.00 -0.05, gray, blur 1.2, solarised, "
        "light +5 -3 +0"
    )


def write_metrics(path, losses):
    lines = [
        json.dumps(
            {"step": step, "loss": loss, "images_per_s": 40.0, "data_wait": 0.01, "lr": 0.03}
        )
        for step, loss in enumerate(losses, 1)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_loss_picture(tmp_path):
    metrics = write_metrics(tmp_path / "metrics.jsonl", [6.2 - 0.01 * step for step in range(200)])
    loss_picture(metrics, tmp_path / "loss.png", chance=math.log(497), title="demo")
    picture = np.asarray(Image.open(tmp_path / "loss.png").convert("RGB"))
    assert near(picture, "#c03030") > 100  # the chance line
    curve = np.argwhere(np.abs(picture.astype(int) - ImageColor.getrgb("#0b4f9c")).max(axis=2) < 30)
    curve = curve[
        (curve[:, 0] < 300) & (curve[:, 1] > 300)
    ]  # above the legend's and the lower axes' rows
    left, right = curve[curve[:, 1] < 350, 0].mean(), curve[curve[:, 1] > 400, 0].mean()
    assert left < right  # it falls: rows count downwards
    loss_picture(metrics, tmp_path / "plain.png")
    assert near(np.asarray(Image.open(tmp_path / "plain.png").convert("RGB")), "#c03030") == 0


def test_a_single_step_is_shown(tmp_path):
    loss_picture(write_metrics(tmp_path / "metrics.jsonl", [5.0]), tmp_path / "loss.png")
    assert near(np.asarray(Image.open(tmp_path / "loss.png").convert("RGB")), "#9db8d6", 40) > 3


def test_metrics_errors_name_file_and_line(tmp_path):
    path = write_metrics(tmp_path / "metrics.jsonl", [5.0, 4.0])
    np.testing.assert_array_equal(read_metrics(path)["loss"], [5.0, 4.0])
    path.write_text(path.read_text() + '{"step": 3, "loss": 4')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 3"):
        read_metrics(path)
    path.write_text('{"step": 1, "loss": 4, "images_per_s": 1}\n')
    with pytest.raises(ValueError, match=r"line 1.*data_wait"):
        read_metrics(path)
    path.write_text("")
    with pytest.raises(ValueError, match="no lines"):
        loss_picture(path, tmp_path / "loss.png")


@pytest.mark.parametrize("window", [1, 3, 7, 50])
def test_running_mean_against_a_loop(window):
    values = np.random.default_rng(0).normal(size=20)
    expected = [values[max(0, i + 1 - window) : i + 1].mean() for i in range(20)]
    np.testing.assert_allclose(running_mean(values, window), expected)


def test_pyplot_stays_out():
    code = """
import sys
import maskco_fast.pictures.bars, maskco_fast.pictures.loss, maskco_fast.pictures.views
sys.exit("matplotlib.pyplot" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""The CPU kernels against their references, Pillow's resize and torchvision's operators, on images
of many shapes.

Tolerances: resize within 1 level of Pillow; colour and blur within 2 levels of torchvision, 0.5 on
average, with a bias below 0.05; finished values within one rounding of their dtype.
"""

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from maskco_fast.kernels.augment.reference import (
    augment_reference,
    finish_reference,
    light_reference,
)
from maskco_fast.kernels.formats import FORMAT_NAMES
from maskco_fast.kernels.plan import VIEW_FLOATS, plan
from maskco_fast.kernels.render.image import Renderer
from maskco_fast.kernels.render.resize import resize_reference
from maskco_fast.kernels.views import View, ViewConfig
from tests.support.augmentation import LIGHTING

WORST, MEAN, BIAS = 2, 0.5, 0.05
TOLERANCE = {name: 2e-6 + 4 * form.half_unit for name, form in FORMAT_NAMES.items()}
"""Largest difference of a finished value, in -2.2..2.7."""


def image_of(kind, height, width, seed=0):
    """A test image (height, width, 3) uint8."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    if kind == "noise":
        return random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if kind == "checkerboard":
        # 255 would blur to 127.5 everywhere, where the last bit of a sum decides a whole level.
        return np.repeat(((y + x) % 2 * 254).astype(np.uint8)[..., None], 3, -1)
    if kind == "constant":
        return np.full((height, width, 3), random.integers(0, 256, 3), np.uint8)
    if kind == "white":
        return np.full((height, width, 3), 255, np.uint8)
    ramp = 255 * np.stack(
        [x / max(width - 1, 1), y / max(height - 1, 1), (x + y) / max(width + height - 2, 1)], -1
    )
    return ramp.astype(np.uint8)


KINDS = ("noise", "checkerboard", "constant", "white", "gradient")
SHAPES = [
    (1, 1),
    (1, 700),
    (700, 1),
    (8, 8),
    (20, 2000),
    (37, 53),
    (96, 96),
    (375, 500),
    (1200, 900),
    (3000, 64),
]


def one_plan(config, height, width, **fields):
    """A plan row whose view 0 does nothing except for the given fields."""
    rows = plan(config, 0, 0, np.array([1]), np.array([height]), np.array([width]))
    view = rows.view(config.plan_dtype)[0, 0]["views"][0]
    for name in ("flip", "jitter", "gray", "blur_sigma", "solarize"):
        view[name] = 0
    view["order"], view["factors"] = (0, 1, 2, 3), (1, 1, 1, 0)
    if "crop" in fields:
        view["window"] = fields["crop"]
    for name, value in fields.items():
        view[name] = value
    return rows[0]


def free(size, views=1):
    return ViewConfig(views=(View(),) * views, size=size)


@pytest.mark.parametrize("size", [32, 33, 97, 224])
@pytest.mark.parametrize("kind", KINDS)
def test_resize_is_pillows_within_a_level(kind, size):
    config = free(size)
    renderer = Renderer(config, "uint8")
    out = np.empty((1, 1, size, size, 3), np.uint8)
    random = np.random.default_rng(3)
    for height, width in SHAPES:
        image = image_of(kind, height, width)
        h, w = random.integers(1, height + 1), random.integers(1, width + 1)
        inner = (random.integers(0, height - h + 1), random.integers(0, width - w + 1), h, w)
        for crop, flip in itertools.product([(0, 0, height, width), inner], [False, True]):
            renderer.resize(
                image, 0, 0, one_plan(config, height, width, crop=crop, flip=flip), out, 0
            )
            truth = resize_reference(image, crop, size, flip)
            difference = np.abs(out[0, 0].astype(int) - truth)
            assert difference.max() <= 1, (height, width, crop)
            if kind in ("constant", "white"):
                assert difference.max() == 0


def test_a_decoded_region_renders_as_the_whole_image():
    config, image = free(64), image_of("noise", 200, 300)
    renderer = Renderer(config, "uint8")
    row = one_plan(config, 200, 300, crop=(50, 80, 90, 120))
    whole, part = np.empty((2, 1, 1, 64, 64, 3), np.uint8)
    renderer.resize(image, 0, 0, row, whole, 0)
    renderer.resize(np.ascontiguousarray(image[40:150, 70:210]), 40, 70, row, part, 0)
    assert (whole == part).all()
    with pytest.raises(ValueError, match="must lie in the decoded region"):
        renderer.resize(np.ascontiguousarray(image[60:150, 70:210]), 60, 70, row, part, 0)


def check_levels(levels, fields, *, size, note=""):
    """Compare `augment` of one uint8 view, of side `size` or a height and width, with
    torchvision's operators."""
    config = ViewConfig(views=(View(size=size),))
    renderer = Renderer(config, "uint8")
    row = one_plan(config, 300, 300, **fields)
    out = np.empty((1, 1, *levels.shape), np.uint8)
    renderer.augment(np.ascontiguousarray(levels[None, None]), row, out, 0)
    truth = augment_reference(levels, row.view(config.plan_dtype)[0]["views"][0])
    difference = out[0, 0].astype(int) - truth.astype(int)
    assert np.abs(difference).max() <= WORST, note
    assert np.abs(difference).mean() <= MEAN, note
    assert abs(difference.mean()) < BIAS, note


@pytest.mark.parametrize("size", [32, 65, 224])
@pytest.mark.parametrize("kind", KINDS)
def test_each_operation_alone_is_torchvisions(kind, size):
    levels = image_of(kind, size, size, seed=size)
    for operation, factors in enumerate(
        [(0.0, 0.6, 1.0, 1.4, 1.8)] * 3 + [(-0.5, -0.1, 0.0, 0.07, 0.4)]
    ):
        for factor in factors:
            chosen: list[float] = [1, 1, 1, 0]
            chosen[operation] = factor
            check_levels(
                levels, {"jitter": 1, "factors": chosen}, size=size, note=(operation, factor)
            )
    check_levels(levels, {"gray": 1}, size=size, note="gray")
    check_levels(levels, {"solarize": 1}, size=size, note="solarize")
    for sigma in (0.1, 0.33, 0.34, 0.9, 1.5, 2.0, 3.3, 5.0):
        check_levels(levels, {"blur_sigma": sigma}, size=size, note=("blur", sigma))


@pytest.mark.parametrize("kind", ["noise", "gradient"])
def test_all_orders_and_the_whole_chain_are_torchvisions(kind):
    levels = image_of(kind, 64, 64, seed=5)
    for number, order in enumerate(itertools.permutations(range(4))):
        fields = {
            "jitter": 1,
            "order": order,
            "factors": (0.7 + number / 40, 1.4 - number / 40, 1.3, 0.08 - number / 150),
        }
        check_levels(levels, fields, size=64, note=order)
        chain = {**fields, "gray": number % 3 == 0, "blur_sigma": 0.1 + number / 13}
        check_levels(levels, chain, size=64, note=("chain", order))


@pytest.mark.parametrize("size", [8, 9, 16, 31])
def test_small_views_blur_within_their_borders(size):
    check_levels(
        image_of("noise", size, size),
        {"blur_sigma": 2.0, "jitter": 1, "factors": (1.2, 0.8, 1.1, 0.05)},
        size=size,
    )


@pytest.mark.parametrize("size", [(40, 97), (97, 40), (9, 64)])
@pytest.mark.parametrize("sigma", [0, 2.0])
def test_rectangles_are_torchvisions(size, sigma):
    fields = {"jitter": 1, "order": (2, 1, 3, 0), "factors": (1.2, 0.8, 1.1, 0.05)}
    levels = image_of("gradient", *size)
    check_levels(levels, {**fields, "blur_sigma": sigma, "solarize": not sigma}, size=size)


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_views_of_unequal_sizes_are_those_rendered_alone(dtype):
    """Bit for bit, in memory where nothing else is written; scratch memory is shared."""
    own: dict[str, Any] = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    sizes = [None, 33, (40, 97), 96, (97, 40), 33]
    filters = ["bilinear", "bicubic"] * 3
    views = [
        View(size=size, interpolation=kind, lighting=0.1 * (n == 3), **own if n == 5 else {})
        for n, (size, kind) in enumerate(zip(sizes, filters))
    ]
    config = ViewConfig(views=tuple(views), size=64)
    renderer, layout = Renderer(config, dtype), config.layout
    assert str(layout).startswith("1 views of 64x64 and 2 of 33x33")
    rows = plan(config, 1, 0, np.arange(3), np.full(3, 150), np.full(3, 210))
    out = np.full(3 * layout.elements, 77, renderer.buffer_dtype)
    seam = np.empty(3 * layout.elements, np.uint8)
    twice = out.copy()
    for n in (2, 0):
        image = image_of("noise", 150, 210, seed=n)
        renderer.render(image, 0, 0, rows[n], out, n)
        renderer.resize(image, 0, 0, rows[n], seam, n)
        renderer.augment(seam, rows[n], twice, n)
        tail = rows[n, len(views) * VIEW_FLOATS :]
        for v, view in enumerate(layout.views(out)):
            assert view.shape == (3, *layout.sizes[v], 3)
            alone = Renderer(ViewConfig(views=(views[v],), size=64), dtype)
            truth = np.empty((1, 1, *layout.sizes[v], 3), alone.buffer_dtype)
            row = np.concatenate([rows[n, v * VIEW_FLOATS : (v + 1) * VIEW_FLOATS], tail])
            alone.render(image, 0, 0, row, truth, 0)
            assert (view[n] == truth[0, 0]).all(), v
            assert (view[1] == 77).all()
    assert (out == twice).all()
    for wrong in (out[:-1], out[None], np.empty((6, 1, 64, 64, 3), out.dtype)):
        with pytest.raises(ValueError, match=f"flat, with {layout.elements} elements"):
            renderer.render(image, 0, 0, rows[0], wrong, 0)


@pytest.mark.parametrize("dtype", sorted(FORMAT_NAMES))
@pytest.mark.parametrize("size", [63, 96])
def test_finished_values_fill_the_buffer_and_nothing_else(dtype, size):
    """In a poisoned buffer every element of the sample is written, and none of its neighbours."""
    config = ViewConfig.maskco(size)
    renderer = Renderer(config, dtype)
    ids, heights, widths = np.arange(6), np.full(6, 150), np.full(6, 200)
    rows = plan(config, 4, 2, ids, heights, widths)
    named = rows.view(config.plan_dtype)[:, 0]
    named["views"]["lighting"][3:] = LIGHTING
    unlit = rows.copy()
    unlit.view(config.plan_dtype)[:, 0]["views"]["lighting"] = 0
    for n, poison in itertools.product(
        range(6), (0x7F, 0xFF)
    ):  # 0xFF.. is NaN in every float format
        image = image_of("gradient", 150, 200, seed=n)
        out = np.full((2, 3, size, size, 3), 0, renderer.buffer_dtype)
        out.view(np.uint8)[:] = poison
        untouched = out[:, [0, 2]].tobytes()
        renderer.render(image, 0, 0, rows[n], out, 1)
        assert out[:, [0, 2]].tobytes() == untouched
        seam = np.empty((2, 1, size, size, 3), np.uint8)
        renderer.resize(image, 0, 0, rows[n], seam, 0)
        for v in range(2):
            view = named[n]["views"][v]
            levels = light_reference(augment_reference(seam[v, 0], view), view["lighting"])
            if not FORMAT_NAMES[dtype].normalised:
                assert np.abs(out[v, 1].astype(int) - levels).max() <= WORST
                continue
            exact = Renderer(config, "uint8")
            mine = np.empty((2, 1, size, size, 3), np.uint8)
            exact.render(image, 0, 0, unlit[n], mine, 0)
            box = named[n]["masked_box"] if v == 0 else None
            truth = finish_reference(mine[v, 0], box, view["lighting"])
            values = torch.from_numpy(out[v, 1].copy())
            values = values.view(getattr(torch, dtype)).float()
            assert (values - torch.from_numpy(truth)).abs().max() <= TOLERANCE[dtype]


def test_rendering_in_one_call_is_rendering_by_the_seam():
    config = ViewConfig.maskco(96)
    renderer = Renderer(config, "float32")
    rows = plan(config, 0, 0, np.arange(20), np.full(20, 180), np.full(20, 240))
    once, twice = np.empty((2, 2, 20, 96, 96, 3), np.float32)
    seam = np.empty((2, 20, 96, 96, 3), np.uint8)
    for n in range(20):
        image = image_of("noise", 180, 240, seed=n)
        renderer.render(image, 0, 0, rows[n], once, n)
        renderer.resize(image, 0, 0, rows[n], seam, n)
        renderer.augment(seam, rows[n], twice, n)
    assert once.tobytes() == twice.tobytes()


def test_wide_images_after_narrow_ones():
    """The scratch memory grows with the widest image."""
    config = free(32)
    renderer = Renderer(config, "uint8")
    out = np.empty((1, 1, 32, 32, 3), np.uint8)
    for width in (10, 5000, 700):
        image = image_of("gradient", 40, width)
        renderer.resize(image, 0, 0, one_plan(config, 40, width, crop=(0, 0, 40, width)), out, 0)
        assert (
            np.abs(
                out[0, 0].astype(int) - resize_reference(image, (0, 0, 40, width), 32, False)
            ).max()
            <= 1
        )


def test_arguments_that_do_not_fit_are_refused():
    config = free(32)
    renderer = Renderer(config, "float32")
    row, image = one_plan(config, 40, 40, crop=(0, 0, 40, 40)), image_of("noise", 40, 40)
    out = np.empty((1, 2, 32, 32, 3), np.float32)
    for wrong in (
        (image.astype(float), 0, 0, row, out, 0),
        (image[:, ::2], 0, 0, row, out, 0),
        (image, 0, 0, row[:-1], out, 0),
        (image, 0, 0, row, out.astype(np.float64), 0),
        (image, 0, 0, row, out[..., :2], 0),
        (image, 0, 0, row, out, 2),
    ):
        with pytest.raises(ValueError, match=r"must be|must have|decoded region"):
            renderer.render(*wrong)
    with pytest.raises(ValueError, match=r"`dtype` must be one of .* 'int8'"):
        Renderer(config, "int8")

"""The resize kernels on any crop and each of their paths: bilinear within one level of Pillow,
bicubic equal to it, but for downscaling by more than 31."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskco_fast.kernels.plan import plan
from maskco_fast.kernels.render.image import Renderer
from maskco_fast.kernels.render.resize import NARROW_TAPS, TILE, resize_reference
from maskco_fast.kernels.render.resize_bicubic import CUBIC_TAPS
from maskco_fast.kernels.views import View, ViewConfig

RENDERERS: dict[tuple[tuple[int, int], bool], Renderer] = {}


def resized(image, crop, size, flip, window=None, bicubic=False):
    """One crop, resized by the kernel to a square of side `size` or to a height and width."""
    size = (size, size) if isinstance(size, int) else size
    interpolation = "bicubic" if bicubic else "bilinear"
    config = ViewConfig(views=(View(interpolation=interpolation, size=size),))
    # Scratch memory is reused from example to example, as in a loader.
    renderer = RENDERERS.setdefault((size, bicubic), Renderer(config, "uint8"))
    row = plan(config, 0, 0, np.zeros(1), np.array([image.shape[0]]), np.array([image.shape[1]]))[0]
    view = row.view(config.plan_dtype)[0]["views"][0]
    view["crop"] = crop
    view["window"] = crop if window is None else window
    view["flip"] = flip
    out = np.empty((1, 1, *size, 3), np.uint8)
    renderer.resize(image, 0, 0, row, out, 0)
    return out[0, 0]


def worst(image, crop, size, flip=False, **how):
    """The largest difference between the kernel and Pillow, levels."""
    truth = resize_reference(image, crop, size, flip, **how)
    return np.abs(resized(image, crop, size, flip, **how).astype(int) - truth).max()


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_any_crop_of_any_image(data):
    sizes = [(8, 8), (31, 31), (32, 32), (64, 64), (97, 97), (24, 70), (97, 33)]
    size = data.draw(st.sampled_from(sizes), "size")
    side = st.one_of(st.integers(1, 60), st.integers(1, 500))
    height, width = data.draw(side, "height"), data.draw(side, "width")
    h, w = data.draw(st.integers(1, height), "h"), data.draw(st.integers(1, width), "w")
    y, x = data.draw(st.integers(0, height - h), "y"), data.draw(st.integers(0, width - w), "x")
    image = np.random.default_rng(data.draw(st.integers(0, 99))).integers(
        0, 256, (height, width, 3), dtype=np.uint8
    )
    flip, bicubic = data.draw(st.booleans(), "flip"), data.draw(st.booleans(), "bicubic")
    exact = bicubic and max(h / size[0], w / size[1]) <= (CUBIC_TAPS - 4) / 4  # else in floats
    assert worst(image, (y, x, h, w), size, flip, bicubic=bicubic) <= (0 if exact else 1)


@pytest.mark.parametrize("bicubic", [False, True])
@pytest.mark.parametrize(("height", "width"), [(90, 140), (333, 250), (40, 36), (700, 30)])
def test_squares_of_the_resized_image(height, width, bicubic):
    """A window within its crop, planned, against Pillow's resize of the whole image."""
    image = np.random.default_rng(4).integers(0, 256, (height, width, 3), dtype=np.uint8)
    interpolation = "bicubic" if bicubic else "bilinear"
    view = View(short_side=70, interpolation=interpolation, flip_probability=0.0)
    config = ViewConfig(views=(view, dataclasses.replace(view, position="centre")), size=64)
    row = plan(config, 0, 0, np.zeros(1), np.array([height]), np.array([width]))[0]
    out = np.empty((2, 1, 64, 64, 3), np.uint8)
    Renderer(config, "uint8").resize(image, 0, 0, row, out, 0)
    tall, wide = (max(70, 70 * height // width), max(70, 70 * width // height))
    filters = Image.Resampling
    kind = filters.BICUBIC if bicubic else filters.BILINEAR
    columns = Image.fromarray(image).resize((wide, height), kind)
    whole = np.asarray(columns.resize((wide, tall), kind)).astype(int)
    for v, planned in enumerate(row.view(config.plan_dtype)[0]["views"]):
        y, x = np.round(planned["window"][:2] * (tall / height, wide / width)).astype(int)
        difference = np.abs(out[v, 0] - whole[y : y + 64, x : x + 64])
        assert difference.max() <= 1
        assert difference.mean() < (0.01 if bicubic else 0.3)  # the window is float32


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (6000, 300, 224),  # the most a photograph is scaled down
        (300, 6000, 224),
        (8 * NARROW_TAPS // 2, 8 * NARROW_TAPS // 2, 8),  # beyond fixed point
        (8 * (NARROW_TAPS - 2) // 2, 8 * (NARROW_TAPS - 2) // 2, 8),  # the last within it
        (600, TILE // 3, 32),  # too narrow for a tile, and too tall for the buffer that widens it
        (500, TILE // 3, 32),
        (500, TILE // 3 + 1, 32),
        (8 * (CUBIC_TAPS + 4) // 4, 40, 8),  # beyond the bicubic filter's taps
        (8 * (CUBIC_TAPS - 4) // 4, 40, 8),
        (20000, 20, 64),
        (20, 20000, 64),
    ],
)
def test_the_borders_between_the_kernels_ways(height, width, size):
    random = np.random.default_rng(1)
    image = random.choice(np.array([0, 255], np.uint8), (height, width, 3))
    for flip, bicubic in itertools.product((False, True), (False, True)):
        assert worst(image, (0, 0, height, width), size, flip, bicubic=bicubic) <= 1


def test_an_unscaled_crop_is_a_copy():
    image = np.random.default_rng(2).integers(0, 256, (100, 120, 3), dtype=np.uint8)
    assert (resized(image, (10, 20, 64, 64), 64, False) == image[10:74, 20:84]).all()
    assert (resized(image, (10, 20, 64, 64), 64, True) == image[10:74, 20:84][:, ::-1]).all()


def test_resizing_is_unbiased():
    """The mean of a large noise image is preserved at every scale."""
    image = np.random.default_rng(3).integers(0, 256, (800, 900, 3), dtype=np.uint8)
    for crop in ((0, 0, 800, 900), (5, 7, 300, 310), (0, 0, 100, 100)):
        difference = resized(image, crop, 224, False).astype(int) - resize_reference(
            image, crop, 224, False
        )
        assert abs(difference.mean()) < 0.05, crop

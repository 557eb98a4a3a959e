"""The compiled augmentation against torchvision: colour bit for bit, the blur within a level; and
the rounding that the kernels rely on."""

import itertools

import numpy as np
import pytest
import torch
from numba import njit

from maskco_fast.kernels.augment import numba as augment_numba
from maskco_fast.kernels.augment import numba_colour as colour_numba
from maskco_fast.kernels.augment.reference import (
    augment_reference,
    blur_radius,
    light_reference,
    mask_bounds,
)
from maskco_fast.kernels.compiler import half_precision
from maskco_fast.kernels.compiler.vector import load, store
from maskco_fast.kernels.plan import plan
from maskco_fast.kernels.render.image import Renderer
from maskco_fast.kernels.views import BRIGHTNESS, HUE, View, ViewConfig
from tests.support.augmentation import LIGHTING


def levels_of(kind, size, seed):
    """Levels (size, size, 3) uint8: any colour, nearly gray, or where channels tie and clamp."""
    random = np.random.default_rng(seed)
    if kind == "noise":
        return random.integers(0, 256, (size, size, 3), dtype=np.uint8)
    if kind == "grayish":
        gray = random.integers(0, 256, (size, size, 1)) + random.integers(-9, 10, (size, size, 3))
        return gray.clip(0, 255).astype(np.uint8)
    return random.choice(np.array([0, 1, 2, 127, 128, 254, 255], np.uint8), (size, size, 3))


def augmented(levels, fields):
    """Levels of one view with the plan's `fields`: (compiled, reference)."""
    size = levels.shape[0]
    config = ViewConfig(views=(View(),), size=size)
    row = plan(config, 0, 0, np.zeros(1), np.array([size]), np.array([size]))[0]
    view = row.view(config.plan_dtype)[0]["views"][0]
    for name in ("jitter", "gray", "blur_sigma", "solarize", "lighting"):
        view[name] = fields.get(name, 0)
    view["order"], view["factors"] = (
        fields.get("order", (0, 1, 2, 3)),
        fields.get("factors", (1, 1, 1, 0)),
    )
    out = np.empty((1, 1, size, size, 3), np.uint8)
    Renderer(config, "uint8").augment(levels[None, None], row, out, 0)
    return out[0, 0], light_reference(augment_reference(levels, view), view["lighting"])


@pytest.mark.parametrize("kind", ["noise", "grayish", "corners"])
def test_colour_is_torchvisions_to_the_bit(kind):
    random = np.random.default_rng(8)
    orders = list(itertools.permutations(range(4)))
    for number, order in enumerate(orders):
        factors = (
            *random.uniform(0.2, 1.8, 3),
            random.uniform(-0.5, 0.5),
        )  # SimCLR's strengths, and any hue
        levels = levels_of(kind, (57, 64, 96)[number % 3], number)
        fields = {
            "jitter": 1,
            "order": order,
            "factors": factors,
            "gray": number % 5 == 0,
            "solarize": number % 2,
            "lighting": LIGHTING if number % 3 == 1 else 0,
        }
        fast, truth = augmented(levels, fields)
        np.testing.assert_array_equal(fast, truth, err_msg=str(fields))


@pytest.mark.parametrize("operation", range(BRIGHTNESS, HUE + 1))
def test_the_ends_of_each_factors_range_are_torchvisions_to_the_bit(operation):
    for kind in ("noise", "corners"):
        for factor in (
            (-0.5, 0.5, 0.0, -1 / 6, 1 / 3, 1e-6, -1e-6)
            if operation == HUE
            else (0.0, 1.0, 0.5, 2.0, 3.7)
        ):
            factors = [1.0, 1.0, 1.0, 0.0]
            factors[operation] = factor
            fast, truth = augmented(levels_of(kind, 96, 1), {"jitter": 1, "factors": factors})
            np.testing.assert_array_equal(fast, truth, err_msg=f"{kind} {factor}")


@pytest.mark.parametrize("kind", ["noise", "grayish", "corners"])
def test_the_quick_hue_is_never_surer_than_it_may_be(kind):
    """A million pixels a kind: the fast hue must report doubt wherever it would be wrong."""
    random = np.random.default_rng(17)
    for seed in range(4):
        fields = {
            "jitter": 1,
            "order": (3, 0, 1, 2),
            "factors": (1, 1, 1, random.uniform(-0.5, 0.5)),
        }
        fast, truth = augmented(levels_of(kind, 512, seed), fields)
        np.testing.assert_array_equal(fast, truth, err_msg=str(fields))


def test_blur_is_within_a_level_seldom_off_and_unbiased():
    for sigma, size in itertools.product((0.1, 0.34, 0.7, 1.3, 2.0, 3.5, 5.0), (8, 33, 160)):
        fast, truth = augmented(levels_of("noise", size, 2), {"blur_sigma": sigma})
        difference = fast.astype(int) - truth
        assert np.abs(difference).max() <= 1, (sigma, size)
        if size == 160:
            assert (difference != 0).mean() < 0.03, sigma
            assert abs(difference.mean()) < 0.01, sigma


def test_the_widest_blur_fits_the_kernels_buffers():
    assert blur_radius(5.0, 1024) == augment_numba.MAX_RADIUS <= augment_numba.HALO


def test_quotients_by_255_are_exact():
    """`_to_unit` replaces torchvision's division by 255."""

    @njit
    def to_unit(levels, out):
        for i in range(0, 256, 32):
            store(out, i, colour_numba._to_unit(load(levels, i, 32)))

    levels, out = np.arange(256, dtype=np.float32), np.empty(256, np.float32)
    to_unit(levels, out)
    assert (out == levels / np.float32(255)).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_by_integers_round_as_torch_does(dtype):
    """The path of machines without conversion instructions, and of bfloat16 on all machines."""
    encode = {"float16": half_precision.float16_bits, "bfloat16": half_precision.bfloat16_bits}[
        dtype
    ]

    @njit
    def convert_all(values, out):
        for i in range(0, len(values), 32):
            store(out, i, encode(load(values, i, 32)))

    random = np.random.default_rng(0)
    values = (random.normal(size=32 * 3000) * 10.0 ** random.integers(-4, 4, 32 * 3000)).astype(
        np.float32
    )
    values[:4] = 1 + 2**-11, 1 + 3 * 2**-11, -1 - 2**-8, 0  # ties, which go to even
    if dtype == "float16":
        values[np.abs(values) < 2**-14] = 0  # float16's normal numbers end there
    out = np.empty(len(values), np.uint16)
    convert_all(values, out)
    truth = (
        torch.from_numpy(values).to(getattr(torch, dtype)).view(torch.int16).numpy().view(np.uint16)
    )
    assert (out & 0x7FFF == truth & 0x7FFF).all()
    assert (out[values != 0] == truth[values != 0]).all()


def test_the_masked_pixels_are_those_that_the_box_touches():
    assert mask_bounds(np.array([10.2, 20.0, 30.0, 40.001], np.float32), 224, 224) == (
        10,
        20,
        30,
        41,
    )
    assert mask_bounds(np.array([-5.0, 200.5, 7.5, 300.0], np.float32), 224, 224) == (
        0,
        200,
        8,
        224,
    )

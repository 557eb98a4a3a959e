"""Augmentation in plain torch against torchvision's functional operators, one view at a time."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskco_fast.kernels.augment import torch as augment_torch
from maskco_fast.kernels.augment.batch import BatchAugmenter, normalised
from maskco_fast.kernels.augment.reference import finish_reference
from maskco_fast.kernels.plan import BLUR_SIGMA, GRAY, JITTER, SOLARIZE, VIEW_FLOATS, plan
from maskco_fast.kernels.views import View, ViewConfig
from tests.support.augmentation import (
    HALF_UNIT,
    LIGHTING,
    ORDERS,
    expected_levels,
    make_rows,
    make_views,
)


def run(views: np.ndarray, rows: np.ndarray, **options: object) -> np.ndarray:
    """`augment_torch.augment` on numpy arrays: channels last, float32 or uint8."""
    out = augment_torch.augment(torch.from_numpy(views), torch.from_numpy(rows), **options)  # type: ignore[arg-type]
    out = out.movedim(-3, -1)
    return out.numpy() if out.dtype == torch.uint8 else out.float().numpy()


def test_twenty_four_orders_are_torchvisions_to_the_bit() -> None:
    """Every order, with strong factors on every kind of view."""
    factors = np.random.default_rng(1).uniform((0, 0, 0, -0.5), (2, 2, 2, 0.5), (24, 4))
    views, rows = make_views(24, 32), make_rows(24, jitter=1, order=ORDERS, factors=factors)
    np.testing.assert_array_equal(run(views, rows, dtype=torch.uint8), expected_levels(views, rows))


@pytest.mark.parametrize(
    "columns",
    [
        {"gray": 1},
        {"solarize": 1},
        {"jitter": 0, "factors": 0.3},
        {"flip": 1},
        {"lighting": LIGHTING},
    ],
)
@pytest.mark.parametrize("size", [32, 33])
def test_simple_operations_alone(columns: dict[str, float], size: int) -> None:
    views, rows = make_views(5, size), make_rows(5, **columns)
    np.testing.assert_array_equal(
        run(views, rows, dtype=torch.uint8, flip=True), expected_levels(views, rows, True)
    )


# 3 times 1.3333334 is 4.0000002, which float32 rounds to 4: one tap less than torchvision, which
# computes in float64.
@pytest.mark.parametrize("sigma", [0.1, 0.34, 1.0, 1.3333334, 2.0, 3.7, 5.0])
@pytest.mark.parametrize("size", [32, 45])
def test_blur_is_within_one_level(sigma: float, size: int) -> None:
    views, rows = make_views(5, size), make_rows(5, blur_sigma=sigma)
    difference = np.abs(
        run(views, rows, dtype=torch.uint8).astype(int) - expected_levels(views, rows)
    )
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


@settings(max_examples=30, deadline=None)
@given(
    size=st.integers(32, 70),
    seed=st.integers(0, 2**31),
    preset=st.sampled_from(["moco_v2", "simclr", "byol", "npid", "supervised"]),
)
def test_planned_views_match(size: int, seed: int, preset: str) -> None:
    """Complete plan rows of every preset, at any size."""
    views_of_preset: tuple[View, ...] = getattr(ViewConfig, preset)().views
    config = ViewConfig(views=views_of_preset, size=size, box_side=(8, 8))
    rows = plan(config, seed, 0, np.arange(3), np.full(3, 300), np.full(3, 200))[:, :VIEW_FLOATS]
    rows = np.ascontiguousarray(rows)
    views = make_views(3, size, seed)
    difference = np.abs(
        run(views, rows, dtype=torch.uint8).astype(int) - expected_levels(views, rows)
    )
    blurred = rows[:, BLUR_SIGMA] > 0
    assert difference[~blurred].max(initial=0) == 0
    # At the threshold, solarisation can turn a difference of one level into 255 - 2 · 128 more.
    assert difference[blurred & (rows[:, SOLARIZE] == 0)].max(initial=0) <= 1
    assert (difference > 0).mean() < 1e-3


@pytest.mark.parametrize("dtype", list(HALF_UNIT))
def test_normalised_and_masked(dtype: torch.dtype) -> None:
    """Boxes inside, fractional, touching and crossing the border, empty; only the first of two
    views is masked."""
    boxes = np.array(
        [
            [3.2, 4.7, 10.1, 20],
            [0, 0, 32, 32],
            [-3.5, 30.2, 4, 40],
            [31.5, 0, 33, 0.1],
            [5, 5, 5, 9],
        ],
        np.float32,
    )
    lighting = np.array([LIGHTING, (0, 0, 0)] * 5, np.float32)
    views, rows = (
        make_views(10, 32).reshape(2, 5, 32, 32, 3),
        make_rows(10, jitter=1, factors=(1.2, 0.7, 1.4, 0.1), lighting=lighting),
    )
    out = augment_torch.augment(
        torch.from_numpy(views),
        torch.from_numpy(rows).view(2, 5, VIEW_FLOATS),
        masked_box=torch.from_numpy(boxes),
        dtype=dtype,
    )
    assert out.shape == (2, 5, 3, 32, 32)
    assert out.dtype == dtype
    assert all(view.is_contiguous(memory_format=torch.channels_last) for view in out)
    levels = expected_levels(views.reshape(10, 32, 32, 3), rows, lit=False)
    expected = np.stack(
        [
            finish_reference(level, boxes[n] if n < 5 else None, lighting[n])
            for n, level in enumerate(levels)
        ]
    ).reshape(views.shape)
    values = out.movedim(-3, -1).float().numpy()
    np.testing.assert_allclose(values, expected, rtol=HALF_UNIT[dtype] * 1.001, atol=1e-6)
    assert (values[0, 1] == 0).all()
    assert (values[1, 1] != 0).all()


@pytest.mark.parametrize("size", [(32, 45), (45, 32), (8, 40)])
def test_rectangles_and_other_statistics(size: tuple[int, int]) -> None:
    mean, std = (0.5, 0.4, 0.3), (0.228, 0.224, 0.5)
    views = make_views(5, 45)[:, : size[0], : size[1]]
    rows = make_rows(5, jitter=1, factors=(1.2, 0.7, 1.4, 0.1), blur_sigma=(0, 2, 0, 1, 2))
    boxes = np.array([[3.2, 1.7, 50, 4], [0, 0, 8, 50], *[[1, 1, 2, 2]] * 3], np.float32)
    out = augment_torch.augment(
        torch.from_numpy(views),
        torch.from_numpy(rows),
        masked_box=torch.from_numpy(boxes),
        dtype=torch.float32,
        mean=mean,
        std=std,
    )
    levels = expected_levels(views, rows, lit=False)
    truth = [finish_reference(level, box, None, mean, std) for level, box in zip(levels, boxes)]
    difference = np.abs(out.movedim(-3, -1).numpy() - np.stack(truth)) * 255
    assert difference[[0, 2]].max() < 0.01
    assert difference.max() <= 1.01 / min(std)


def test_groups_of_views_are_augmented_apart() -> None:
    """Views of three kinds, out of order, as each alone; and the normalisation behind levels."""
    plain = View(size=32)
    other = View(size=32, mean=(0.5, 0.4, 0.3), std=(0.228, 0.224, 0.5))
    config = ViewConfig(views=(plain, other, View(size=(40, 8)), plain, other), size=64)
    rows = plan(config, 0, 0, np.arange(6), np.full(6, 90), np.full(6, 80))
    parameters = torch.from_numpy(rows[:, : 5 * VIEW_FLOATS]).unflatten(1, (5, VIEW_FLOATS))
    memory = torch.randint(0, 256, (6 * config.layout.elements,)).to(torch.uint8)
    seam = config.layout.views(memory)
    assert torch.equal(config.layout.pack(seam), memory)
    assert [group.views for group in config.layout.groups] == [(0, 3), (1, 4), (2,)]
    box = torch.tensor([[4.0, 5, 20, 21]] * 6)
    options: dict[str, Any] = {"masked_box": box, "dtype": torch.float16}
    made = BatchAugmenter(config, torch.device("cpu"))(memory, parameters.movedim(1, 0), **options)
    for v, view in enumerate(config.views):
        own: dict[str, Any] = {"mean": view.mean, "std": view.std, "max_blur_sigma": 2.0}
        own["masked_box"] = box if v == 0 else None
        truth = augment_torch.augment(seam[v], parameters[:, v], **{**options, **own})
        assert torch.equal(made[v], truth)
        assert made[v].is_contiguous(memory_format=torch.channels_last)
    behind = normalised(augment_torch.augment, config.layout.groups[1], torch.device("cpu"))
    mine = behind(seam[1], parameters[:, 1], masked_box=None, dtype=torch.float16)
    assert mine.is_contiguous(memory_format=torch.channels_last)
    assert (mine - made[1]).abs().max() <= 4 * HALF_UNIT[torch.float16]


def test_strides_do_not_matter() -> None:
    """Views and plan rows that are parts of larger arrays give what copies of them give."""
    views, rows = make_views(4, 40), make_rows(4, jitter=1, gray=(0, 0, 1, 1), blur_sigma=1.1)
    roomy = np.zeros((4, 45, 50, 4), np.uint8)
    roomy[:, 2:42, 3:43, :3] = views
    wide = np.zeros((4, 90), np.float32)
    wide[:, 7 : 7 + VIEW_FLOATS] = rows
    np.testing.assert_array_equal(
        run(roomy[:, 2:42, 3:43, :3], wide[:, 7 : 7 + VIEW_FLOATS]), run(views, rows)
    )


def test_compiled_and_eager_agree() -> None:
    """`torch.compile` traces `augment` without a graph break, and its levels are the same."""
    views, rows = (
        make_views(6, 32),
        make_rows(6, jitter=1, order=ORDERS[::4], factors=(1.3, 0.8, 1.2, -0.1)),
    )
    rows[:, [GRAY, BLUR_SIGMA]] = [[0, 0], [1, 0], [0, 1], [1, 2], [0, 0.1], [0, 0]]
    rows[:, JITTER] = [1, 1, 1, 0, 1, 1]
    # A backend that does not fuse: a fused multiply and add may round to another level.
    compiled = torch.compile(augment_torch.augment, fullgraph=True, backend="aot_eager")
    options: dict[str, Any] = {"dtype": torch.uint8, "max_blur_sigma": 2.0}
    out = (
        compiled(torch.from_numpy(views), torch.from_numpy(rows), **options).movedim(-3, -1).numpy()
    )
    np.testing.assert_array_equal(out, run(views, rows, **options))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"views": torch.zeros(2, 32, 32, 3)}, "must be uint8 .* got torch.float32"),
        (
            {"views": torch.zeros(2, 3, 32, 32, dtype=torch.uint8)},
            r"\(N, S, S, 3\) or .* got torch.uint8 \(2, 3, 32, 32\)",
        ),
        ({"views": torch.zeros(2, 7, 40, 3, dtype=torch.uint8)}, "sides of 8 to 1024 .* 7 by 40"),
        ({"parameters": torch.zeros(2, 16)}, rf"must be float32 \(2, {VIEW_FLOATS}\) for views"),
        (
            {"parameters": torch.zeros(3, VIEW_FLOATS)},
            rf"must be float32 \(2, {VIEW_FLOATS}\) for views",
        ),
        ({"parameters": torch.zeros(2, VIEW_FLOATS, dtype=torch.float64)}, "float64"),
        (
            {"parameters": torch.zeros(2, VIEW_FLOATS, device="meta")},
            r"same device, got \['cpu', 'meta'\]",
        ),
        ({"masked_box": torch.zeros(3, 4)}, r"must be float32 \(2, 4\)"),
        ({"dtype": torch.float64}, "must be one of .*, got torch.float64"),
        (
            {"out": torch.zeros(2, 3, 32, 32, dtype=torch.float16)},
            "must be channels-last and dense",
        ),
        (
            {"out": torch.zeros(2, 32, 32, 3).movedim(-1, 1)},
            r"must be torch.float16 \(2, 3, 32, 32\) on cpu",
        ),
    ],
)
def test_errors_name_what_does_not_fit(change: dict[str, object], message: str) -> None:
    arguments = {
        "views": torch.zeros(2, 32, 32, 3, dtype=torch.uint8),
        "parameters": torch.zeros(2, VIEW_FLOATS),
        **change,
    }
    with pytest.raises(ValueError, match=message):
        augment_torch.augment(**arguments)  # type: ignore[arg-type]

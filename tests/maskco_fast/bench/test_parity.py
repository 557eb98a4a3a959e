"""The parity gate: each limit closes it alone, as does each field that must be equal."""

import dataclasses

import pytest
import torch

from maskco_fast.bench.parity import FINISHED_LIMIT, SEAM_LIMIT, Difference, ParityError, check
from maskco_fast.kernels.views import IMAGENET_STD
from maskco_fast.loaders import Batch

LIMIT = Difference(mean=0.5, worst=10, far=0.01)
STD = torch.tensor(IMAGENET_STD).view(3, 1, 1)


def batch(levels: torch.Tensor | None = None, dtype: torch.dtype = torch.float32) -> Batch:
    """Two images with two views of 10 x 10 pixels; `levels` are added to the first view's."""
    views = torch.full((2, 2, 3, 10, 10), 100.0)
    if levels is not None:
        views[0] += levels
    if dtype == torch.float32:
        views = views / 255 / STD
    return Batch(
        views=tuple(views.to(dtype)),
        sample_id=torch.tensor([7, 8]),
        target=torch.tensor([0, 1]),
        index=torch.tensor([3, 4]),
        masked_box=torch.rand(2, 4, generator=torch.Generator().manual_seed(0)),
        key_boxes=torch.rand(2, 17, 4, generator=torch.Generator().manual_seed(1)),
    )


def some(values: dict[int, float]) -> torch.Tensor:
    """Differences of single values of a view (2, 3, 10, 10), by place."""
    levels = torch.zeros(600)
    for place, level in values.items():
        levels[place] = level
    return levels.view(2, 3, 10, 10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_figures_are_levels(dtype):
    found = check(
        batch(some({0: 3.0, 1: -6.0, 5: 3.5 if dtype != torch.uint8 else 4.0}), dtype),
        batch(dtype=dtype),
        LIMIT,
    )
    assert found.worst == pytest.approx(6, abs=1e-3)
    assert found.far == pytest.approx(2 / 1200)
    assert found.mean == pytest.approx((9 + (3.5 if dtype != torch.uint8 else 4)) / 1200, abs=1e-4)


@pytest.mark.parametrize(
    ("levels", "limit"),
    [
        (torch.full((2, 3, 10, 10), 1.2), "mean"),  # 0.6 in the mean over both views
        (some({0: 11.0}), "worst"),
        (some(dict.fromkeys(range(13), 3.5)), "far"),  # 13 of 1200 values
    ],
)
def test_each_limit_closes_the_gate_alone(levels, limit):
    with pytest.raises(ParityError, match="parity is red"):
        check(batch(levels), batch(), LIMIT)
    without = dataclasses.replace(LIMIT, **{limit: 1e9})
    check(batch(levels), batch(), without)


@pytest.mark.parametrize("name", ["index", "sample_id", "target", "masked_box", "key_boxes"])
def test_what_must_be_equal_is_compared_to_the_bit(name):
    value = getattr(batch(), name).clone()
    value.view(-1)[-1] += 1 if not value.is_floating_point() else 1e-6
    with pytest.raises(ParityError, match=name):
        check(dataclasses.replace(batch(), **{name: value}), batch(), LIMIT)


def test_the_seam_allows_no_value_beyond_one_level():
    levels = some({0: 1.0})
    check(batch(levels, torch.uint8), batch(dtype=torch.uint8), SEAM_LIMIT)
    with pytest.raises(ParityError):
        check(batch(2 * levels, torch.uint8), batch(dtype=torch.uint8), SEAM_LIMIT)
    assert FINISHED_LIMIT.mean < 1

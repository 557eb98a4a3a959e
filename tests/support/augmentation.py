"""Helpers of the augmentation tests: generated views, plan rows with chosen columns, reference
levels."""

import itertools

import numpy as np

from maskco_fast.kernels.augment.reference import augment_reference, light_reference
from maskco_fast.kernels.plan import FACTORS, ORDER, VIEW_FLOATS
from maskco_fast.kernels.torch_formats import FORMATS
from maskco_fast.kernels.views import plan_dtype

VIEW_DTYPE = plan_dtype(1, 0)["views"].base
ORDERS = list(itertools.permutations(range(4)))
HALF_UNIT = {dtype: form.half_unit for dtype, form in FORMATS.items() if form.normalised}
"""Largest relative rounding error by dtype: half a unit in the last place."""


def make_views(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Views (count, size, size, 3) uint8: noise, waves, flat colours, gray, saturated, in turn."""
    random = np.random.default_rng(seed)
    views = random.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    y, x = np.mgrid[:size, :size]
    views[1::5] = (127 + 127 * np.sin(x / 5 + y / 9))[..., None].astype(np.uint8) // np.array(
        [1, 2, 3], np.uint8
    )
    views[2::5] = random.integers(0, 256, (len(views[2::5]), 1, 1, 3), dtype=np.uint8)
    views[3::5] = views[3::5, :, :, :1]
    views[4::5] = np.where(views[4::5] < 128, 0, 255)
    return views


LIGHTING = (0.02, -0.05, 0.1)
"""Offsets of a lit view: some levels are clamped at either end."""


def make_rows(count: int, **columns: object) -> np.ndarray:
    """Plan rows of one view, (count, VIEW_FLOATS) float32, with `columns` set and nothing else."""
    rows = np.zeros((count, VIEW_FLOATS), np.float32)
    rows[:, ORDER : ORDER + 4] = range(4)
    rows[:, FACTORS : FACTORS + 3] = 1.0
    for name, value in columns.items():
        rows.view(VIEW_DTYPE)[:, 0][name] = np.asarray(value, np.float32)
    return rows


def expected_levels(
    views: np.ndarray, rows: np.ndarray, flip: bool = False, *, lit: bool = True
) -> np.ndarray:
    """Levels (count, size, size, 3) uint8 by torchvision, one view at a time.

    `flip`: mirror the views whose row says so. `lit`: with the rows' lighting, as uint8 views have
    it; normalised views have it added to the unlit levels.
    """
    levels = []
    for view, row in zip(views, rows):
        named = row.view(VIEW_DTYPE)[0]
        flipped = view[:, ::-1] if flip and named["flip"] else view
        augmented = augment_reference(flipped, named)
        levels.append(light_reference(augmented, named["lighting"]) if lit else augmented)
    return np.stack(levels)

"""The region of an image that its crops need, and how much smaller it may be decoded.

N samples, V views; plan rows are (N, columns) float32.
"""

from collections.abc import Sequence

import numpy as np

from ..kernels.layout import Size
from ..kernels.plan import CROP, VIEW_FLOATS, WINDOW

MAX_SHRINK = 8
"""libjpeg's inverse DCT scales down to an eighth."""


def _boxes(rows: np.ndarray, views: int, first: int) -> np.ndarray:
    """(V, N, 4): y, x, height, width of the views' boxes at column `first`, pixels."""
    return np.stack(
        [rows[:, v * VIEW_FLOATS + first : v * VIEW_FLOATS + first + 4] for v in range(views)]
    )


def crop_regions(rows: np.ndarray, views: int) -> np.ndarray:
    """(N, 4) int64: y, x, height, width of the smallest regions that contain all crops."""
    crops = _boxes(rows, views, CROP)
    begin = crops[..., :2].min(0)
    end = (crops[..., :2] + crops[..., 2:]).max(0)
    return np.concatenate([begin, end - begin], 1).astype(np.int64)


def shrink_factors(rows: np.ndarray, sizes: Sequence[Size]) -> np.ndarray:
    """(N,) int64 in {1, 2, 4, 8}: the largest factor that leaves each window its view's pixels.

    `sizes`: height and width of each view.
    """
    sides = _boxes(rows, len(sizes), WINDOW)[..., 2:]
    ratio = (sides // np.array(sizes)[:, None]).min((0, 2))
    powers = 2 ** np.floor(np.log2(np.maximum(ratio, 1)))
    return np.clip(powers, 1, MAX_SHRINK).astype(np.int64)


def scale_crops(row: np.ndarray, views: int, by: int, height: int, width: int) -> np.ndarray:
    """Copy of a plan row (columns,), its crops in whole pixels of an image `by` times smaller.

    `height` and `width` are those of the smaller image. Crops keep at least one pixel a side. A
    window stays equal to its crop, or, where the filter reads around it, exact.
    """
    row = row.copy()
    sides = (height, width)
    for v in range(views):
        crop = row[v * VIEW_FLOATS + CROP : v * VIEW_FLOATS + CROP + 4]
        window = row[v * VIEW_FLOATS + WINDOW : v * VIEW_FLOATS + WINDOW + 4]
        begin, end = crop[:2] / by, (crop[:2] + crop[2:]) / by
        if (crop == window).all():
            begin, end = np.minimum(np.round(begin), np.subtract(sides, 1)), np.round(end)
            crop[:2] = begin
            crop[2:] = np.maximum(np.minimum(end, sides) - begin, 1)
            window[:] = crop
        else:
            crop[:2] = np.floor(begin)
            crop[2:] = np.minimum(np.ceil(end), sides) - crop[:2]
            window /= by
    return row

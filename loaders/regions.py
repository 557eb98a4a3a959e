"""The region of an image that its crops need, and how much smaller it may be decoded.

N samples, V views; plan rows are (N, columns) float32.
"""

import numpy as np

from ..kernels.plan import CROP, VIEW_FLOATS

MAX_SHRINK = 8
"""libjpeg's inverse DCT scales down to an eighth."""


def _crops(rows: np.ndarray, views: int) -> np.ndarray:
    """(V, N, 4): y, x, height, width of the crops of the plan rows, pixels."""
    return np.stack(
        [rows[:, v * VIEW_FLOATS + CROP : v * VIEW_FLOATS + CROP + 4] for v in range(views)]
    )


def crop_regions(rows: np.ndarray, views: int) -> np.ndarray:
    """(N, 4) int64: y, x, height, width of the smallest regions that contain all crops."""
    crops = _crops(rows, views)
    begin = crops[..., :2].min(0)
    end = (crops[..., :2] + crops[..., 2:]).max(0)
    return np.concatenate([begin, end - begin], 1).astype(np.int64)


def shrink_factors(rows: np.ndarray, views: int, size: int) -> np.ndarray:
    """(N,) int64 in {1, 2, 4, 8}: the largest factor that leaves each crop `size` pixels a side."""
    ratio = _crops(rows, views)[..., 2:].min((0, 2)) // size
    powers = 2 ** np.floor(np.log2(np.maximum(ratio, 1)))
    return np.clip(powers, 1, MAX_SHRINK).astype(np.int64)


def scale_crops(row: np.ndarray, views: int, by: int, height: int, width: int) -> np.ndarray:
    """Copy of a plan row (columns,), its crops in whole pixels of an image `by` times smaller.

    `height` and `width` are those of the smaller image. Crops keep at least one pixel a side.
    """
    row = row.copy()
    for v in range(views):
        crop = row[v * VIEW_FLOATS + CROP : v * VIEW_FLOATS + CROP + 4]
        begin = np.minimum(np.round(crop[:2] / by), (height - 1, width - 1))
        end = np.minimum(np.round((crop[:2] + crop[2:]) / by), (height, width))
        crop[:2] = begin
        crop[2:] = np.maximum(end - begin, 1)
    return row

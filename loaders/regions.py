"""Which part of an image its crops need, and how far down it may be decoded."""

import numpy as np

from ..kernels.plan import CROP, VIEW_FLOATS

MOST = 8
"""libjpeg's inverse DCT makes images down to an eighth of their size."""


def _crops(rows: np.ndarray, views: int) -> np.ndarray:
    """(V, N, 4): y, x, height, width of the crops of plan rows (N, columns)."""
    return np.stack(
        [rows[:, v * VIEW_FLOATS + CROP : v * VIEW_FLOATS + CROP + 4] for v in range(views)]
    )


def crop_regions(rows: np.ndarray, views: int) -> np.ndarray:
    """(N, 4) int64: y, x, height, width of the smallest regions that hold the crops of plan rows
    (N, columns)."""
    crops = _crops(rows, views)
    begin, end = crops[..., :2].min(0), (crops[..., :2] + crops[..., 2:]).max(0)
    return np.concatenate([begin, end - begin], 1).astype(np.int64)


def shrink_factors(rows: np.ndarray, views: int, size: int) -> np.ndarray:
    """(N,) int64: 1, 2, 4 or 8, the most by which an image may shrink while its crops keep `size`
    pixels a side."""
    ratio = _crops(rows, views)[..., 2:].min((0, 2)) // size
    return np.clip(2 ** np.floor(np.log2(np.maximum(ratio, 1))), 1, MOST).astype(np.int64)


def scale_crops(row: np.ndarray, views: int, by: int, height: int, width: int) -> np.ndarray:
    """The plan row with its crops in whole pixels of an image `by` times smaller, of (`height`,
    `width`)."""
    row = row.copy()
    for v in range(views):
        crop = row[v * VIEW_FLOATS + CROP : v * VIEW_FLOATS + CROP + 4]
        begin = np.minimum(np.round(crop[:2] / by), (height - 1, width - 1))
        end = np.minimum(np.round((crop[:2] + crop[2:]) / by), (height, width))
        crop[:2], crop[2:] = begin, np.maximum(end - begin, 1)
    return row

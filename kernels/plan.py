"""The plan: everything random about a sample, decided before a pixel is touched.

`plan(config, seed, epoch, sample_ids, heights, widths)` is a pure function. Its random stream is
counter-based (splitmix64) on (seed, epoch, sample_id, purpose), so that neither the batch, the
thread, the rank nor the loader that asks can change what a sample gets. Crops, each view's colour
and the boxes have streams of their own: configuring one leaves the others as they were.
"""

import math

import numpy as np

from .compiler.jit import inline_jit, jit
from .errors import InvalidInput
from .views import ViewConfig, plan_columns, plan_dtype

CROP_TRIES = 10
"""Draws of one crop before the central one is taken (torchvision's RandomResizedCrop)."""
PAIR_TRIES = 64
"""Draws of both crops before the key takes the query's crop (SPEC 1)."""
BOX_TRIES = 64
"""Draws of a box before the smallest one that is sure to be allowed is taken."""

VIEW_FLOATS = plan_columns(plan_dtype(1, 0)) - plan_columns(plan_dtype(0, 0))
MASKED_BOX, DRAWS, KEY_BOXES = 0, 4, 5  # columns after the views
CROP, FLIP, JITTER, ORDER, FACTORS, GRAY, BLUR_SIGMA, SOLARIZE = (
    0,
    4,
    5,
    6,
    10,
    14,
    15,
    16,
)  # columns of a view

_CROPS, _BOXES, _COLOUR = (
    np.uint64(0),
    np.uint64(1),
    np.uint64(2),
)  # purposes; views count up from _COLOUR
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S11, _S27, _S30, _S31 = np.uint64(11), np.uint64(27), np.uint64(30), np.uint64(31)
_ULP = 2.0**-53


def plan(
    config: ViewConfig,
    seed: int,
    epoch: int,
    sample_ids: np.ndarray,
    heights: np.ndarray,
    widths: np.ndarray,
) -> np.ndarray:
    """Plan rows of a batch, (N, columns) float32; `rows.view(config.plan_dtype)[:, 0]` names their
    fields.

    `sample_ids` (N,) int64; `heights` and `widths` (N,) integers, image pixels, at least 1
    (ValueError otherwise).
    """
    sample_ids = np.ascontiguousarray(sample_ids, np.int64)
    heights = np.ascontiguousarray(heights, np.int64)
    widths = np.ascontiguousarray(widths, np.int64)
    if not len(sample_ids) == len(heights) == len(widths):
        raise InvalidInput(
            f"{len(sample_ids)} sample ids, {len(heights)} heights and {len(widths)} widths differ in number"
        )
    if len(heights) and min(heights.min(), widths.min()) < 1:
        raise InvalidInput(
            "an image side below 1 pixel; the index lets only images with pixels through"
        )
    rows = np.empty((len(sample_ids), plan_columns(config.plan_dtype)), np.float32)
    mask64 = (1 << 64) - 1
    plan_rows(
        config.view_parameters(),
        config.box_parameters(),
        config.boxes,
        np.uint64(seed & mask64),
        np.uint64(epoch & mask64),
        sample_ids,
        heights,
        widths,
        rows,
    )
    return rows


@inline_jit()
def _mix(z):
    z = (z ^ (z >> _S30)) * _MIX_1
    z = (z ^ (z >> _S27)) * _MIX_2
    return z ^ (z >> _S31)


@inline_jit()
def _start(stream, seed, epoch, sample_id, purpose):
    stream[0] = _mix(
        _mix(_mix(_mix(seed + _GOLDEN) + epoch + _GOLDEN) + np.uint64(sample_id)) + purpose
    )


@inline_jit()
def _uniform(stream, low, high):
    """A float64 in [low, high), by the next 53 bits of the stream."""
    stream[0] += _GOLDEN
    return low + (high - low) * (np.float64(_mix(stream[0]) >> _S11) * _ULP)


@inline_jit()
def _below(stream, n):
    """A whole number in 0..n-1."""
    return min(int(_uniform(stream, 0.0, 1.0) * n), n - 1)


@inline_jit()
def _draw_crop(stream, height, width, area_low, area_high, ratio_low, ratio_high):
    """torchvision's RandomResizedCrop.get_params: (y, x, h, w)."""
    for _ in range(CROP_TRIES):
        area = height * width * _uniform(stream, area_low, area_high)
        ratio = math.exp(_uniform(stream, math.log(ratio_low), math.log(ratio_high)))
        w = round(math.sqrt(area * ratio))
        h = round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return _below(stream, height - h + 1), _below(stream, width - w + 1), h, w
    h, w = height, width
    if width / height < ratio_low:
        h = min(max(round(width / ratio_low), 1), height)
    elif width / height > ratio_high:
        w = min(max(round(height * ratio_high), 1), width)
    return (height - h) // 2, (width - w) // 2, h, w


@inline_jit()
def _draw_colour(stream, parameters, out):
    """Flip, jitter, gray, blur and solarisation of one view, into the view's columns."""
    out[FLIP] = _uniform(stream, 0.0, 1.0) < parameters[14]
    out[JITTER] = _uniform(stream, 0.0, 1.0) < parameters[8]
    for i in range(4):  # Fisher-Yates from the front: entry i is a uniform choice of what is left
        out[ORDER + i] = i
    for i in range(3):
        j = i + _below(stream, 4 - i)
        out[ORDER + i], out[ORDER + j] = out[ORDER + j], out[ORDER + i]
    for i in range(3):
        out[FACTORS + i] = _uniform(
            stream, max(0.0, 1.0 - parameters[4 + i]), 1.0 + parameters[4 + i]
        )
    out[FACTORS + 3] = _uniform(stream, -parameters[7], parameters[7])
    out[GRAY] = _uniform(stream, 0.0, 1.0) < parameters[9]
    blurred = _uniform(stream, 0.0, 1.0) < parameters[10]
    sigma = _uniform(stream, parameters[11], parameters[12])
    out[BLUR_SIGMA] = sigma if blurred else 0.0
    out[SOLARIZE] = _uniform(stream, 0.0, 1.0) < parameters[13]


@inline_jit()
def _overlap_in_key(query, key, size):
    """The crops' intersection (x1, y1, x2, y2) in pixels of the unflipped key view; empty where x2
    <= x1, y2 <= y1."""
    scale_y, scale_x = size / key[2], size / key[3]
    y1 = (max(query[0], key[0]) - key[0]) * scale_y
    x1 = (max(query[1], key[1]) - key[1]) * scale_x
    y2 = (min(query[0] + query[2], key[0] + key[2]) - key[0]) * scale_y
    x2 = (min(query[1] + query[3], key[1] + key[3]) - key[1]) * scale_x
    return x1, y1, x2, y2


@inline_jit()
def project_box(x1, y1, x2, y2, key, key_flip, query, query_flip, size):
    """A box of the key view as it lies in the query view, (x1, y1, x2, y2), both views as flipped
    (SPEC 1, masked box).

    `key` and `query` are crops (y, x, h, w) in image pixels.
    """
    if key_flip:
        x1, x2 = size - x2, size - x1
    x1 = (key[1] + x1 * key[3] / size - query[1]) * size / query[3]
    x2 = (key[1] + x2 * key[3] / size - query[1]) * size / query[3]
    y1 = (key[0] + y1 * key[2] / size - query[0]) * size / query[2]
    y2 = (key[0] + y2 * key[2] / size - query[0]) * size / query[2]
    if query_flip:
        x1, x2 = size - x2, size - x1
    return x1, y1, x2, y2


@inline_jit()
def box_iou(a1, b1, a2, b2, c1, d1, c2, d2):
    """Intersection over union of the boxes (a1, b1, a2, b2) and (c1, d1, c2, d2), both xyxy."""
    inter = max(0.0, min(a2, c2) - max(a1, c1)) * max(0.0, min(b2, d2) - max(b1, d1))
    return inter / ((a2 - a1) * (b2 - b1) + (c2 - c1) * (d2 - d1) - inter)


@inline_jit()
def _draw_boxes(stream, boxes, parameters, query, key, query_flip, key_flip, tail):
    """Box 0 inside the overlap, the negatives anywhere, and the masked box, into the columns after
    the views."""
    size, low, high = parameters[0], parameters[2], parameters[3]
    left, top, right, bottom = _overlap_in_key(query, key, size)
    if key_flip:
        left, right = size - right, size - left
    for attempt in range(BOX_TRIES + 1):
        # The smallest box always passes the cap: the overlap spans at least the longest side, so
        # that the query crop is at least that part of the key crop on each axis.
        w = _uniform(stream, low, high) if attempt < BOX_TRIES else low
        h = _uniform(stream, low, high) if attempt < BOX_TRIES else low
        x1 = np.float32(_uniform(stream, left, right - w))
        y1 = np.float32(_uniform(stream, top, bottom - h))
        x2, y2 = np.float32(x1 + w), np.float32(y1 + h)
        mx1, my1, mx2, my2 = project_box(x1, y1, x2, y2, key, key_flip, query, query_flip, size)
        if (mx2 - mx1) * (my2 - my1) <= parameters[5] * size * size:
            break
    tail[MASKED_BOX], tail[MASKED_BOX + 1], tail[MASKED_BOX + 2], tail[MASKED_BOX + 3] = (
        mx1,
        my1,
        mx2,
        my2,
    )
    tail[KEY_BOXES], tail[KEY_BOXES + 1], tail[KEY_BOXES + 2], tail[KEY_BOXES + 3] = x1, y1, x2, y2

    for box in range(1, boxes):
        for _ in range(BOX_TRIES):
            w = _uniform(stream, low, high)
            h = _uniform(stream, low, high)
            nx1 = np.float32(_uniform(stream, 0.0, size - w))
            ny1 = np.float32(_uniform(stream, 0.0, size - h))
            nx2, ny2 = np.float32(nx1 + w), np.float32(ny1 + h)
            if box_iou(x1, y1, x2, y2, nx1, ny1, nx2, ny2) < parameters[4]:
                break
        else:  # the smallest box in the corner away from box 0, which two lows and a high leave room for
            nx1 = np.float32(0.0 if x1 >= size - x2 else size - low)
            ny1 = np.float32(0.0 if y1 >= size - y2 else size - low)
            nx2, ny2 = np.float32(nx1 + low), np.float32(ny1 + low)
        column = KEY_BOXES + 4 * box
        tail[column], tail[column + 1], tail[column + 2], tail[column + 3] = nx1, ny1, nx2, ny2


@jit(allocates=True)
def plan_rows(
    view_parameters, box_parameters, boxes, seed, epoch, sample_ids, heights, widths, rows
):
    """Write the plan of every sample into `rows` (N, columns) float32, without the GIL. Arguments
    as in `plan`.

    `view_parameters` and `box_parameters` are the arrays that `ViewConfig` makes of itself.
    """
    views = view_parameters.shape[0]
    stream = np.empty(1, np.uint64)
    size, min_overlap = box_parameters[0], box_parameters[1]
    for n in range(len(sample_ids)):
        row, height, width = rows[n], heights[n], widths[n]
        tail = row[views * VIEW_FLOATS :]
        tail[:DRAWS] = 0.0

        _start(stream, seed, epoch, sample_ids[n], _CROPS)
        for draw in range(1, PAIR_TRIES + 1):
            for v in range(min(views, 2)):
                p = view_parameters[v]
                y, x, h, w = _draw_crop(stream, height, width, p[0], p[1], p[2], p[3])
                row[v * VIEW_FLOATS], row[v * VIEW_FLOATS + 1] = y, x
                row[v * VIEW_FLOATS + 2], row[v * VIEW_FLOATS + 3] = h, w
            tail[DRAWS] = draw
            if min_overlap == 0.0:
                break
            x1, y1, x2, y2 = _overlap_in_key(row[:4], row[VIEW_FLOATS : VIEW_FLOATS + 4], size)
            if x2 - x1 >= min_overlap and y2 - y1 >= min_overlap:
                break
        else:
            row[VIEW_FLOATS : VIEW_FLOATS + 4] = row[:4]
            tail[DRAWS] = PAIR_TRIES + 1
        for v in range(2, views):
            p = view_parameters[v]
            y, x, h, w = _draw_crop(stream, height, width, p[0], p[1], p[2], p[3])
            row[v * VIEW_FLOATS], row[v * VIEW_FLOATS + 1] = y, x
            row[v * VIEW_FLOATS + 2], row[v * VIEW_FLOATS + 3] = h, w

        for v in range(views):
            _start(stream, seed, epoch, sample_ids[n], _COLOUR + np.uint64(v))
            _draw_colour(stream, view_parameters[v], row[v * VIEW_FLOATS :])

        if boxes > 0:
            _start(stream, seed, epoch, sample_ids[n], _BOXES)
            key = row[VIEW_FLOATS:]
            _draw_boxes(
                stream,
                boxes,
                box_parameters,
                row[:4],
                key[:4],
                row[FLIP] != 0,
                key[FLIP] != 0,
                tail,
            )

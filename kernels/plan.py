"""Plan rows: every random decision about a sample, drawn before a pixel is touched.

`plan(config, seed, epoch, sample_ids, heights, widths)` is a pure function. Its random streams are
counter-based (splitmix64) on (seed, epoch, sample_id, purpose): a sample's plan is independent of
its batch, thread, rank and loader. Crops, boxes and each view's colour have separate streams, so
changing the settings of one leaves the others unchanged.
"""

import math

import numpy as np

from .compiler.jit import inline_jit, jit
from .errors import InvalidInput
from .views import (
    BOX_PARAMETERS,
    INTERPOLATIONS,
    LIGHTING_EIGENVALUES,
    LIGHTING_EIGENVECTORS,
    POSITIONS,
    VIEW_PARAMETERS,
    VIEW_ROW,
    ViewConfig,
    column,
    plan_columns,
    plan_dtype,
)

CROP_TRIES = 10
"""Draws of one crop before the central crop is taken (torchvision's RandomResizedCrop)."""
PAIR_TRIES = 64
"""Draws of both crops before the key takes the query's crop (docs/method.md)."""
BOX_TRIES = 64
"""Draws of a box before a smallest box, which always satisfies the constraints, is taken."""

# Columns of one view in a plan row, relative to the view's first.
VIEW_FLOATS = plan_columns(VIEW_ROW)
CROP = column(VIEW_ROW, "crop")
WINDOW = column(VIEW_ROW, "window")
BICUBIC = column(VIEW_ROW, "bicubic")
FLIP = column(VIEW_ROW, "flip")
JITTER = column(VIEW_ROW, "jitter")
ORDER = column(VIEW_ROW, "order")
FACTORS = column(VIEW_ROW, "factors")
GRAY = column(VIEW_ROW, "gray")
BLUR_SIGMA = column(VIEW_ROW, "blur_sigma")
SOLARIZE = column(VIEW_ROW, "solarize")
LIGHTING = column(VIEW_ROW, "lighting")

# Columns of a plan row after the last view.
MASKED_BOX = column(plan_dtype(0, 0), "masked_box")
DRAWS = column(plan_dtype(0, 0), "draws")
KEY_BOXES = column(plan_dtype(0, 0), "key_boxes")

# Columns of a row of `ViewConfig.view_parameters`. Ranges take two columns, low and high.
_AREA = column(VIEW_PARAMETERS, "area")
_RATIO = column(VIEW_PARAMETERS, "ratio")
_STRENGTHS = column(VIEW_PARAMETERS, "jitter")
_JITTER_PROBABILITY = column(VIEW_PARAMETERS, "jitter_probability")
_GRAY_PROBABILITY = column(VIEW_PARAMETERS, "gray_probability")
_BLUR_PROBABILITY = column(VIEW_PARAMETERS, "blur_probability")
_SIGMA = column(VIEW_PARAMETERS, "blur_sigma")
_SOLARIZE_PROBABILITY = column(VIEW_PARAMETERS, "solarize_probability")
_FLIP_PROBABILITY = column(VIEW_PARAMETERS, "flip_probability")
_LIGHTING = column(VIEW_PARAMETERS, "lighting")
_INTERPOLATION = column(VIEW_PARAMETERS, "interpolation")
_SHORT_SIDE = column(VIEW_PARAMETERS, "short_side")
_POSITION = column(VIEW_PARAMETERS, "position")
_HEIGHT = column(VIEW_PARAMETERS, "size")
_WIDTH = _HEIGHT + 1
_BICUBIC_CODE = INTERPOLATIONS.index("bicubic")
_CENTRE_CODE = POSITIONS.index("centre")

# Columns of `ViewConfig.box_parameters`.
_SIZE = column(BOX_PARAMETERS, "size")
_MIN_OVERLAP = column(BOX_PARAMETERS, "min_overlap")
_BOX_SIDE = column(BOX_PARAMETERS, "box_side")
_MAX_NEGATIVE_IOU = column(BOX_PARAMETERS, "max_negative_iou")
_MAX_MASK_SHARE = column(BOX_PARAMETERS, "max_mask_share")

# Purposes of random streams. View v draws its colour from stream _COLOUR_STREAM + v.
_CROP_STREAM = np.uint64(0)
_BOX_STREAM = np.uint64(1)
_COLOUR_STREAM = np.uint64(2)
_PATCH_STREAM = np.uint64(1 << 32)

# Offsets in RGB by component: the standard deviation along it times its direction.
_LIGHTING_BASIS = np.array(LIGHTING_EIGENVECTORS) * np.array(LIGHTING_EIGENVALUES)

# splitmix64: increment, multipliers and shifts; and the spacing of 53-bit fractions.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)
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
    """Plan a batch: (N, columns) float32 rows; `rows.view(config.plan_dtype)[:, 0]` names the
    fields.

    `sample_ids` (N,) int64. `heights` and `widths` (N,) integers of at least 1, pixels of the
    image. Of `seed` and `epoch` the low 64 bits count. Raises InvalidInput where lengths differ or
    a side is below 1.
    """
    sample_ids = np.ascontiguousarray(sample_ids, np.int64)
    heights = np.ascontiguousarray(heights, np.int64)
    widths = np.ascontiguousarray(widths, np.int64)
    if not len(sample_ids) == len(heights) == len(widths):
        raise InvalidInput(
            "`sample_ids`, `heights` and `widths` must have one length, "
            f"got {len(sample_ids)}, {len(heights)} and {len(widths)}."
        )
    if len(heights) and min(heights.min(), widths.min()) < 1:
        raise InvalidInput(
            "`heights` and `widths` must be at least 1 pixel, "
            f"got {min(heights.min(), widths.min())}. The shard index excludes empty images."
        )
    rows = np.empty((len(sample_ids), plan_columns(config.plan_dtype)), np.float32)
    mask64 = (1 << 64) - 1
    plan_rows(
        config.view_parameters(),
        config.box_parameters(),
        config.boxes,
        config.patch_grid,
        config.patch_size,
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
    """splitmix64's finaliser: a bijection of uint64 that mixes all bits."""
    z = (z ^ (z >> _S30)) * _MULTIPLIER_1
    z = (z ^ (z >> _S27)) * _MULTIPLIER_2
    return z ^ (z >> _S31)


@inline_jit()
def _seed_stream(stream, seed, epoch, sample_id, purpose):
    """Set `stream` (1,) uint64 to the start of a sample's stream for one purpose."""
    stream[0] = _mix(
        _mix(_mix(_mix(seed + _GOLDEN) + epoch + _GOLDEN) + np.uint64(sample_id)) + purpose
    )


@inline_jit()
def _uniform(stream, low, high):
    """Draw a float64 in [low, high) from 53 bits of the stream."""
    stream[0] += _GOLDEN
    return low + (high - low) * (np.float64(_mix(stream[0]) >> _S11) * _ULP)


@inline_jit()
def _integer_below(stream, n):
    """Draw an integer in 0..n-1."""
    return min(int(_uniform(stream, 0.0, 1.0) * n), n - 1)


@inline_jit()
def _draw_crop(stream, height, width, area_low, area_high, ratio_low, ratio_high):
    """Draw a crop (y, x, h, w) as torchvision's RandomResizedCrop.get_params does."""
    for _ in range(CROP_TRIES):
        area = height * width * _uniform(stream, area_low, area_high)
        ratio = math.exp(_uniform(stream, math.log(ratio_low), math.log(ratio_high)))
        w = round(math.sqrt(area * ratio))
        h = round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            y = _integer_below(stream, height - h + 1)
            x = _integer_below(stream, width - w + 1)
            return y, x, h, w
    # The largest central crop whose ratio is in range.
    h, w = height, width
    if width / height < ratio_low:
        h = min(max(round(width / ratio_low), 1), height)
    elif width / height > ratio_high:
        w = min(max(round(height * ratio_high), 1), width)
    return (height - h) // 2, (width - w) // 2, h, w


@inline_jit()
def _put_span(length, resized, first, size, bicubic, view, axis):
    """Write one axis of a view of a resized image: its window, and the crop that the filter reads.

    `length`: the image's side, resized to `resized` pixels; the view shows `size` of these from
    `first` on. `axis`: 0 for y, 1 for x.
    """
    scale = length / resized
    view[WINDOW + axis] = first * scale
    view[WINDOW + 2 + axis] = size * scale
    # Pillow's bounds of the first pixel's filter, and of the last one's.
    support = max(scale, 1.0) * (2.0 if bicubic else 1.0)
    begin = max(int((first + 0.5) * scale - support + 0.5), 0)
    end = min(int((first + size - 0.5) * scale + support + 0.5), length)
    view[CROP + axis] = begin
    view[CROP + 2 + axis] = end - begin


@inline_jit()
def _put_part(stream, height, width, parameters, view):
    """Place a view in the image resized to `short_side`, as torchvision's Resize and then its
    CenterCrop or RandomCrop do."""
    short = int(parameters[_SHORT_SIDE])
    tall, wide = short, short
    if height > width:
        tall = int(short * height / width)
    else:
        wide = int(short * width / height)
    rows, across = int(parameters[_HEIGHT]), int(parameters[_WIDTH])
    if parameters[_POSITION] == _CENTRE_CODE:
        # Halves are rounded to even, as Python's `round` does.
        top, left = round((tall - rows) / 2.0), round((wide - across) / 2.0)
    else:
        top = _integer_below(stream, tall - rows + 1)
        left = _integer_below(stream, wide - across + 1)
    bicubic = parameters[_INTERPOLATION] == _BICUBIC_CODE
    _put_span(height, tall, top, rows, bicubic, view, 0)
    _put_span(width, wide, left, across, bicubic, view, 1)


@inline_jit()
def _put_crop(stream, height, width, parameters, view):
    """Draw a view's crop and window into its columns. `parameters`: the view's row of
    `view_parameters`."""
    view[BICUBIC] = parameters[_INTERPOLATION] == _BICUBIC_CODE
    if parameters[_SHORT_SIDE] > 0:
        _put_part(stream, height, width, parameters, view)
        return
    y, x, h, w = _draw_crop(
        stream,
        height,
        width,
        parameters[_AREA],
        parameters[_AREA + 1],
        parameters[_RATIO],
        parameters[_RATIO + 1],
    )
    _put_box(view, CROP, y, x, h, w)
    _put_box(view, WINDOW, y, x, h, w)


@inline_jit()
def _draw_lighting(stream, strength, view):
    """Draw AlexNet's PCA lighting: three normal factors of deviation `strength`, as RGB offsets."""
    # Box-Muller: two uniform numbers make two normal ones, so that the fourth is spare.
    u1, u2 = _uniform(stream, 0.0, 1.0), _uniform(stream, 0.0, 2.0 * math.pi)
    u3, u4 = _uniform(stream, 0.0, 1.0), _uniform(stream, 0.0, 2.0 * math.pi)
    view[LIGHTING : LIGHTING + 3] = 0.0
    if strength == 0.0:
        return
    radius = strength * math.sqrt(-2.0 * math.log(1.0 - u1))
    first, second = radius * math.cos(u2), radius * math.sin(u2)
    third = strength * math.sqrt(-2.0 * math.log(1.0 - u3)) * math.cos(u4)
    for channel in range(3):
        view[LIGHTING + channel] = (
            first * _LIGHTING_BASIS[channel, 0]
            + second * _LIGHTING_BASIS[channel, 1]
            + third * _LIGHTING_BASIS[channel, 2]
        )


@inline_jit()
def _draw_colour(stream, parameters, view):
    """Draw a view's flip, jitter, gray, blur, solarisation and lighting into its columns.

    Every number is drawn whether it is used or not, so that probabilities and strengths do not
    shift the stream. A new augmentation draws last: the draws before it keep their values.
    """
    view[FLIP] = _uniform(stream, 0.0, 1.0) < parameters[_FLIP_PROBABILITY]
    view[JITTER] = _uniform(stream, 0.0, 1.0) < parameters[_JITTER_PROBABILITY]
    # Order of the operations: Fisher-Yates from the front, entry i uniform over what is left.
    for i in range(4):
        view[ORDER + i] = i
    for i in range(3):
        j = i + _integer_below(stream, 4 - i)
        view[ORDER + i], view[ORDER + j] = view[ORDER + j], view[ORDER + i]
    # Brightness, contrast and saturation are factors, hue is a shift.
    for i in range(3):
        strength = parameters[_STRENGTHS + i]
        view[FACTORS + i] = _uniform(stream, max(0.0, 1.0 - strength), 1.0 + strength)
    hue = parameters[_STRENGTHS + 3]
    view[FACTORS + 3] = _uniform(stream, -hue, hue)
    view[GRAY] = _uniform(stream, 0.0, 1.0) < parameters[_GRAY_PROBABILITY]
    blurred = _uniform(stream, 0.0, 1.0) < parameters[_BLUR_PROBABILITY]
    sigma = _uniform(stream, parameters[_SIGMA], parameters[_SIGMA + 1])
    view[BLUR_SIGMA] = sigma if blurred else 0.0
    view[SOLARIZE] = _uniform(stream, 0.0, 1.0) < parameters[_SOLARIZE_PROBABILITY]
    _draw_lighting(stream, parameters[_LIGHTING], view)


@inline_jit()
def _overlap_in_key(query, key, size):
    """The views' intersection (x1, y1, x2, y2) in pixels of the unflipped key view.

    `query` and `key` are windows (y, x, h, w), pixels of the image. The intersection is empty where
    x2 <= x1 or y2 <= y1.
    """
    scale_y, scale_x = size / key[2], size / key[3]
    y1 = (max(query[0], key[0]) - key[0]) * scale_y
    x1 = (max(query[1], key[1]) - key[1]) * scale_x
    y2 = (min(query[0] + query[2], key[0] + key[2]) - key[0]) * scale_y
    x2 = (min(query[1] + query[3], key[1] + key[3]) - key[1]) * scale_x
    return x1, y1, x2, y2


@inline_jit()
def project_box(x1, y1, x2, y2, key, key_flip, query, query_flip, size):
    """Project a box of the key view to the query view: (x1, y1, x2, y2), both after their flips.

    `key` and `query` are windows (y, x, h, w), pixels of the image; `size` is the views' side.
    Source: docs/method.md, masked box.
    """
    if key_flip:
        x1, x2 = size - x2, size - x1
    # From key pixels to image pixels to query pixels.
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
def _put_box(row, at, first, second, third, fourth):
    """Write a box to four columns of a row."""
    row[at] = first
    row[at + 1] = second
    row[at + 2] = third
    row[at + 3] = fourth


@inline_jit()
def _draw_boxes(stream, boxes, parameters, query, key, query_flip, key_flip, tail):
    """Draw the positive box, its masked box and the negatives into `tail`, the columns after the
    views.

    `boxes`: their number, at least 1. `parameters`: `box_parameters`. `query` and `key`: windows
    (y, x, h, w). Boxes are rounded to float32 before they are tested, so that the stored numbers
    satisfy the constraints.
    """
    size, low, high = parameters[_SIZE], parameters[_BOX_SIDE], parameters[_BOX_SIDE + 1]
    left, top, right, bottom = _overlap_in_key(query, key, size)
    if key_flip:
        left, right = size - right, size - left

    # The positive: anywhere in the overlap, masking at most `max_mask_share` of the query view.
    for attempt in range(BOX_TRIES + 1):
        # The smallest box always passes: the overlap spans at least the longest side, so the query
        # crop is at least that part of the key crop on each axis.
        w = _uniform(stream, low, high) if attempt < BOX_TRIES else low
        h = _uniform(stream, low, high) if attempt < BOX_TRIES else low
        x1 = np.float32(_uniform(stream, left, right - w))
        y1 = np.float32(_uniform(stream, top, bottom - h))
        x2 = np.float32(x1 + w)
        y2 = np.float32(y1 + h)
        mx1, my1, mx2, my2 = project_box(x1, y1, x2, y2, key, key_flip, query, query_flip, size)
        if (mx2 - mx1) * (my2 - my1) <= parameters[_MAX_MASK_SHARE] * size * size:
            break
    _put_box(tail, MASKED_BOX, mx1, my1, mx2, my2)
    _put_box(tail, KEY_BOXES, x1, y1, x2, y2)

    # The negatives: anywhere in the key view, with a small IoU with the positive.
    for box in range(1, boxes):
        for _ in range(BOX_TRIES):
            w = _uniform(stream, low, high)
            h = _uniform(stream, low, high)
            nx1 = np.float32(_uniform(stream, 0.0, size - w))
            ny1 = np.float32(_uniform(stream, 0.0, size - h))
            nx2 = np.float32(nx1 + w)
            ny2 = np.float32(ny1 + h)
            if box_iou(x1, y1, x2, y2, nx1, ny1, nx2, ny2) < parameters[_MAX_NEGATIVE_IOU]:
                break
        else:
            # A smallest box in the corner away from the positive; 2 low + high <= size leaves room.
            nx1 = np.float32(0.0 if x1 >= size - x2 else size - low)
            ny1 = np.float32(0.0 if y1 >= size - y2 else size - low)
            nx2 = np.float32(nx1 + low)
            ny2 = np.float32(ny1 + low)
        _put_box(tail, KEY_BOXES + 4 * box, nx1, ny1, nx2, ny2)


@inline_jit()
def _draw_patches(stream, grid, patch, size, corners):
    """Draw a patch in every cell of view 0, row by row, as `corners` (2 · grid²,): y, x of each."""
    cell = size // grid
    for n in range(grid * grid):
        corners[2 * n] = n // grid * cell + _integer_below(stream, cell - patch + 1)
        corners[2 * n + 1] = n % grid * cell + _integer_below(stream, cell - patch + 1)


@jit(allocates=True)
def plan_rows(
    view_parameters,
    box_parameters,
    boxes,
    patch_grid,
    patch_size,
    seed,
    epoch,
    sample_ids,
    heights,
    widths,
    rows,
):
    """Write the plan of every sample into `rows` (N, columns) float32, without the GIL.

    `view_parameters` (V, columns) float64 and `box_parameters` (columns,) float64: see
    `ViewConfig`. `seed` and `epoch` uint64; `sample_ids`, `heights` and `widths` (N,) int64.
    """
    views = view_parameters.shape[0]
    stream = np.empty(1, np.uint64)
    size, min_overlap = box_parameters[_SIZE], box_parameters[_MIN_OVERLAP]
    for n in range(len(sample_ids)):
        row, height, width = rows[n], heights[n], widths[n]
        query_view, key_view = row[:VIEW_FLOATS], row[VIEW_FLOATS:]
        query, key = query_view[WINDOW : WINDOW + 4], key_view[WINDOW : WINDOW + 4]
        tail = row[views * VIEW_FLOATS :]
        _put_box(tail, MASKED_BOX, 0.0, 0.0, 0.0, 0.0)

        # Crops of query and key: drawn together until they overlap enough.
        _seed_stream(stream, seed, epoch, sample_ids[n], _CROP_STREAM)
        for draw in range(1, PAIR_TRIES + 1):
            for v in range(min(views, 2)):
                view = row[v * VIEW_FLOATS :]
                _put_crop(stream, height, width, view_parameters[v], view)
            tail[DRAWS] = draw
            if min_overlap == 0.0:
                break
            x1, y1, x2, y2 = _overlap_in_key(query, key, size)
            if x2 - x1 >= min_overlap and y2 - y1 >= min_overlap:
                break
        else:
            for i in range(4):  # assigning slices would take Numba two seconds longer to compile
                key[i] = query[i]
                key_view[CROP + i] = query_view[CROP + i]
            tail[DRAWS] = PAIR_TRIES + 1
        # Crops of further views, independent of the first two and of each other.
        for v in range(2, views):
            view = row[v * VIEW_FLOATS :]
            _put_crop(stream, height, width, view_parameters[v], view)

        for v in range(views):
            _seed_stream(stream, seed, epoch, sample_ids[n], _COLOUR_STREAM + np.uint64(v))
            _draw_colour(stream, view_parameters[v], row[v * VIEW_FLOATS :])

        if boxes > 0:
            _seed_stream(stream, seed, epoch, sample_ids[n], _BOX_STREAM)
            query_flip, key_flip = query_view[FLIP] != 0, key_view[FLIP] != 0
            _draw_boxes(stream, boxes, box_parameters, query, key, query_flip, key_flip, tail)

        if patch_grid > 0:
            _seed_stream(stream, seed, epoch, sample_ids[n], _PATCH_STREAM)
            corners = tail[KEY_BOXES + 4 * boxes :]
            _draw_patches(stream, patch_grid, patch_size, int(size), corners)

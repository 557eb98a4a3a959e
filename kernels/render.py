"""Rendering of a decoded image, by its plan row, into the views of a batch; without the GIL.

`Renderer` is the Python interface. `render_views`, `resize_views` and `augment_views` are its
kernels, for calls from compiled code. Shapes: V views, N samples, H, W the image's sides, S the
view's side, P the pitch of a planar row (S rounded up to a multiple of 32).
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .augment.numba import HALO, MAX_RADIUS, augment_view
from .augment.numba_colour import LANES
from .compiler.jit import inline_jit, jit
from .compiler.vector import load, store
from .compiler.vector_shuffle import load_interleaved, store_interleaved
from .errors import InvalidInput
from .formats import FORMAT_NAMES
from .plan import BICUBIC, CROP, FLIP, MASKED_BOX, VIEW_FLOATS, WINDOW, plan_columns
from .resize import NARROW_TAPS, STRIP, TILE, resize_view
from .resize_bicubic import BAND_STRIPS, CUBIC_TAPS, resize_bicubic
from .views import IMAGENET_MEAN, IMAGENET_STD, ViewConfig

_UINT8, _FLOAT32 = np.dtype(np.uint8), np.dtype(np.float32)


class Scratch(NamedTuple):
    """One thread's scratch memory, sized by S and, for `columns`, by the images' width W.

    Rows and columns are those of the view, S of each, unless said otherwise.
    """

    spans: np.ndarray
    """(2 · 2 · P,) int32: for the rows, then for the columns: first source pixels, then counts."""
    weights: np.ndarray
    """(2 · NARROW_TAPS · P,) uint16: for the rows, then for the columns: weights of the source
    pixels in 1/65536."""
    tile: np.ndarray
    """(STRIP · TILE,) uint16: a part of a strip of rows, resized vertically, in 1/256 level."""
    columns: np.ndarray
    """(3 W · STRIP,) uint16: the strip's tiles, transposed."""
    narrow: np.ndarray
    """(512 · TILE,) uint8: a crop narrower than a tile, its rows padded to `TILE` bytes."""
    cubic_weights: np.ndarray
    """(2 · CUBIC_TAPS · P,) int32: `weights` of a bicubic resize, in units of 2^-22."""
    band: np.ndarray
    """((1 + BAND_STRIPS) · STRIP · 3 · P,) uint8: for a bicubic resize, source rows that are
    resized horizontally, planar by row; the first strip is a margin."""
    block: np.ndarray
    """(3 · P · STRIP,) uint8: the resized strip by channel and column; 0 from column S."""
    levels: np.ndarray
    """(P · 3 · P,) uint8: the view by row, channel and column; 0 from column S."""
    pitch: int
    """P: S rounded up to a multiple of 32."""
    row: np.ndarray
    """(3 · P,) float32: the row being augmented, in whole levels."""
    ring: np.ndarray
    """((2 MAX_RADIUS + 1) · 3 · P,) uint16: the rows in a blur's window, in 1/128 level."""
    line: np.ndarray
    """(3 · (P + 2 HALO),) uint16: a row blurred vertically, its ends reflected, in 1/128 level."""
    blur: np.ndarray
    """((MAX_RADIUS + 1) · 32,) uint16: half of the blur's weights, centre first, each 32 times."""
    slots: np.ndarray
    """(2 · (MAX_RADIUS + 1),) int64: offsets in `ring` of the rows above and below the blurred one.
    """
    tail: np.ndarray
    """(12 · LANES,) uint8: the last pixels of a row, where they are fewer than one store writes."""
    normalisation: np.ndarray
    """(2, 3) float32: scale and offset of each channel, the view's lighting included."""


@inline_jit(allocates=True)
def _aligned(count, dtype):
    """`count` zeros starting at a cache line, so that no vector straddles two lines."""
    memory = np.zeros(count + 64, dtype)
    begin = -memory.ctypes.data % 64 // memory.itemsize
    return memory[begin : begin + count]


@jit(allocates=True)
def make_scratch(size, width, bicubic):
    """Allocate scratch memory for views of side `size` and images of up to `width` pixels; without
    `bicubic`, for bilinear views only. Callable from compiled code.
    """
    pitch = (size + 31) // 32 * 32
    taps, strips = (CUBIC_TAPS, 1 + BAND_STRIPS) if bicubic else (0, 0)
    return Scratch(
        _aligned(4 * pitch, np.int32),
        _aligned(2 * NARROW_TAPS * pitch, np.uint16),
        _aligned(STRIP * TILE, np.uint16),
        _aligned(max(3 * width, TILE) * STRIP, np.uint16),
        _aligned(512 * TILE, np.uint8),
        _aligned(2 * taps * pitch, np.int32),
        _aligned(strips * STRIP * 3 * pitch, np.uint8),
        _aligned(3 * pitch * STRIP, np.uint8),
        _aligned(pitch * 3 * pitch, np.uint8),
        pitch,
        _aligned(3 * pitch, np.float32),
        _aligned((2 * MAX_RADIUS + 1) * 3 * pitch, np.uint16),
        _aligned(3 * (pitch + 2 * HALO), np.uint16),
        _aligned((MAX_RADIUS + 1) * 32, np.uint16),
        _aligned(2 * (MAX_RADIUS + 1), np.int64),
        _aligned(3 * LANES * 4, np.uint8),
        np.zeros((2, 3), np.float32),
    )


@inline_jit()
def _resize_planned(image, origin_y, origin_x, row, v, size, scratch):
    """Resize view `v` of a plan row into `scratch.levels`; arguments as for `render_views`."""
    view = row[v * VIEW_FLOATS :]
    y, x = int(view[CROP]) - origin_y, int(view[CROP + 1]) - origin_x
    axes = (
        np.float64(view[WINDOW]) - view[CROP],
        np.float64(view[WINDOW + 2]),
        np.float64(view[WINDOW + 1]) - view[CROP + 1],
        np.float64(view[WINDOW + 3]),
    )
    height, width, flip = int(view[CROP + 2]), int(view[CROP + 3]), view[FLIP] != 0
    if view[BICUBIC] != 0:
        resize_bicubic(image, y, x, height, width, axes, flip, size, scratch)
    else:
        resize_view(image, y, x, height, width, axes, flip, size, scratch)


@inline_jit()
def _masked_pixels(row, views, v, size, mask):
    """The pixels to zero, (x1, y1, x2, y2): those that the masked box touches, in view 0 only."""
    if not mask or v != 0:
        return 0, 0, 0, 0
    box = row[views * VIEW_FLOATS + MASKED_BOX :]
    x1, y1 = max(int(np.floor(box[0])), 0), max(int(np.floor(box[1])), 0)
    return (
        x1,
        y1,
        max(min(int(np.ceil(box[2])), size), x1),
        max(min(int(np.ceil(box[3])), size), y1),
    )


@jit()
def render_views(
    image, origin_y, origin_x, row, views, mask, form, normalisation, scratch, out, position
):
    """Resize and augment all views of one image into `out[:, position]`.

    `image` (h, w, 3) uint8, C-contiguous: the region of the image that starts at (origin_y,
    origin_x) and contains all crops. `row` (columns,) float32: the sample's plan row of `views`
    views. `mask`: zero the masked box in view 0. `form`: the code of an output format.
    `normalisation` (2, 3) float32: scale and offset of each channel, from levels. `out`
    (V, N, S, S, 3), C-contiguous: float32, uint16 (bits of float16 or bfloat16) or uint8 (levels,
    neither normalised nor masked). Checks nothing.
    """
    size, flat = out.shape[2], out.reshape(-1)
    for v in range(views):
        start = (v * out.shape[1] + position) * size * size * 3
        _resize_planned(image, origin_y, origin_x, row, v, size, scratch)
        masked = _masked_pixels(row, views, v, size, mask)
        augment_view(
            row[v * VIEW_FLOATS :], size, form, normalisation, masked, scratch, flat, start
        )


@jit()
def resize_views(image, origin_y, origin_x, row, views, scratch, out, position):
    """Crop, resize and flip all views of one image into `out[:, position]`, `out` (V, N, S, S, 3)
    uint8. The other arguments as for `render_views`.
    """
    size, flat = out.shape[2], out.reshape(-1)
    levels, pitch = scratch.levels, scratch.pitch
    for v in range(views):
        start = (v * out.shape[1] + position) * size * size * 3
        _resize_planned(image, origin_y, origin_x, row, v, size, scratch)
        for y in range(size):
            _interleave_row(levels, 3 * y * pitch, pitch, size, flat, start + 3 * y * size)


@inline_jit()
def _interleave_row(levels, at, pitch, size, out, start):
    """Interleave a planar row: `levels` from `at`, channels `pitch` apart, to (S, 3) in the flat
    `out` from `start`. All uint8."""
    whole = size // 32 * 32
    for x in range(0, whole, 32):
        red, green = load(levels, at + x, 32), load(levels, at + pitch + x, 32)
        store_interleaved(out, start + 3 * x, red, green, load(levels, at + 2 * pitch + x, 32))
    for x in range(whole, size):
        for channel in range(3):
            out[start + 3 * x + channel] = levels[at + channel * pitch + x]


@inline_jit()
def _deinterleave_row(source, start, size, levels, at, pitch):
    """Inverse of `_interleave_row`: (S, 3) in the flat `source` from `start` to planar `levels`."""
    whole = size // 32 * 32
    for x in range(0, whole, 32):
        red, green, blue = load_interleaved(source, start + 3 * x, 32)
        store(levels, at + x, red)
        store(levels, at + pitch + x, green)
        store(levels, at + 2 * pitch + x, blue)
    for x in range(whole, size):
        for channel in range(3):
            levels[at + channel * pitch + x] = source[start + 3 * x + channel]


@jit()
def augment_views(resized, row, views, mask, form, normalisation, scratch, out, position):
    """Augment `resized[:, position]`, the output of `resize_views`, into `out[:, position]`.

    `resized` (V, N, S, S, 3) uint8, C-contiguous. The other arguments as for `render_views`.
    """
    size, source, flat = out.shape[2], resized.reshape(-1), out.reshape(-1)
    levels, pitch = scratch.levels, scratch.pitch
    for v in range(views):
        start = (v * out.shape[1] + position) * size * size * 3
        for y in range(size):
            _deinterleave_row(source, start + 3 * y * size, size, levels, 3 * y * pitch, pitch)
        masked = _masked_pixels(row, views, v, size, mask)
        augment_view(
            row[v * VIEW_FLOATS :], size, form, normalisation, masked, scratch, flat, start
        )


class Renderer:
    """Renders samples of one configuration into batches. Not thread-safe: create one per thread.

    The first call with a dtype compiles its kernel (seconds) or loads it from the cache
    (milliseconds).
    """

    def __init__(
        self,
        config: ViewConfig,
        dtype: str = "float32",
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        """`dtype`: a name in `FORMAT_NAMES`. `mean` and `std`: of each channel, for levels scaled
        to 0..1; `std` positive. Raises InvalidInput otherwise."""
        if dtype not in FORMAT_NAMES:
            raise InvalidInput(f"`dtype` must be one of {', '.join(FORMAT_NAMES)}, got {dtype!r}.")
        self.dtype = dtype
        self.config = config
        self._form = FORMAT_NAMES[dtype].code
        self._views = len(config.views)
        self._mask = config.mask and FORMAT_NAMES[dtype].normalised
        std64 = np.asarray(std, np.float64)
        if std64.min() <= 0:
            raise InvalidInput(f"`std` must be positive, got {tuple(std)}.")
        self._normalisation = np.array(
            [1 / (255 * std64), -np.asarray(mean, np.float64) / std64], np.float32
        )
        self._columns = plan_columns(config.plan_dtype)
        self._width = 512
        self._bicubic = config.bicubic
        self._scratch = make_scratch(config.size, self._width, self._bicubic)

    @functools.cached_property
    def buffer_dtype(self) -> np.dtype:
        """NumPy dtype of the arrays that `render` writes; float16 and bfloat16 are uint16."""
        return np.dtype(FORMAT_NAMES[self.dtype].storage)

    def render(
        self,
        image: np.ndarray,
        origin_y: int,
        origin_x: int,
        row: np.ndarray,
        out: np.ndarray,
        position: int,
    ) -> None:
        """Resize and augment one image's views into `out[:, position]`.

        `image` (h, w, 3) uint8, C-contiguous: a region of the decoded image that starts at
        (origin_y, origin_x) and contains all crops. `row` (columns,) float32: its plan row. `out`
        (V, N, S, S, 3) `buffer_dtype`, C-contiguous. Raises InvalidInput, before writing, where a
        shape, dtype or crop does not fit.
        """
        self._check(image, origin_y, origin_x, row, out, position, self.buffer_dtype)
        render_views(
            image,
            origin_y,
            origin_x,
            row,
            self._views,
            self._mask,
            self._form,
            self._normalisation,
            self._scratch,
            out,
            position,
        )

    def resize(
        self,
        image: np.ndarray,
        origin_y: int,
        origin_x: int,
        row: np.ndarray,
        out: np.ndarray,
        position: int,
    ) -> None:
        """Crop, resize and flip only: `render` up to the seam, `out` (V, N, S, S, 3) uint8."""
        self._check(image, origin_y, origin_x, row, out, position, _UINT8)
        resize_views(image, origin_y, origin_x, row, self._views, self._scratch, out, position)

    def augment(self, resized: np.ndarray, row: np.ndarray, out: np.ndarray, position: int) -> None:
        """Augment only: `render` from the seam, `resized[:, position]` to `out[:, position]`.

        `resized` (V, N, S, S, 3) uint8, C-contiguous, as `resize` writes it.
        """
        self._check_out(resized, row, position, _UINT8)
        self._check_out(out, row, position, self.buffer_dtype)
        augment_views(
            resized,
            row,
            self._views,
            self._mask,
            self._form,
            self._normalisation,
            self._scratch,
            out,
            position,
        )

    def _check(
        self,
        image: Any,
        origin_y: int,
        origin_x: int,
        row: Any,
        out: Any,
        position: int,
        dtype: Any,
    ) -> None:
        """Check the arguments, since the kernels do not, and grow the scratch memory if needed."""
        if (
            image.dtype != _UINT8
            or image.ndim != 3
            or image.shape[2] != 3
            or not image.flags.c_contiguous
        ):
            raise InvalidInput(
                "`image` must be C-contiguous uint8 (h, w, 3), "
                f"got {image.dtype} {image.shape} with strides {image.strides}."
            )
        self._check_out(out, row, position, dtype)
        height, width = image.shape[:2]
        columns = row[: self._views * VIEW_FLOATS].tolist()
        for v in range(self._views):
            y, x, h, w = columns[v * VIEW_FLOATS + CROP : v * VIEW_FLOATS + CROP + 4]
            inside_y = origin_y <= y and y + h <= origin_y + height
            if not (inside_y and origin_x <= x and x + w <= origin_x + width and h >= 1 and w >= 1):
                raise InvalidInput(
                    f"view {v}'s crop must lie in the decoded region (y, x, h, w) = "
                    f"{(origin_y, origin_x, height, width)}, got {(y, x, h, w)}."
                )
        self._make_room(width)

    def _make_room(self, width: int) -> None:
        """Grow the scratch memory to images of this width."""
        if width > self._width:
            self._width = 1 << (width - 1).bit_length()
            self._scratch = make_scratch(self.config.size, self._width, self._bicubic)

    def _check_out(self, out: Any, row: Any, position: int, dtype: Any) -> None:
        """Check a buffer, its dtype, the position in it, and the plan row."""
        size = self.config.size
        if out.dtype != dtype or not out.flags.c_contiguous:
            raise InvalidInput(
                f"the buffer must be C-contiguous {dtype}, "
                f"got {out.dtype} with strides {out.strides}."
            )
        if out.ndim != 5 or out.shape[0] != self._views or out.shape[2:] != (size, size, 3):
            raise InvalidInput(
                f"the buffer must have shape ({self._views}, N, {size}, {size}, 3), "
                f"got {out.shape}."
            )
        if not 0 <= position < out.shape[1]:
            raise InvalidInput(
                f"`position` must be in 0..{out.shape[1] - 1}, the samples of the buffer, "
                f"got {position}."
            )
        if row.dtype != _FLOAT32 or row.shape != (self._columns,):
            raise InvalidInput(
                f"the plan row must be float32 ({self._columns},), got {row.dtype} {row.shape}."
            )

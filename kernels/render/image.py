"""Rendering of a decoded image, by its plan row, into the views of a batch; without the GIL.

`Renderer` is the Python interface. `render_views`, `resize_views` and `augment_views` are its
kernels, for calls from compiled code. Shapes: V views, N samples, H, W the image's sides, S, S' the
view's height and width, P the pitch of a planar row (the longer of these rounded up to a multiple
of 32). A batch's memory is flat, laid out as `layout.ViewLayout` says.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..augment.numba import HALO, MAX_RADIUS, augment_view
from ..augment.numba_colour import LANES, TABLE_ROOM
from ..compiler.jit import inline_jit, jit
from ..compiler.vector import load, store
from ..compiler.vector_interleave import load_interleaved, store_interleaved
from ..errors import InvalidInput
from ..formats import FORMAT_NAMES
from ..plan import BICUBIC, CROP, FLIP, MASKED_BOX, VIEW_FLOATS, WINDOW, plan_columns
from ..views import ViewConfig
from .resize import NARROW_TAPS, STRIP, TILE, resize_view, row_pitch
from .resize_bicubic import BAND_STRIPS, CUBIC_TAPS, resize_bicubic

_UINT8, _FLOAT32 = np.dtype(np.uint8), np.dtype(np.float32)


class Scratch(NamedTuple):
    """One thread's scratch memory, sized by P, here that of the largest view, and, for `columns`,
    by the images' width W.

    Rows and columns are those of the view, S and S' of them, unless said otherwise.
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
    """(3 · P · STRIP,) uint8: the resized strip by channel and column."""
    levels: np.ndarray
    """(P · 3 · P + TABLE_ROOM,) uint8: the view by row, channel and column; 0 from column S'."""
    table: np.ndarray
    """(256,) uint8: what operations of the colour jitter make of a level."""
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
def make_scratch(side, width, bicubic):
    """Allocate scratch memory for views of up to `side` pixels a side and images of up to `width`
    pixels; without `bicubic`, for bilinear views only. Callable from compiled code.
    """
    pitch = row_pitch((side, side))
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
        _aligned(pitch * 3 * pitch + TABLE_ROOM, np.uint8),
        _aligned(256, np.uint8),
        _aligned(3 * pitch, np.float32),
        _aligned((2 * MAX_RADIUS + 1) * 3 * pitch, np.uint16),
        _aligned(3 * (pitch + 2 * HALO), np.uint16),
        _aligned((MAX_RADIUS + 1) * 32, np.uint16),
        _aligned(2 * (MAX_RADIUS + 1), np.int64),
        _aligned(3 * LANES * 4, np.uint8),
        np.zeros((2, 3), np.float32),
    )


@inline_jit()
def _clear_margin(levels, size):
    """Zero the columns of planar levels from S' to P - 1. `size`: S and S'."""
    pitch, (height, width) = row_pitch(size), size
    if width < pitch:
        for line in range(3 * height):
            levels[line * pitch + width : (line + 1) * pitch] = 0


@inline_jit()
def _resize_planned(image, origin_y, origin_x, row, v, size, scratch):
    """Resize view `v` of a plan row into `scratch.levels`; `size`: S and S'. The other arguments as
    for `render_views`."""
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
    _clear_margin(scratch.levels, size)


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
        max(min(int(np.ceil(box[2])), size[1]), x1),
        max(min(int(np.ceil(box[3])), size[0]), y1),
    )


@inline_jit()
def _place(places, v, position):
    """(first element, (S, S')) of view `v` of sample `position`."""
    height, width = places[v, 1], places[v, 2]
    return places[v, 0] + position * height * width * 3, (height, width)


@jit()
def render_views(
    image, origin_y, origin_x, row, places, mask, form, normalisation, scratch, out, position
):
    """Resize and augment all views of one image into their places of sample `position` in `out`.

    `image` (h, w, 3) uint8, C-contiguous: the region of the image that starts at (origin_y,
    origin_x) and contains all crops. `row` (columns,) float32: the sample's plan row. `places`
    (V, 3) int64: of `ViewLayout.places`. `mask`: zero the masked box in view 0. `form`: the code of
    an output format. `normalisation` (V, 2, 3) float32: each view's scale and offset of each
    channel, from levels. `out`, a batch's memory: float32, uint16 (bits of float16 or bfloat16) or
    uint8 (levels, neither normalised nor masked). Checks nothing.
    """
    views = len(places)
    for v in range(views):
        start, size = _place(places, v, position)
        _resize_planned(image, origin_y, origin_x, row, v, size, scratch)
        masked = _masked_pixels(row, views, v, size, mask)
        augment_view(
            row[v * VIEW_FLOATS :], size, form, normalisation[v], masked, scratch, out, start
        )


@jit()
def resize_views(image, origin_y, origin_x, row, places, scratch, out, position):
    """Crop, resize and flip all views of one image into their places in `out`, uint8. The arguments
    as for `render_views`.
    """
    levels = scratch.levels
    for v in range(len(places)):
        start, size = _place(places, v, position)
        pitch, (height, width) = row_pitch(size), size
        _resize_planned(image, origin_y, origin_x, row, v, size, scratch)
        for y in range(height):
            _interleave_row(levels, 3 * y * pitch, pitch, width, out, start + 3 * y * width)


@inline_jit()
def _interleave_row(levels, at, pitch, size, out, start):
    """Interleave a planar row of `size` pixels: `levels` from `at`, channels `pitch` apart, to
    (S', 3) in the flat `out` from `start`. All uint8."""
    whole = size // 32 * 32
    for x in range(0, whole, 32):
        red, green = load(levels, at + x, 32), load(levels, at + pitch + x, 32)
        store_interleaved(out, start + 3 * x, red, green, load(levels, at + 2 * pitch + x, 32))
    for x in range(whole, size):
        for channel in range(3):
            out[start + 3 * x + channel] = levels[at + channel * pitch + x]


@inline_jit()
def _deinterleave_row(source, start, size, levels, at, pitch):
    """Inverse of `_interleave_row`: (S', 3) in the flat `source` from `start` to planar levels."""
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
def augment_views(resized, row, places, mask, form, normalisation, scratch, out, position):
    """Augment the views of sample `position` from `resized` to `out`.

    `resized`, uint8: the output of `resize_views`, laid out as `out` is. The other arguments as for
    `render_views`.
    """
    views, levels = len(places), scratch.levels
    for v in range(views):
        start, size = _place(places, v, position)
        pitch, (height, width) = row_pitch(size), size
        for y in range(height):
            _deinterleave_row(resized, start + 3 * y * width, width, levels, 3 * y * pitch, pitch)
        _clear_margin(levels, size)
        masked = _masked_pixels(row, views, v, size, mask)
        augment_view(
            row[v * VIEW_FLOATS :], size, form, normalisation[v], masked, scratch, out, start
        )


def normalisation(mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """(2, 3) float32: scale and offset of each channel, from levels 0..255 to normalised values.

    `mean` and `std`: of levels scaled to 0..1.
    """
    deviation = np.asarray(std, np.float64)
    return np.array([1 / (255 * deviation), -np.asarray(mean, np.float64) / deviation], np.float32)


class Renderer:
    """Renders samples of one configuration into batches. Not thread-safe: create one per thread.

    The first call with a dtype compiles its kernel (seconds) or loads it from the cache
    (milliseconds).
    """

    def __init__(
        self,
        config: ViewConfig,
        dtype: str = "float32",
    ) -> None:
        """`dtype`: a name in `FORMAT_NAMES`; InvalidInput otherwise."""
        if dtype not in FORMAT_NAMES:
            raise InvalidInput(f"`dtype` must be one of {', '.join(FORMAT_NAMES)}, got {dtype!r}.")
        self.dtype = dtype
        self.config = config
        self._form = FORMAT_NAMES[dtype].code
        self._layout = config.layout
        self._places = self._layout.places(1)
        self._samples = 1
        self._mask = config.mask and FORMAT_NAMES[dtype].normalised
        self._normalisation = np.stack(
            [normalisation(view.mean, view.std) for view in config.views]
        )
        self._columns = plan_columns(config.plan_dtype)
        self._width = 512
        self._bicubic = config.bicubic
        self._scratch = make_scratch(self._layout.side, self._width, self._bicubic)

    @functools.cached_property
    def buffer_dtype(self) -> np.dtype:
        """NumPy dtype of the arrays that `render` writes; float16 and bfloat16 are uint16."""
        return np.dtype(FORMAT_NAMES[self.dtype].storage)

    @property
    def _rendering(self) -> tuple[Any, Any, Any, Any, Any]:
        """Arguments of `render_views` and `augment_views` from `places` to `scratch`. They change
        where the scratch memory grows and with the number of samples in a buffer."""
        return self._places, self._mask, self._form, self._normalisation, self._scratch

    @property
    def _resizing(self) -> tuple[Any, Any]:
        """Arguments of `resize_views` from `places` to `scratch`, likewise."""
        return self._places, self._scratch

    def render(
        self,
        image: np.ndarray,
        origin_y: int,
        origin_x: int,
        row: np.ndarray,
        out: np.ndarray,
        position: int,
    ) -> None:
        """Resize and augment one image's views into their places of sample `position` in `out`.

        `image` (h, w, 3) uint8, C-contiguous: a region of the decoded image that starts at
        (origin_y, origin_x) and contains all crops. `row` (columns,) float32: its plan row. `out`
        `buffer_dtype`, C-contiguous: a batch's flat memory (`ViewConfig.layout`), or an array
        (V, N, S, S', 3) where the views are of one size. Raises InvalidInput, before writing, where
        a shape, dtype or crop does not fit.
        """
        self._check(image, origin_y, origin_x, row, out, position, self.buffer_dtype)
        render_views(
            image,
            origin_y,
            origin_x,
            row,
            *self._rendering,
            out.reshape(-1),
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
        """Crop, resize and flip only: `render` up to the seam, `out` uint8."""
        self._check(image, origin_y, origin_x, row, out, position, _UINT8)
        resize_views(image, origin_y, origin_x, row, *self._resizing, out.reshape(-1), position)

    def augment(self, resized: np.ndarray, row: np.ndarray, out: np.ndarray, position: int) -> None:
        """Augment only: `render` from the seam, from `resized`, as `resize` writes it, to `out`, of
        as many samples."""
        self._check_out(resized, row, position, _UINT8)
        self._check_out(out, row, position, self.buffer_dtype)
        if resized.size != out.size:
            raise InvalidInput(
                f"`resized` must have the {out.size} elements of `out`, got {resized.size}."
            )
        augment_views(
            resized.reshape(-1),
            row,
            *self._rendering,
            out.reshape(-1),
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
        views = len(self._places)
        columns = row[: views * VIEW_FLOATS].tolist()
        for v in range(views):
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
            self._scratch = make_scratch(self._layout.side, self._width, self._bicubic)

    def _check_out(self, out: Any, row: Any, position: int, dtype: Any) -> None:
        """Check a buffer, its dtype, the position in it, and the plan row; find the places."""
        if out.dtype != dtype or not out.flags.c_contiguous:
            raise InvalidInput(
                f"the buffer must be C-contiguous {dtype}, "
                f"got {out.dtype} with strides {out.strides}."
            )
        stacked, elements = self._layout.stacked, self._layout.elements
        samples, rest = divmod(out.size, elements)
        if stacked is not None and out.ndim > 1:
            views, height, width = stacked
            if out.shape != (views, samples, height, width, 3):
                raise InvalidInput(
                    f"the buffer must have shape ({views}, N, {height}, {width}, 3), "
                    f"got {out.shape}."
                )
        elif out.ndim != 1 or rest:
            raise InvalidInput(
                f"the buffer must be flat, with {elements} elements a sample, got {out.shape}."
            )
        if not 0 <= position < samples:
            raise InvalidInput(
                f"`position` must be in 0..{samples - 1}, the samples of the buffer, "
                f"got {position}."
            )
        if samples != self._samples:
            self._samples, self._places = samples, self._layout.places(samples)
        if row.dtype != _FLOAT32 or row.shape != (self._columns,):
            raise InvalidInput(
                f"the plan row must be float32 ({self._columns},), got {row.dtype} {row.shape}."
            )

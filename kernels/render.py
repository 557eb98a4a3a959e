"""From a decoded image and its plan row to the finished views in a batch: one call an image,
without the GIL.

`Renderer` is what loaders use; `render_views`, `resize_views` and `augment_views` are the kernels
beneath, which other compiled code may call. Shapes: V views, N samples, S the view's side.
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
from .plan import CROP, FLIP, MASKED_BOX, VIEW_FLOATS
from .resize import NARROW_TAPS, STRIP, TILE, resize_view
from .views import IMAGENET_MEAN, IMAGENET_STD, ViewConfig

_UINT8, _FLOAT32 = np.dtype(np.uint8), np.dtype(np.float32)


class Scratch(NamedTuple):
    """One thread's working memory; only `columns` depends on the images, by their width W."""

    spans: np.ndarray
    """(2 · 2 · P,) int32, of the output rows, then columns: first source pixels, numbers of them.
    P: see `pitch`."""
    weights: np.ndarray
    """(2 · NARROW_TAPS · P,) uint16, likewise: the weights of the source pixels in 1/65536."""
    tile: np.ndarray
    """(STRIP · TILE,) uint16: a part of a strip of output rows, resized vertically, in 1/256 level.
    """
    columns: np.ndarray
    """(3 W · STRIP,) uint16: such parts transposed."""
    narrow: np.ndarray
    """(512 · TILE,) uint8: a crop that is narrower than a tile, its rows made as wide as one."""
    block: np.ndarray
    """(3 · P · STRIP,) uint8: the strip when resized, its columns in a row; 0 from column S on."""
    levels: np.ndarray
    """(P · 3 · P,) uint8: the view, planar by row; 0 from column S on."""
    pitch: int
    """P: S rounded up to a multiple of 32."""
    row: np.ndarray
    """(3 · P,) float32: the row at hand, in whole levels."""
    ring: np.ndarray
    """((2 MAX_RADIUS + 1) · 3 · P,) uint16: the rows that a blur's window spans, in 1/128 level."""
    line: np.ndarray
    """(3 · (P + 2 HALO),) uint16: a row blurred vertically, with its reflected ends, in 1/128
    level."""
    blur: np.ndarray
    """((MAX_RADIUS + 1) · 32,) uint16: half of the blur's taps, centre first, each 32 times."""
    slots: np.ndarray
    """(2 · (MAX_RADIUS + 1),) int64: where the rows above and below the one being blurred lie in
    `ring`."""
    tail: np.ndarray
    """(12 LANES,) uint8: the last pixels of a row, where they are fewer than the kernels write at
    once."""


@inline_jit(allocates=True)
def _aligned(count, dtype):
    """`count` zeros that begin at a cache line, so that no vector straddles two."""
    memory = np.zeros(count + 64, dtype)
    begin = -memory.ctypes.data % 64 // memory.itemsize
    return memory[begin : begin + count]


@jit(allocates=True)
def make_scratch(size, width):
    """Working memory for views of `size` pixels, images of up to `width` pixels; compiled code may
    call it too."""
    pitch = (size + 31) // 32 * 32
    return Scratch(
        _aligned(4 * pitch, np.int32),
        _aligned(2 * NARROW_TAPS * pitch, np.uint16),
        _aligned(STRIP * TILE, np.uint16),
        _aligned(max(3 * width, TILE) * STRIP, np.uint16),
        _aligned(512 * TILE, np.uint8),
        _aligned(3 * pitch * STRIP, np.uint8),
        _aligned(pitch * 3 * pitch, np.uint8),
        pitch,
        _aligned(3 * pitch, np.float32),
        _aligned((2 * MAX_RADIUS + 1) * 3 * pitch, np.uint16),
        _aligned(3 * (pitch + 2 * HALO), np.uint16),
        _aligned((MAX_RADIUS + 1) * 32, np.uint16),
        _aligned(2 * (MAX_RADIUS + 1), np.int64),
        _aligned(3 * LANES * 4, np.uint8),
    )


@inline_jit()
def _resize_planned(image, origin_y, origin_x, row, v, size, scratch):
    view = row[v * VIEW_FLOATS :]
    y, x = int(view[CROP]) - origin_y, int(view[CROP + 1]) - origin_x
    resize_view(
        image, y, x, int(view[CROP + 2]), int(view[CROP + 3]), view[FLIP] != 0, size, scratch
    )


@inline_jit()
def _masked_pixels(row, views, v, size, mask):
    """(x1, y1, x2, y2) of the pixels to zero: those that the masked box touches, in the query view
    alone."""
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
    """Render all views of one image into `out[:, position]`.

    `image` (h, w, 3) uint8, C-contiguous: the region of the image whose top left pixel is
    (origin_y, origin_x), which holds all crops of `row`, the sample's flat plan row of `views`
    views. `mask`: zero the masked box in view 0. `form` a code of `formats`; `normalisation` (2, 3)
    float32, scale and offset from levels. `out` (V, N, S, S, 3) float32, uint16 (the bits of
    halves) or uint8 (levels: neither normalised nor masked).
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
    """Crop, resize and flip all views of one image into `out[:, position]`, (V, N, S, S, 3) uint8."""
    size, flat = out.shape[2], out.reshape(-1)
    levels, pitch = scratch.levels, scratch.pitch
    for v in range(views):
        start = (v * out.shape[1] + position) * size * size * 3
        _resize_planned(image, origin_y, origin_x, row, v, size, scratch)
        for y in range(size):
            _interleave_row(levels, 3 * y * pitch, pitch, size, flat, start + 3 * y * size)


@inline_jit()
def _interleave_row(levels, at, pitch, size, out, start):
    """The row of the levels from `at` on to the flat `out` from `start` on."""
    whole = size // 32 * 32
    for x in range(0, whole, 32):
        red, green = load(levels, at + x, 32), load(levels, at + pitch + x, 32)
        store_interleaved(out, start + 3 * x, red, green, load(levels, at + 2 * pitch + x, 32))
    for x in range(whole, size):
        for channel in range(3):
            out[start + 3 * x + channel] = levels[at + channel * pitch + x]


@inline_jit()
def _deinterleave_row(source, start, size, levels, at, pitch):
    """The row of the levels from `at` on, from the flat `source` from `start` on."""
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
    """Augment what `resize_views` made, `resized[:, position]`, into `out[:, position]`; see
    `render_views`."""
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
    """Renders samples of one configuration into batches, with working memory of its own: make one a
    thread.

    The kernel for each dtype is compiled (seconds) or loaded from the cache (milliseconds) when
    first called.
    """

    def __init__(
        self,
        config: ViewConfig,
        dtype: str = "float32",
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        """`dtype` a name in `FORMAT_NAMES` (ValueError otherwise); `mean` and `std` of each
        channel, of levels in 0..1."""
        if dtype not in FORMAT_NAMES:
            raise InvalidInput(
                f"dtype is {dtype!r}; views are rendered to one of {', '.join(FORMAT_NAMES)}"
            )
        self.dtype = dtype
        self.config = config
        self._form = FORMAT_NAMES[dtype].code
        self._views = len(config.views)
        self._mask = config.mask and dtype != "uint8"
        std64 = np.asarray(std, np.float64)
        if std64.min() <= 0:
            raise InvalidInput(f"std is {tuple(std)}; it wants to be positive")
        self._normalisation = np.array(
            [1 / (255 * std64), -np.asarray(mean, np.float64) / std64], np.float32
        )
        self._columns = config.plan_dtype.itemsize // 4
        self._width = 512
        self._scratch = make_scratch(config.size, self._width)

    @functools.cached_property
    def buffer_dtype(self) -> np.dtype:
        """Dtype of the arrays that `render` writes: halves are written as their bits, into uint16."""
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
        """Render one image's views into `out[:, position]`.

        `image` (h, w, 3) uint8: a region of the decoded image that holds all crops, its top left
        pixel at (origin_y, origin_x); `row` (columns,) float32, its plan; `out` (V, N, S, S, 3)
        `buffer_dtype`, C-contiguous. ValueError where a shape or a crop does not fit, before
        anything is written.
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
        """The seam: crop, resize and flip only, into `out[:, position]`, (V, N, S, S, 3) uint8."""
        self._check(image, origin_y, origin_x, row, out, position, _UINT8)
        resize_views(image, origin_y, origin_x, row, self._views, self._scratch, out, position)

    def augment(self, resized: np.ndarray, row: np.ndarray, out: np.ndarray, position: int) -> None:
        """From the seam on: `resized[:, position]`, (V, N, S, S, 3) uint8, into `out[:, position]`
        as `render` does."""
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
        """Hold the arguments to what the kernels, which check nothing, rely on; grow the working
        memory if need be."""
        if (
            image.dtype != _UINT8
            or image.ndim != 3
            or image.shape[2] != 3
            or not image.flags.c_contiguous
        ):
            raise InvalidInput(
                f"image is {image.dtype} {image.shape}; it wants to be contiguous uint8 (h, w, 3)"
            )
        self._check_out(out, row, position, dtype)
        height, width = image.shape[:2]
        columns = row[: self._views * VIEW_FLOATS].tolist()
        for v in range(self._views):
            y, x, h, w = columns[v * VIEW_FLOATS + CROP : v * VIEW_FLOATS + CROP + 4]
            inside_y = origin_y <= y and y + h <= origin_y + height
            if not (inside_y and origin_x <= x and x + w <= origin_x + width and h >= 1 and w >= 1):
                raise InvalidInput(
                    f"view {v}'s crop (y, x, h, w) = {(y, x, h, w)} does not lie in the decoded region "
                    f"{(origin_y, origin_x, height, width)}"
                )
        self._make_room(width)

    def _make_room(self, width: int) -> None:
        """Working memory for images of this width."""
        if width > self._width:
            self._width = 1 << (width - 1).bit_length()
            self._scratch = make_scratch(self.config.size, self._width)

    def _check_out(self, out: Any, row: Any, position: int, dtype: Any) -> None:
        size = self.config.size
        if out.dtype != dtype or not out.flags.c_contiguous:
            raise InvalidInput(f"the buffer is {out.dtype}; it wants to be contiguous {dtype}")
        if out.ndim != 5 or out.shape[0] != self._views or out.shape[2:] != (size, size, 3):
            raise InvalidInput(
                f"the buffer is {out.shape}; it wants to be {(self._views, 'N', size, size, 3)}"
            )
        if not 0 <= position < out.shape[1]:
            raise InvalidInput(
                f"position {position} lies outside the buffer's {out.shape[1]} samples"
            )
        if row.dtype != _FLOAT32 or row.shape != (self._columns,):
            raise InvalidInput(
                f"the plan row is {row.dtype} {row.shape}; it wants to be float32 {(self._columns,)}"
            )

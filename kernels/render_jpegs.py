"""Rendering of JPEG files, by their plan rows, into the views of a batch: several images a call,
without the GIL.

`jpeg.decode_region` decodes the part of an image that its crops need, into memory that stays in the
CPU's cache, and `render_views` reads it there. Images that this decoder does not take are skipped;
the caller decodes them with a library and renders them with `Renderer`.
"""

from collections.abc import Sequence

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from .compiler.jit import inlined, jit
from .errors import InvalidInput
from .jpeg.decode import DECODED, decode_region, make_jpeg_scratch
from .jpeg.pixels import LANES
from .plan import CROP, VIEW_FLOATS
from .render import Renderer, render_views, resize_views

# Larger images are skipped and take the slow path; this bounds each thread's scratch memory.
MAX_FILE = 32 << 20
"""Largest file, bytes."""
MAX_PIXELS = 22 << 20
"""Largest image, pixels."""
MAX_WIDTH = 1 << 16
"""Largest width, pixels."""

_decode_region = inlined(decode_region)


@intrinsic
def _bytes_at(typing_context, address, size):
    """A (size,) uint8 array of the bytes at an address. Borrowed: the caller keeps them alive."""
    array = types.Array(types.uint8, 1, "C", readonly=True)

    def generate(context, builder, signature, arguments):
        made = context.make_array(array)(context, builder)
        populate_array(
            made,
            data=builder.inttoptr(arguments[0], ir.IntType(8).as_pointer()),
            shape=[arguments[1]],
            strides=[context.get_constant(types.intp, 1)],
            itemsize=context.get_constant(types.intp, 1),
            meminfo=None,
        )
        return made._getvalue()

    return array(types.intp, types.intp), generate


@jit()
def decode_crops(file, height, width, row, views, scratch, pixels):
    """Decode the region of a JPEG that its crops need: (decoded, y, x, rows, columns).

    Writes the region, (rows, columns, 3) uint8, to the start of `pixels`; `y`, `x` is its origin.
    `decoded` is False where the crops exceed the image, the region exceeds `pixels`, or the decoder
    does not take the file. `file` (2,) int64: address and length. `height`, `width`: the image's
    sides. `row` (columns,) float32: the plan row. The other arguments as for `render_jpegs`.
    """
    # The smallest region that contains every view's crop.
    y, x, bottom, right = np.int64(height), np.int64(width), np.int64(0), np.int64(0)
    for v in range(views):
        crop = row[v * VIEW_FLOATS + CROP :]
        y, x = min(y, int(crop[0])), min(x, int(crop[1]))
        bottom, right = max(bottom, int(crop[0] + crop[2])), max(right, int(crop[1] + crop[3]))
    if y < 0 or x < 0 or bottom > height or right > width or y >= bottom or x >= right:
        return False, 0, 0, 0, 0
    y, x = y & ~1, x & ~1  # the decoder starts at whole chroma samples
    rows, columns = bottom - y, right - x
    if 3 * (rows * columns + LANES) > len(pixels):
        return False, 0, 0, 0, 0
    data = _bytes_at(file[0], file[1])
    decoded = (
        _decode_region(data, file[1], height, width, y, x, rows, columns, scratch, pixels)
        == DECODED
    )
    return decoded, y, x, rows, columns


@jit()
def render_jpegs(
    files,
    sides,
    plans,
    numbers,
    places,
    mask,
    form,
    normalisation,
    jpeg_scratch,
    pixels,
    scratch,
    out,
    done,
):
    """Decode and render n JPEGs as samples `numbers` of `out`; set `done` (n,) bool where that
    succeeded.

    `files` (n, 2) int64: address and length of each. `sides` (n, 2) int64: height and width.
    `plans` (n, columns) float32: plan rows. `numbers` (n,) int64: positions in `out`.
    `jpeg_scratch`: of `make_jpeg_scratch`. `pixels` uint8, flat: room for the largest region and
    one more vector. The other arguments as for `render.render_views`.
    """
    for i in range(len(files)):
        done[i], y, x, rows, columns = decode_crops(
            files[i], sides[i, 0], sides[i, 1], plans[i], len(places), jpeg_scratch, pixels
        )
        if done[i]:
            image = pixels[: 3 * rows * columns].reshape(rows, columns, 3)
            render_views(
                image, y, x, plans[i], places, mask, form, normalisation, scratch, out, numbers[i]
            )


@jit()
def resize_jpegs(files, sides, plans, numbers, places, jpeg_scratch, pixels, scratch, out, done):
    """Decode, crop, resize and flip n JPEGs: `render_jpegs` up to the seam, `out` uint8."""
    for i in range(len(files)):
        done[i], y, x, rows, columns = decode_crops(
            files[i], sides[i, 0], sides[i, 1], plans[i], len(places), jpeg_scratch, pixels
        )
        if done[i]:
            image = pixels[: 3 * rows * columns].reshape(rows, columns, 3)
            resize_views(image, y, x, plans[i], places, scratch, out, numbers[i])


class JpegRenderer(Renderer):
    """A `Renderer` that also takes encoded JPEGs, several a call."""

    _file_bytes = 0
    _pixels = np.empty(0, np.uint8)

    def render_jpegs(
        self,
        files: Sequence[bytes],
        sides: np.ndarray,
        plans: np.ndarray,
        numbers: np.ndarray,
        out: np.ndarray,
    ) -> np.ndarray:
        """Decode and render `files` as samples `numbers` of `out`; (n,) bool, True where that
        succeeded.

        The places of skipped files stay untouched. Any bytes are safe. `sides` (n, 2) int64:
        heights and widths. `plans` (n, columns) float32. `numbers` (n,) int64. `out`
        `buffer_dtype`: as for `render`. Raises InvalidInput where a shape does not fit.
        """
        where, done = self._prepare(files, sides, plans, numbers, out, self.buffer_dtype)
        render_jpegs(
            where,
            sides,
            plans,
            numbers,
            self._places,
            self._mask,
            self._form,
            self._normalisation,
            self._jpeg_scratch,
            self._pixels,
            self._scratch,
            out.reshape(-1),
            done,
        )
        return done

    def resize_jpegs(
        self,
        files: Sequence[bytes],
        sides: np.ndarray,
        plans: np.ndarray,
        numbers: np.ndarray,
        out: np.ndarray,
    ) -> np.ndarray:
        """Decode, crop, resize and flip only: `render_jpegs` up to the seam, `out` uint8."""
        where, done = self._prepare(files, sides, plans, numbers, out, np.dtype(np.uint8))
        resize_jpegs(
            where,
            sides,
            plans,
            numbers,
            self._places,
            self._jpeg_scratch,
            self._pixels,
            self._scratch,
            out.reshape(-1),
            done,
        )
        return done

    def decode(
        self, file: bytes, height: int, width: int, row: np.ndarray
    ) -> tuple[np.ndarray, int, int] | None:
        """Decode only: (region (h, w, 3) uint8, its y, its x) with the crops of a plan row, or None
        where the file is skipped.

        Borrowed: valid until the next call. For measuring the parts of `render_jpegs`.
        """
        where = self._locate([file], np.array([[height, width]]))
        decoded, y, x, rows, columns = decode_crops(
            where[0], height, width, row, len(self._places), self._jpeg_scratch, self._pixels
        )
        if not decoded:
            return None
        return self._pixels[: 3 * rows * columns].reshape(rows, columns, 3), y, x

    def _prepare(
        self,
        files: Sequence[bytes],
        sides: np.ndarray,
        plans: np.ndarray,
        numbers: np.ndarray,
        out: np.ndarray,
        dtype: np.dtype,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Check the arguments and grow the scratch memory: (`files` as in the kernels, `done`)."""
        count = len(files)
        if sides.shape != (count, 2) or plans.shape[:1] != (count,) or numbers.shape != (count,):
            raise InvalidInput(
                f"{count} files need `sides` ({count}, 2), `plans` ({count}, columns) and "
                f"`numbers` ({count},), got {sides.shape}, {plans.shape} and {numbers.shape}."
            )
        for plan, number in zip(plans, numbers.tolist()):
            self._check_out(out, plan, number, dtype)
        return self._locate(files, sides), np.empty(count, np.bool_)

    def _locate(self, files: Sequence[bytes], sides: np.ndarray) -> np.ndarray:
        """Addresses and lengths of the files, (n, 2) int64. Grows the scratch memory to fit."""
        # Memory grows by half more than needed, so that it seldom grows.
        longest = min(max(map(len, files)), MAX_FILE)
        largest = min(int(sides.prod(1).max()), MAX_PIXELS)
        if longest > self._file_bytes or 3 * (largest + LANES) > len(self._pixels):
            self._file_bytes = max(longest * 3 // 2, self._file_bytes, 1 << 18)
            largest = max(largest * 3 // 2, len(self._pixels) // 3, 1 << 19)
            self._pixels = np.empty(3 * (largest + LANES), np.uint8)
            self._jpeg_scratch = make_jpeg_scratch(self._file_bytes, largest)
        self._make_room(min(int(sides[:, 1].max()), MAX_WIDTH))
        addresses = [np.frombuffer(file, np.uint8).__array_interface__["data"][0] for file in files]
        return np.array(list(zip(addresses, map(len, files))), np.int64)

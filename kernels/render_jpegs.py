"""Rendering of JPEG files, by their plan rows, into the views of a batch: several images a call,
without the GIL.

`jpeg.decode_region` decodes the part of an image that its crops need, into memory that stays in the
CPU's cache, and `render_views` reads it there. Images that this decoder does not take are skipped;
the caller decodes them with a library and renders them with `Renderer`.
"""

import functools
from collections.abc import Sequence

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from .compiler.address import address_of, call_kernel
from .compiler.jit import jit
from .errors import InvalidInput
from .jpeg.decode import DECODED, NOT_PLAIN, decode_region, make_jpeg_scratch
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

_IMAGE = np.empty((0, 0, 3), np.uint8)
"""Has the type of an image."""


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
def decode_crops(file, height, width, row, views, scratch, pixels, region):
    """Decode the region of a JPEG that its crops need: DECODED or NOT_PLAIN.

    Writes the region, (rows, columns, 3) uint8, to the start of `pixels`, and its y, x, rows and
    columns to `region` (4,) int64. NOT_PLAIN where the crops exceed the image, the region exceeds
    `pixels`, or the decoder does not take the file. `file` (2,) int64: address and length.
    `height`, `width`: the image's sides. `row` (columns,) float32: the plan row. The other
    arguments as for `render_jpegs`.
    """
    # The smallest region that contains every view's crop.
    y, x, bottom, right = np.int64(height), np.int64(width), np.int64(0), np.int64(0)
    for v in range(views):
        crop = row[v * VIEW_FLOATS + CROP :]
        y, x = min(y, int(crop[0])), min(x, int(crop[1]))
        bottom, right = max(bottom, int(crop[0] + crop[2])), max(right, int(crop[1] + crop[3]))
    if y < 0 or x < 0 or bottom > height or right > width or y >= bottom or x >= right:
        return np.int64(NOT_PLAIN)
    y, x = y & ~1, x & ~1  # the decoder starts at whole chroma samples
    rows, columns = bottom - y, right - x
    if 3 * (rows * columns + LANES) > len(pixels):
        return np.int64(NOT_PLAIN)
    region[0], region[1], region[2], region[3] = y, x, rows, columns
    data = _bytes_at(file[0], file[1])
    return np.int64(
        decode_region(data, file[1], height, width, y, x, rows, columns, scratch, pixels)
    )


@jit()
def render_jpegs(
    decode,
    render,
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

    `decode`, `render`: addresses of `decode_crops` and `render.render_views`. `files` (n, 2) int64:
    address and length of each. `sides` (n, 2) int64: height and width. `plans` (n, columns)
    float32: plan rows. `numbers` (n,) int64: positions in `out`. `jpeg_scratch`: of
    `make_jpeg_scratch`. `pixels` uint8, flat: room for the largest region and one more vector. The
    other arguments as for `render_views`.
    """
    region = jpeg_scratch.region
    for i in range(len(files)):
        height, width, row = sides[i, 0], sides[i, 1], plans[i]
        arguments = files[i], height, width, row, len(places), jpeg_scratch, pixels, region
        done[i] = call_kernel(decode, arguments) == DECODED
        if done[i]:
            rows, columns = region[2], region[3]
            image = pixels[: 3 * rows * columns].reshape(rows, columns, 3)
            settings = row, places, mask, form, normalisation, scratch, out, numbers[i]
            call_kernel(render, (image, region[0], region[1], *settings))


@jit()
def resize_jpegs(
    decode, resize, files, sides, plans, numbers, places, jpeg_scratch, pixels, scratch, out, done
):
    """Decode, crop, resize and flip n JPEGs: `render_jpegs` up to the seam, `out` uint8. `resize`:
    the address of `render.resize_views`."""
    region = jpeg_scratch.region
    for i in range(len(files)):
        height, width, row = sides[i, 0], sides[i, 1], plans[i]
        arguments = files[i], height, width, row, len(places), jpeg_scratch, pixels, region
        done[i] = call_kernel(decode, arguments) == DECODED
        if done[i]:
            rows, columns = region[2], region[3]
            image = pixels[: 3 * rows * columns].reshape(rows, columns, 3)
            settings = row, places, scratch, out, numbers[i]
            call_kernel(resize, (image, region[0], region[1], *settings))


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
            self.decode_address,
            self.render_address,
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
            self.decode_address,
            self.resize_address,
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
        scratch, pixels = self._jpeg_scratch, self._pixels
        arguments = where[0], height, width, row, len(self._places), scratch, pixels, scratch.region
        if decode_crops(*arguments) != DECODED:
            return None
        y, x, rows, columns = scratch.region.tolist()
        return pixels[: 3 * rows * columns].reshape(rows, columns, 3), y, x

    @functools.cached_property
    def decode_address(self) -> int:
        """Address of `decode_crops`, compiled if needed."""
        file, row = np.empty(2, np.int64), np.empty(self._columns, np.float32)
        scratch = make_jpeg_scratch(0, 0)
        return address_of(decode_crops, file, 0, 0, row, 1, scratch, self._pixels, scratch.region)

    @functools.cached_property
    def render_address(self) -> int:
        """Address of `render_views`, compiled if needed."""
        row, out = np.empty(self._columns, np.float32), np.empty(0, self.buffer_dtype)
        settings = self._places, self._mask, self._form, self._normalisation, self._scratch
        return address_of(render_views, _IMAGE, 0, 0, row, *settings, out, 0)

    @functools.cached_property
    def resize_address(self) -> int:
        """Address of `resize_views`, compiled if needed."""
        row, out = np.empty(self._columns, np.float32), np.empty(0, np.uint8)
        return address_of(resize_views, _IMAGE, 0, 0, row, self._places, self._scratch, out, 0)

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
        for name, array, kind in (
            ("sides", sides, np.int64),
            ("plans", plans, np.float32),
            ("numbers", numbers, np.int64),
        ):  # the kernels are compiled for these
            if array.dtype != kind or not array.flags.c_contiguous:
                raise InvalidInput(
                    f"`{name}` must be C-contiguous {np.dtype(kind)}, "
                    f"got {array.dtype} with strides {array.strides}."
                )
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

"""From a JPEG's bytes and its plan row to finished views in a batch: several images a call, without
the GIL.

The part of each image that its crops need is decoded by `jpeg.decode_region` into memory that stays
in the cache, and rendered from there. What that decoder does not take is left undone, for a library
to decode and `Renderer` to render.
"""

from collections.abc import Sequence

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from .compiler.jit import jit
from .errors import InvalidInput
from .jpeg.decode import DECODED, decode_region, make_jpeg_scratch
from .jpeg.pixels import LANES
from .plan import CROP, VIEW_FLOATS
from .render import Renderer, render_views, resize_views

MAX_FILE, MAX_PIXELS, MAX_WIDTH = 32 << 20, 22 << 20, 1 << 16
"""What is larger is left undone, so that a thread keeps no more memory than images of this size
take."""


@intrinsic
def _bytes_at(typing_context, address, size):
    """The `size` bytes at an address as a uint8 array; nobody keeps them alive for it."""
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
def decode_crops(file, height, width, row, views, whole, scratch, pixels):
    """The region of a JPEG that its crops need into `pixels`: (whether it is there, y, x, rows,
    columns).

    `file` (2,) int64: address and length; the rest as in `render_jpegs`.
    """
    y, x, bottom, right = np.int64(height), np.int64(width), np.int64(0), np.int64(0)
    for v in range(views):
        crop = row[v * VIEW_FLOATS + CROP :]
        y, x = min(y, int(crop[0])), min(x, int(crop[1]))
        bottom, right = max(bottom, int(crop[0] + crop[2])), max(right, int(crop[1] + crop[3]))
    if y < 0 or x < 0 or bottom > height or right > width or y >= bottom or x >= right:
        return False, 0, 0, 0, 0
    y, x = y & ~1, x & ~1  # where the decoder can begin: at whole samples of chroma
    rows, columns = bottom - y, right - x
    if 3 * (rows * columns + LANES) > len(pixels):
        return False, 0, 0, 0, 0
    data = _bytes_at(file[0], file[1])
    decoded = (
        decode_region(data, file[1], height, width, y, x, rows, columns, whole, scratch, pixels)
        == DECODED
    )
    return decoded, y, x, rows, columns


@jit()
def render_jpegs(
    files,
    sides,
    plans,
    numbers,
    views,
    mask,
    form,
    normalisation,
    whole,
    jpeg_scratch,
    pixels,
    scratch,
    out,
    done,
):
    """Render the views of JPEGs into `out[:, numbers]`, and note in `done` (n,) bool which are
    there.

    `files` (n, 2) int64: address and length of each; `sides` (n, 2) int64: height and width;
    `plans` (n, columns) float32. `whole`: see `jpeg.decode_region`; `pixels` uint8, flat, with room
    for any of the images and its region's last vector. The rest as in `render.render_views`.
    """
    for i in range(len(files)):
        done[i], y, x, rows, columns = decode_crops(
            files[i], sides[i, 0], sides[i, 1], plans[i], views, whole, jpeg_scratch, pixels
        )
        if done[i]:
            image = pixels[: 3 * rows * columns].reshape(rows, columns, 3)
            render_views(
                image, y, x, plans[i], views, mask, form, normalisation, scratch, out, numbers[i]
            )


@jit()
def resize_jpegs(
    files, sides, plans, numbers, views, whole, jpeg_scratch, pixels, scratch, out, done
):
    """`render_jpegs` up to the seam: crop, resize and flip into `out[:, numbers]`, (V, N, S, S, 3)
    uint8."""
    for i in range(len(files)):
        done[i], y, x, rows, columns = decode_crops(
            files[i], sides[i, 0], sides[i, 1], plans[i], views, whole, jpeg_scratch, pixels
        )
        if done[i]:
            image = pixels[: 3 * rows * columns].reshape(rows, columns, 3)
            resize_views(image, y, x, plans[i], views, scratch, out, numbers[i])


class JpegRenderer(Renderer):
    """A renderer that takes JPEGs too, several a call."""

    whole = True
    """Whether files are read to their end; otherwise damage below an image's crops goes unseen."""
    _file_bytes, _pixels = 0, np.empty(0, np.uint8)

    def render_jpegs(
        self,
        files: Sequence[bytes],
        sides: np.ndarray,
        plans: np.ndarray,
        numbers: np.ndarray,
        out: np.ndarray,
    ) -> np.ndarray:
        """Render `files` into `out[:, numbers]`; (n,) bool: which of them are there, the others'
        places untouched.

        Any bytes are safe. `sides` (n, 2) int64, heights and widths; `plans` (n, columns) float32;
        `numbers` (n,) int64; `out` (V, N, S, S, 3) `buffer_dtype`, C-contiguous. ValueError where a
        shape does not fit.
        """
        where, done = self._prepare(files, sides, plans, numbers, out, self.buffer_dtype)
        render_jpegs(
            where,
            sides,
            plans,
            numbers,
            self._views,
            self._mask,
            self._form,
            self._normalisation,
            self.whole,
            self._jpeg_scratch,
            self._pixels,
            self._scratch,
            out,
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
        """The seam: as `render_jpegs`, but crop, resize and flip only, into (V, N, S, S, 3) uint8."""
        where, done = self._prepare(files, sides, plans, numbers, out, np.dtype(np.uint8))
        resize_jpegs(
            where,
            sides,
            plans,
            numbers,
            self._views,
            self.whole,
            self._jpeg_scratch,
            self._pixels,
            self._scratch,
            out,
            done,
        )
        return done

    def decode(
        self, file: bytes, height: int, width: int, row: np.ndarray
    ) -> tuple[np.ndarray, int, int] | None:
        """What the crops of a plan row need of a JPEG: (region (h, w, 3) uint8, its y, its x); None
        where it is left.

        Valid until the next call. For those who want to look at the parts of `render_jpegs`.
        """
        where = self._locate([file], np.array([[height, width]]))
        decoded, y, x, rows, columns = decode_crops(
            where[0], height, width, row, self._views, self.whole, self._jpeg_scratch, self._pixels
        )
        return (
            (self._pixels[: 3 * rows * columns].reshape(rows, columns, 3), y, x)
            if decoded
            else None
        )

    def _prepare(
        self,
        files: Sequence[bytes],
        sides: np.ndarray,
        plans: np.ndarray,
        numbers: np.ndarray,
        out: np.ndarray,
        dtype: np.dtype,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(where the files lie, room for the verdicts on them), with arguments checked and enough
        working memory."""
        count = len(files)
        if sides.shape != (count, 2) or plans.shape[:1] != (count,) or numbers.shape != (count,):
            raise InvalidInput(
                f"{count} files with sides {sides.shape}, plans {plans.shape}, numbers {numbers.shape}"
            )
        for plan, number in zip(plans, numbers.tolist()):
            self._check_out(out, plan, number, dtype)
        return self._locate(files, sides), np.empty(count, np.bool_)

    def _locate(self, files: Sequence[bytes], sides: np.ndarray) -> np.ndarray:
        """(n, 2) int64: addresses and lengths of the files; working memory grows to what they need."""
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

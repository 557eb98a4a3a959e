"""Rendering of JPEG files, by their plan rows, into the views of a batch: several images a call,
without the GIL.

`decode_crops` decodes the part of an image that its crops need, into memory that stays in the CPU's
cache, and `render_views` reads it there. Images that this decoder does not take are skipped; the
caller decodes them with a library and renders them with `Renderer`. With the files' checkpoints,
only the part of a scan that the crops need is read.
"""

import functools
from collections.abc import Sequence

import numpy as np

from ..compiler.address import address_of, call_kernel
from ..compiler.jit import inline_jit, jit
from ..errors import InvalidInput
from ..jpeg.checkpoints import Checkpoints, as_rows
from ..jpeg.decode import DECODED, make_jpeg_scratch
from ..jpeg.pixels import LANES
from ..jpeg.scan import CHECKPOINT_FIELDS
from .decode_crops import decode_crops, make_table
from .fastest_decoder import fastest_from_checkpoints
from .image import Renderer, render_views, resize_views

# Larger images are skipped and take the slow path; this bounds each thread's scratch memory.
MAX_FILE = 32 << 20
"""Largest file, bytes."""
MAX_PIXELS = 22 << 20
"""Largest image, pixels."""
MAX_WIDTH = 1 << 16
"""Largest width, pixels."""

_IMAGE = np.empty((0, 0, 3), np.uint8)
"""Has the type of an image."""


@inline_jit()
def _decode(decode, at_checkpoints, arguments):
    """Decode a file from its checkpoints, else from its beginning; returns whether that succeeded.

    `decode`, `at_checkpoints`: addresses of `decode_crops` and of the kernel that decodes from
    checkpoints, or 0 where no file has any. `arguments`: theirs.
    """
    if at_checkpoints and call_kernel(at_checkpoints, arguments) == DECODED:
        return True
    return call_kernel(decode, arguments) == DECODED


@jit()
def render_jpegs(
    decode,
    at_checkpoints,
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
    table,
    scratch,
    out,
    done,
):
    """Decode and render n JPEGs as samples `numbers` of `out`; set `done` (n,) bool where that
    succeeded.

    `decode`, `at_checkpoints`: as for `_decode`. `render`: the address of `render.render_views`.
    `files` (n, 2) int64: address and length of each. `sides` (n, 2) int64: height and width.
    `plans` (n, columns) float32: plan rows. `numbers` (n,) int64: positions in `out`.
    `jpeg_scratch`: of `make_jpeg_scratch`. `pixels` uint8, flat: room for the largest region and
    one more vector. `table`: a `CheckpointTable` of the n files. The other arguments as for
    `render_views`.
    """
    region = jpeg_scratch.region
    for i in range(len(files)):
        height, width, row = sides[i, 0], sides[i, 1], plans[i]
        memory = jpeg_scratch, pixels, region, table, i
        done[i] = _decode(
            decode, at_checkpoints, (files[i], height, width, row, len(places), *memory)
        )
        if done[i]:
            rows, columns = region[2], region[3]
            image = pixels[: 3 * rows * columns].reshape(rows, columns, 3)
            settings = row, places, mask, form, normalisation, scratch, out, numbers[i]
            call_kernel(render, (image, region[0], region[1], *settings))


@jit()
def resize_jpegs(
    decode,
    at_checkpoints,
    resize,
    files,
    sides,
    plans,
    numbers,
    places,
    jpeg_scratch,
    pixels,
    table,
    scratch,
    out,
    done,
):
    """Decode, crop, resize and flip n JPEGs: `render_jpegs` up to the seam, `out` uint8. `resize`:
    the address of `render.resize_views`."""
    region = jpeg_scratch.region
    for i in range(len(files)):
        height, width, row = sides[i, 0], sides[i, 1], plans[i]
        memory = jpeg_scratch, pixels, region, table, i
        done[i] = _decode(
            decode, at_checkpoints, (files[i], height, width, row, len(places), *memory)
        )
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
        checkpoints: Checkpoints | None = None,
        find: bool = False,
    ) -> np.ndarray:
        """Decode and render `files` as samples `numbers` of `out`; (n,) bool, True where that
        succeeded.

        The places of skipped files stay untouched. Any bytes are safe. `sides` (n, 2) int64:
        heights and widths. `plans` (n, columns) float32. `numbers` (n,) int64. `out`
        `buffer_dtype`: as for `render`. Raises InvalidInput where a shape does not fit.

        `checkpoints`: of the n files; any values are safe. Files whose length or checksum differs
        are read from their beginning. `find`: find the checkpoints of the files that are read so,
        see `found`.
        """
        where, done = self._prepare(files, sides, plans, numbers, out, self.buffer_dtype)
        self._table = make_table(files, sides, checkpoints, find)
        render_jpegs(
            self.decode_address,
            0 if checkpoints is None else self.at_checkpoints_address,
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
            self._table,
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
        checkpoints: Checkpoints | None = None,
        find: bool = False,
    ) -> np.ndarray:
        """Decode, crop, resize and flip only: `render_jpegs` up to the seam, `out` uint8."""
        where, done = self._prepare(files, sides, plans, numbers, out, np.dtype(np.uint8))
        self._table = make_table(files, sides, checkpoints, find)
        resize_jpegs(
            self.decode_address,
            0 if checkpoints is None else self.at_checkpoints_address,
            self.resize_address,
            where,
            sides,
            plans,
            numbers,
            self._places,
            self._jpeg_scratch,
            self._pixels,
            self._table,
            self._scratch,
            out.reshape(-1),
            done,
        )
        return done

    @property
    def found(self) -> list[np.ndarray | None]:
        """The checkpoints that the last call with `find` found: for each file (m,)
        CHECKPOINT_DTYPE, or None where it was read from checkpoints or cannot have any."""
        fields, counts = self._table.found, self._table.counts
        return [
            as_rows(fields[CHECKPOINT_FIELDS * (end - count) :], count) if count else None
            for end, count in zip(np.cumsum(counts).tolist(), counts.tolist())
        ]

    def decode(
        self,
        file: bytes,
        height: int,
        width: int,
        row: np.ndarray,
        checkpoints: Checkpoints | None = None,
    ) -> tuple[np.ndarray, int, int] | None:
        """Decode only: (region (h, w, 3) uint8, its y, its x) with the crops of a plan row, or None
        where the file is skipped.

        Borrowed: valid until the next call. For measuring the parts of `render_jpegs`.
        """
        sides = np.array([[height, width]])
        where = self._locate([file], sides)
        self._table = make_table([file], sides, checkpoints, False)
        scratch, pixels = self._jpeg_scratch, self._pixels
        memory = scratch, pixels, scratch.region, self._table, 0
        arguments = where[0], height, width, row, len(self._places), *memory
        decoded = (
            checkpoints is not None and fastest_from_checkpoints()(*arguments) == DECODED
        ) or decode_crops(*arguments) == DECODED
        if not decoded:
            return None
        y, x, rows, columns = scratch.region.tolist()
        return pixels[: 3 * rows * columns].reshape(rows, columns, 3), y, x

    @functools.cached_property
    def decode_address(self) -> int:
        """Address of `decode_crops`, compiled if needed."""
        return address_of(decode_crops, *self._decode_arguments())

    @functools.cached_property
    def at_checkpoints_address(self) -> int:
        """Address of the kernel that decodes from checkpoints, compiled if needed."""
        return address_of(fastest_from_checkpoints(), *self._decode_arguments())

    def _decode_arguments(self) -> tuple[object, ...]:
        """Arguments of the types that the decoding kernels are called with."""
        file, row = np.empty(2, np.int64), np.empty(self._columns, np.float32)
        table = make_table([], np.empty((0, 2), np.int64), None, False)
        scratch = make_jpeg_scratch(0, 0)
        return file, 0, 0, row, 1, scratch, self._pixels, scratch.region, table, 0

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

"""Rendering of JPEG files, by their plan rows, into the views of a batch.

Files that the decoders of `jpeg` do not take are skipped; the caller decodes them with a library
and renders them with `Renderer`. With the files' checkpoints, only the part of a scan that the
crops need is read.
"""

import functools
from collections.abc import Sequence

import numpy as np

from ..compiler.address import address_of
from ..errors import InvalidInput
from ..jpeg.checkpoints import Checkpoints, CheckpointTable, as_rows, make_table
from ..jpeg.decode import decode_region, make_jpeg_scratch
from ..jpeg.pixels import LANES
from ..jpeg.scan import CHECKPOINT_FIELDS
from ..reading import Encoded
from .fastest_decoder import fastest_from_checkpoints
from .files import render_files
from .image import Renderer, render_views, resize_views

# Larger images are skipped and take the slow path; this bounds each thread's scratch memory.
MAX_FILE = 32 << 20
"""Largest file, bytes."""
MAX_PIXELS = 22 << 20
"""Largest image, pixels."""
MAX_WIDTH = 1 << 16
"""Largest width, pixels."""

_FILE = np.frombuffer(b"", np.uint8)
"""Has the type of a file, read-only."""
_IMAGE = np.empty((0, 0, 3), np.uint8)
"""Has the type of an image."""


class JpegRenderer(Renderer):
    """A `Renderer` that also takes encoded JPEGs, several a call."""

    _file_bytes = _file_width = 0
    """What `_jpeg_scratch` has room for."""
    _pixels = np.empty(0, np.uint8)

    def render_jpegs(
        self,
        files: Sequence[Encoded],
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
        decoders = self._jpeg_decoders(checkpoints)
        return self._render_files(
            decoders, files, sides, plans, numbers, out, checkpoints=checkpoints, find=find
        )

    def resize_jpegs(
        self,
        files: Sequence[Encoded],
        sides: np.ndarray,
        plans: np.ndarray,
        numbers: np.ndarray,
        out: np.ndarray,
        checkpoints: Checkpoints | None = None,
        find: bool = False,
    ) -> np.ndarray:
        """Decode, crop, resize and flip only: `render_jpegs` up to the seam, `out` uint8."""
        decoders = self._jpeg_decoders(checkpoints)
        return self._render_files(
            decoders, files, sides, plans, numbers, out, True, checkpoints=checkpoints, find=find
        )

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
        done = self._call(
            self._jpeg_decoders(checkpoints),
            0,
            self._locate([file], sides),
            sides,
            row[None],
            np.zeros(1, np.int64),
            make_table(1, checkpoints),
            self._rendering,
            np.empty(0, self.buffer_dtype),
        )
        if not done[0]:
            return None
        y, x, rows, columns = self._jpeg_scratch.region.tolist()
        return self._pixels[: 3 * rows * columns].reshape(rows, columns, 3), y, x

    @functools.cached_property
    def decode_address(self) -> int:
        """Address of `decode_region`, compiled if needed."""
        return address_of(decode_region, *self._decode_arguments())

    @functools.cached_property
    def at_checkpoints_address(self) -> int:
        """Address of the kernel that decodes from checkpoints, compiled if needed."""
        return address_of(fastest_from_checkpoints(), *self._decode_arguments())

    @functools.cached_property
    def render_address(self) -> int:
        """Address of `render_views`, compiled if needed."""
        row, out = np.empty(self._columns, np.float32), np.empty(0, self.buffer_dtype)
        return address_of(render_views, _IMAGE, 0, 0, row, *self._rendering, out, 0)

    @functools.cached_property
    def resize_address(self) -> int:
        """Address of `resize_views`, compiled if needed."""
        row, out = np.empty(self._columns, np.float32), np.empty(0, np.uint8)
        return address_of(resize_views, _IMAGE, 0, 0, row, *self._resizing, out, 0)

    def _jpeg_decoders(self, checkpoints: Checkpoints | None) -> tuple[int, int]:
        """The decoders to try, as `render_files` takes them."""
        return 0 if checkpoints is None else self.at_checkpoints_address, self.decode_address

    def _decode_arguments(self) -> tuple[object, ...]:
        """Arguments of the types that the decoders are called with."""
        return _FILE, 0, 0, 0, 0, 0, 0, 0, make_jpeg_scratch(0, 0), self._pixels, make_table(1), 0

    def _render_files(
        self,
        decoders: tuple[int, int],
        files: Sequence[Encoded],
        sides: np.ndarray,
        plans: np.ndarray,
        numbers: np.ndarray,
        out: np.ndarray,
        seam: bool = False,
        *,
        checkpoints: Checkpoints | None = None,
        find: bool = False,
    ) -> np.ndarray:
        """`render_jpegs` of any kind of file; with `seam`, `resize_jpegs`."""
        dtype = np.dtype(np.uint8) if seam else self.buffer_dtype
        where = self._prepare(files, sides, plans, numbers, out, dtype)
        self._table = make_table(len(files), checkpoints, sides if find else None)
        finish, settings = (
            (self.resize_address, self._resizing)
            if seam
            else (self.render_address, self._rendering)
        )
        flat = out.reshape(-1)
        return self._call(
            decoders, finish, where, sides, plans, numbers, self._table, settings, flat
        )

    def _call(
        self,
        decoders: tuple[int, int],
        finish: int,
        where: np.ndarray,
        sides: np.ndarray,
        plans: np.ndarray,
        numbers: np.ndarray,
        table: CheckpointTable,
        settings: tuple[object, ...],
        out: np.ndarray,
    ) -> np.ndarray:
        """Call `render_files` with this renderer's memory: (n,) bool."""
        done = np.empty(len(where), np.bool_)
        render_files(
            decoders,
            finish,
            where,
            sides,
            plans,
            numbers,
            len(self._places),
            self._jpeg_scratch,
            self._pixels,
            table,
            settings,
            out,
            done,
        )
        return done

    def _prepare(
        self,
        files: Sequence[Encoded],
        sides: np.ndarray,
        plans: np.ndarray,
        numbers: np.ndarray,
        out: np.ndarray,
        dtype: np.dtype,
    ) -> np.ndarray:
        """Check the arguments and grow the scratch memory; returns `files` as in the kernel."""
        count = len(files)
        shapes = [(count, 2), (count, self._columns), (count,)]
        if [array.shape for array in (sides, plans, numbers)] != shapes:
            raise InvalidInput(
                f"{count} files need `sides`, `plans` and `numbers` of shapes {shapes}, "
                f"got {sides.shape}, {plans.shape} and {numbers.shape}."
            )
        for number in (int(numbers.min()), int(numbers.max())):
            self._check_out(out, plans[0], number, dtype)
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
        return self._locate(files, sides)

    def _locate(self, files: Sequence[Encoded], sides: np.ndarray) -> np.ndarray:
        """Addresses and lengths of the files, (n, 2) int64. Grows the working memory to fit."""
        self._grow(max(map(len, files)), int(sides.prod(1).max()), int(sides[:, 1].max()))
        arrays = [
            np.frombuffer(file, np.uint8) if isinstance(file, bytes) else file for file in files
        ]
        addresses = [array.__array_interface__["data"][0] for array in arrays]
        return np.array([addresses, [len(file) for file in files]], np.int64).T.copy()

    def _grow(self, longest: int, largest: int, widest: int) -> None:
        """Grow the working memory to a file of `longest` bytes and images of `largest` pixels and
        `widest` columns, as far as these are not skipped."""
        # Memory grows by half more than needed, so that it seldom grows.
        longest, widest = min(longest, MAX_FILE), min(widest, MAX_WIDTH)
        largest = min(largest, MAX_PIXELS)
        if 3 * (largest + LANES) > len(self._pixels):
            largest = max(largest * 3 // 2, 1 << 19)
            self._pixels = np.empty(3 * (largest + LANES), np.uint8)
        if longest > self._file_bytes or widest > self._file_width:
            self._file_bytes = max(longest * 3 // 2, self._file_bytes, 1 << 18)
            self._file_width = max(widest * 3 // 2, self._file_width, 1 << 10)
            self._jpeg_scratch = make_jpeg_scratch(self._file_bytes, self._file_width)
        self._make_room(widest)

"""Rendering of records (`coefficients.record`), by their plan rows, into the views of a batch.

`render_jpegs` for JPEGs that are stored as coefficients: the decoder reads only the chunks that the
crops touch. Records whose pixels are not made from the coefficients are skipped; the caller decodes
the JPEGs that they give back.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..coefficients.decode import (
    decode_record,
    decode_record_avx512,
    make_record_scratch,
)
from ..compiler.address import address_of, call_kernel
from ..compiler.features import has_vbmi2
from ..compiler.jit import jit
from ..jpeg.decode import DECODED, NOT_PLAIN
from ..jpeg.pixels import LANES
from .decode_crops import bytes_at, set_region
from .jpegs import MAX_PIXELS, MAX_WIDTH, JpegRenderer

_NO_RECORD = np.frombuffer(b"", np.uint8)
"""Has the type of a record."""


@jit()
def decode_record_crops(decode, file, height, width, row, views, scratch, pixels, region):
    """Decode the region of a record that its crops need: DECODED or NOT_PLAIN.

    `decode`: the address of `decode_record` or `decode_record_avx512`. The other arguments and
    the outcome are those of `decode_crops.decode_crops`.
    """
    if not set_region(height, width, row, views, pixels, region):
        return np.int64(NOT_PLAIN)
    record = bytes_at(file[0], file[1])
    return call_kernel(
        decode,
        (
            record,
            file[1],
            height,
            width,
            region[0],
            region[1],
            region[2],
            region[3],
            scratch,
            pixels,
        ),
    )


@jit()
def render_records(
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
    record_scratch,
    pixels,
    region,
    scratch,
    out,
    done,
):
    """Decode and render n records as samples `numbers` of `out`; set `done` (n,) bool where that
    succeeded.

    `decode`, `render`: addresses of a decoder of records and of `render.render_views`. `region`
    (4,) int64: working memory, as `record_scratch` of `make_record_scratch` is. The other arguments
    are those of `render_jpegs`.
    """
    for i in range(len(files)):
        verdict = decode_record_crops(
            decode,
            files[i],
            sides[i, 0],
            sides[i, 1],
            plans[i],
            len(places),
            record_scratch,
            pixels,
            region,
        )
        done[i] = verdict == DECODED
        if done[i]:
            rows, columns = region[2], region[3]
            image = pixels[: 3 * rows * columns].reshape(rows, columns, 3)
            settings = plans[i], places, mask, form, normalisation, scratch, out, numbers[i]
            call_kernel(render, (image, region[0], region[1], *settings))


@jit()
def resize_records(
    decode,
    resize,
    files,
    sides,
    plans,
    numbers,
    places,
    record_scratch,
    pixels,
    region,
    scratch,
    out,
    done,
):
    """Decode, crop, resize and flip n records: `render_records` up to the seam, `out` uint8.
    `resize`: the address of `render.resize_views`."""
    for i in range(len(files)):
        verdict = decode_record_crops(
            decode,
            files[i],
            sides[i, 0],
            sides[i, 1],
            plans[i],
            len(places),
            record_scratch,
            pixels,
            region,
        )
        done[i] = verdict == DECODED
        if done[i]:
            rows, columns = region[2], region[3]
            image = pixels[: 3 * rows * columns].reshape(rows, columns, 3)
            settings = plans[i], places, scratch, out, numbers[i]
            call_kernel(resize, (image, region[0], region[1], *settings))


class RecordRenderer(JpegRenderer):
    """A `JpegRenderer` that also takes records, several a call."""

    _record_pixels = np.empty(0, np.uint8)

    def render_records(
        self,
        records: Sequence[bytes],
        sides: np.ndarray,
        plans: np.ndarray,
        numbers: np.ndarray,
        out: np.ndarray,
    ) -> np.ndarray:
        """`render_jpegs` of records; any bytes are safe."""
        where, done = self._prepare_records(records, sides, plans, numbers, out, self.buffer_dtype)
        render_records(
            self.record_address,
            self.render_address,
            where,
            sides,
            plans,
            numbers,
            self._places,
            self._mask,
            self._form,
            self._normalisation,
            self._record_scratch,
            self._record_pixels,
            self._region,
            self._scratch,
            out.reshape(-1),
            done,
        )
        return done

    def resize_records(
        self,
        records: Sequence[bytes],
        sides: np.ndarray,
        plans: np.ndarray,
        numbers: np.ndarray,
        out: np.ndarray,
    ) -> np.ndarray:
        """`resize_jpegs` of records; any bytes are safe."""
        uint8 = np.dtype(np.uint8)
        where, done = self._prepare_records(records, sides, plans, numbers, out, uint8)
        resize_records(
            self.record_address,
            self.resize_address,
            where,
            sides,
            plans,
            numbers,
            self._places,
            self._record_scratch,
            self._record_pixels,
            self._region,
            self._scratch,
            out.reshape(-1),
            done,
        )
        return done

    def decode_region(
        self, record: bytes, height: int, width: int, region: Sequence[int]
    ) -> np.ndarray | None:
        """Decode the region (y, x, rows, columns) of a record: (rows, columns, 3) uint8; None where
        the record is skipped.

        The region must lie inside the image, whose sides are `height` and `width`. Borrowed: valid
        until the next call.
        """
        y, x, rows, columns = (int(side) for side in region)
        self._grow(np.array([[height, width]]))
        top, left = y & ~1, x & ~1
        down, right = y + rows - top, x + columns - left
        pixels = self._record_pixels
        encoded, scratch = np.frombuffer(record, np.uint8), self._record_scratch
        place = top, left, down, right
        if 3 * (down * right + LANES) > len(pixels):
            return None
        verdict = self._decoder(encoded, len(record), height, width, *place, scratch, pixels)
        if verdict != DECODED:
            return None
        image = pixels[: 3 * down * right].reshape(down, right, 3)
        return image[y - top :, x - left :]

    @functools.cached_property
    def _decoder(self) -> Any:
        """The fastest decoder that this CPU runs."""
        return decode_record_avx512 if has_vbmi2() else decode_record

    @functools.cached_property
    def record_address(self) -> int:
        """Address of the decoder of records, compiled if needed."""
        scratch = make_record_scratch(0)
        place = 0, 0, 1, 1
        return address_of(self._decoder, _NO_RECORD, 0, 1, 1, *place, scratch, self._record_pixels)

    def _prepare_records(
        self,
        records: Sequence[bytes],
        sides: np.ndarray,
        plans: np.ndarray,
        numbers: np.ndarray,
        out: np.ndarray,
        dtype: np.dtype,
    ) -> tuple[np.ndarray, np.ndarray]:
        """`_prepare`, and the memory for records."""
        where, done = self._prepare(records, sides, plans, numbers, out, dtype)
        self._grow(sides)
        return where, done

    def _grow(self, sides: np.ndarray) -> None:
        """Grow the scratch memory to fit."""
        largest = min(int(sides.prod(1).max()), MAX_PIXELS)
        if 3 * (largest + LANES) > len(self._record_pixels):
            # By half more than needed, so that it seldom grows.
            largest = max(largest * 3 // 2, 1 << 19)
            self._record_pixels = np.empty(3 * (largest + LANES), np.uint8)
            self._record_scratch = make_record_scratch(largest)
            self._region = np.zeros(4, np.int64)
        self._make_room(min(int(sides[:, 1].max()), MAX_WIDTH))

"""Rendering of records (`coefficients.record`), by their plan rows, into the views of a batch.

`jpegs` for JPEGs that are stored as coefficients: the decoder reads only the chunks that the crops
touch. Records whose pixels are not made from the coefficients are skipped; the caller decodes the
JPEGs that they give back.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..coefficients.decode import decode_record, decode_record_avx512
from ..compiler.address import address_of
from ..compiler.features import has_vbmi2
from ..jpeg.checkpoints import CheckpointTable, make_table
from ..jpeg.decode import DECODED
from ..jpeg.pixels import LANES
from ..reading import Encoded
from .jpegs import JpegRenderer


class RecordRenderer(JpegRenderer):
    """A `JpegRenderer` that also takes records, several a call."""

    def render_records(
        self,
        records: Sequence[Encoded],
        sides: np.ndarray,
        plans: np.ndarray,
        numbers: np.ndarray,
        out: np.ndarray,
    ) -> np.ndarray:
        """`render_jpegs` of records; any bytes are safe."""
        decoders = self.record_address, 0
        return self._render_files(decoders, records, sides, plans, numbers, out)

    def resize_records(
        self,
        records: Sequence[Encoded],
        sides: np.ndarray,
        plans: np.ndarray,
        numbers: np.ndarray,
        out: np.ndarray,
    ) -> np.ndarray:
        """`resize_jpegs` of records; any bytes are safe."""
        decoders = self.record_address, 0
        return self._render_files(decoders, records, sides, plans, numbers, out, seam=True)

    def decode_region(
        self, record: bytes, height: int, width: int, region: Sequence[int]
    ) -> np.ndarray | None:
        """Decode the region (y, x, rows, columns) of a record: (rows, columns, 3) uint8; None where
        the record is skipped.

        The region must lie inside the image, whose sides are `height` and `width`. Borrowed: valid
        until the next call.
        """
        y, x, rows, columns = (int(side) for side in region)
        top, left = y & ~1, x & ~1  # the decoder starts at whole chroma samples
        down, right = y + rows - top, x + columns - left
        self._grow(len(record), height * width, width)
        scratch, pixels = self._jpeg_scratch, self._pixels
        if 3 * (down * right + LANES) > len(pixels):
            return None
        file = np.frombuffer(record, np.uint8), len(record), height, width
        memory = scratch, pixels, self._no_checkpoints, 0
        if self._record_decoder(*file, top, left, down, right, *memory) != DECODED:
            return None
        image = pixels[: 3 * down * right].reshape(down, right, 3)
        return image[y - top :, x - left :]

    @functools.cached_property
    def record_address(self) -> int:
        """Address of the decoder of records, compiled if needed."""
        return address_of(self._record_decoder, *self._decode_arguments())

    @functools.cached_property
    def _no_checkpoints(self) -> CheckpointTable:
        """The table of a call with one record."""
        return make_table(1)

    @functools.cached_property
    def _record_decoder(self) -> Any:
        """The fastest decoder that this CPU runs."""
        return decode_record_avx512 if has_vbmi2() else decode_record

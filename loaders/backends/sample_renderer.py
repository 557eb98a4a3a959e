"""Decode and render samples in one thread, for the backends that run their own threads."""

from collections.abc import Sequence

import numpy as np

from ...kernels import headers
from ...kernels.render.records import RecordRenderer
from ...kernels.torch_formats import FORMATS
from ..loader import Loader
from ..regions import scale_crops
from ..request import Request
from ..scans.scan_index import ScanIndex
from ..shards.decode import Decoder

SAMPLES_PER_CALL = 4
"""Samples that a thread takes at once: few enough to spread a batch over the threads, enough that
Python's share of the time stays small."""


class SampleRenderer:
    """Decodes and renders samples; make one per thread, as it holds a decoder and scratch memory.

    Plain JPEGs are decoded and rendered by our own kernels in one call without the GIL, and so are
    records of coefficients. Every other image, and every JPEG that is decoded smaller, is decoded
    by a library, one by one.
    """

    def __init__(self, loader: Loader, scan_index: ScanIndex | None) -> None:
        """`scan_index`: shared by the threads; None decodes each JPEG from its beginning."""
        config = loader.config
        self._loader = loader
        self._scan_index = scan_index
        self._views = len(config.views.views)
        self._decode = Decoder(fast=config.decode == "fast").decode_scaled
        renderer = self._renderer = RecordRenderer(config.views, FORMATS[config.dtype].name)
        if config.seam:
            self._render, self._render_jpegs = renderer.resize, renderer.resize_jpegs
            self._render_records = renderer.resize_records
        else:
            self._render, self._render_jpegs = renderer.render, renderer.render_jpegs
            self._render_records = renderer.render_records

    def __call__(self, request: Request, numbers: Sequence[int], memory: np.ndarray) -> None:
        """Render samples `numbers` of a request into the batch's memory, replacing bad ones."""
        others: list[int] = []
        jpegs: list[int] = []
        files: list[bytes] = []
        in_records: list[int] = []
        records: list[bytes] = []
        dataset, quarantine = self._loader.dataset, self._loader.quarantine
        if request.fields is not None:
            for n in numbers:
                if request.indices[n] not in quarantine:
                    self._loader._fetch_fields(request, n)
        for n in numbers:
            index = request.indices[n]
            if dataset.records is not None and dataset.records[index] and index not in quarantine:
                in_records.append(n)  # whole, since that costs less than a smaller one
                records.append(dataset.read_record(index))
                continue
            plain = dataset.samples["format"][index] == headers.JPEG and request.shrinks[n] == 1
            if plain and index not in quarantine:
                jpegs.append(n)
                files.append(dataset.read(index))
            else:
                others.append(n)
        for ours, encoded, render in (
            (jpegs, files, self._render_chosen),
            (in_records, records, self._render_chosen_records),
        ):
            if not ours:
                continue
            chosen = np.array(ours)
            samples = dataset.samples[request.indices[chosen]]
            sides = np.stack([samples["height"], samples["width"]], 1).astype(np.int64)
            done = render(request, chosen, encoded, sides, memory)
            quarantine.count_decoded(int(done.sum()))
            others.extend(chosen[~done].tolist())  # not plain, or damaged: a library decides
        for n in others:
            self._render_one(request, n, memory)

    def _render_chosen(
        self,
        request: Request,
        chosen: np.ndarray,
        files: Sequence[bytes],
        sides: np.ndarray,
        memory: np.ndarray,
    ) -> np.ndarray:
        """Render the JPEGs of samples `chosen`, from their checkpoints where they have some."""
        rows, scan_index = request.rows[chosen], self._scan_index
        if scan_index is None:
            return self._render_jpegs(files, sides, rows, chosen, memory)
        indices = request.indices[chosen].tolist()
        checkpoints = scan_index.read(indices)
        find = scan_index.lacks(indices, checkpoints)
        done = self._render_jpegs(files, sides, rows, chosen, memory, checkpoints, find)
        if find:
            scan_index.add(indices, files, self._renderer.found)
        return done

    def _render_chosen_records(
        self,
        request: Request,
        chosen: np.ndarray,
        records: list[bytes],
        sides: np.ndarray,
        memory: np.ndarray,
    ) -> np.ndarray:
        """Render records as samples `chosen`: (n,) bool, where that succeeded."""
        return self._render_records(records, sides, request.rows[chosen], chosen, memory)

    def _render_one(self, request: Request, n: int, memory: np.ndarray) -> None:
        image, shrink = self._loader._fetch(request, n, self._decode)
        row = request.rows[n]
        if shrink > 1:
            row = scale_crops(row, self._views, shrink, image.shape[0], image.shape[1])
        self._render(image, 0, 0, row, memory, n)

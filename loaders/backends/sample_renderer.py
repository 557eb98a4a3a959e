"""Decode and render samples in one thread, for the backends that run their own threads."""

from collections.abc import Iterator, Sequence

import numpy as np

from ...kernels import headers
from ...kernels.reading import Encoded
from ...kernels.render.records import RecordRenderer
from ...kernels.torch_formats import FORMATS
from ..config import LoaderConfig
from ..loader import Loader
from ..regions import scale_crops
from ..request import Request
from ..scans.scan_index import ScanIndex
from ..shards.decode import Decoder
from ..shards.reader import ReadMemory, files_allowed

MOST_PER_CALL = 32
"""Samples that a thread takes at once, at most: so many that Python's share of the time, for which
the threads wait for each other, stays small."""
CALLS_PER_THREAD = 2
"""Calls that the batches in the making keep ready for each thread, at least."""
BYTES_PER_READ = 4 << 20
"""Encoded bytes that a thread holds at once, unless a single image has more."""


def samples_per_call(config: LoaderConfig) -> int:
    """Samples that a thread takes at once, each of which may be in a file of its own."""
    threads, in_the_making = config.thread_count, config.batch_size * config.prefetch
    fair = in_the_making // (CALLS_PER_THREAD * threads)
    return max(1, min(MOST_PER_CALL, fair, files_allowed() // (2 * threads)))


def parts_of(positions: np.ndarray, sizes: np.ndarray) -> Iterator[np.ndarray]:
    """Cut `positions` (n,) into parts of at most `BYTES_PER_READ` bytes, or one image; `sizes`:
    bytes by position."""
    ends = sizes[positions].cumsum()
    begin = 0
    while begin < len(positions):
        before = ends[begin - 1] if begin else 0
        end = max(int(np.searchsorted(ends, before + BYTES_PER_READ, side="right")), begin + 1)
        yield positions[begin:end]
        begin = end


class Tools:
    """What one thread decodes and renders with: megabytes of scratch memory, kept between epochs.

    Refers to no loader, so that a dropped one is freed at once.
    """

    def __init__(self, config: LoaderConfig) -> None:
        self.memory = ReadMemory()
        self.decode = Decoder(fast=config.decode == "fast").decode_scaled
        self.renderer = RecordRenderer(config.views, FORMATS[config.dtype].name)


class ToolBox:
    """The tools of a loader's threads, which come and go with its epochs."""

    def __init__(self, config: LoaderConfig) -> None:
        self._config = config
        self._unused: list[Tools] = []

    def take(self) -> Tools:
        """Tools for one thread."""
        try:
            return self._unused.pop()
        except IndexError:
            return Tools(self._config)

    def put(self, tools: Tools) -> None:
        """Keep a thread's tools for another one."""
        self._unused.append(tools)


class SampleRenderer:
    """Decodes and renders samples with the tools of one thread.

    Plain JPEGs are decoded and rendered by our own kernels in one call without the GIL, and so are
    records of coefficients. Every other image, and every JPEG that is decoded smaller, is decoded
    by a library, one by one.
    """

    def __init__(self, loader: Loader, scan_index: ScanIndex | None, tools: Tools) -> None:
        """`scan_index`: shared by the threads; None decodes each JPEG from its beginning."""
        config = loader.config
        self._loader = loader
        self._scan_index = scan_index
        self._views = len(config.views.views)
        self._memory, self._decode = tools.memory, tools.decode
        renderer = self._renderer = tools.renderer
        if config.seam:
            self._render, self._render_jpegs = renderer.resize, renderer.resize_jpegs
            self._render_records = renderer.resize_records
        else:
            self._render, self._render_jpegs = renderer.render, renderer.render_jpegs
            self._render_records = renderer.render_records

    def __call__(self, request: Request, numbers: range, memory: np.ndarray) -> None:
        """Render samples `numbers` of a request into the batch's memory, replacing bad ones."""
        dataset, quarantine = self._loader.dataset, self._loader.quarantine
        chosen = np.arange(numbers.start, numbers.stop)
        indices = request.indices[chosen]
        samples = dataset.samples[indices]
        usable = np.array([index not in quarantine for index in indices.tolist()])
        if request.fields is not None:
            for n in chosen[usable].tolist():
                self._loader._fetch_fields(request, n)
        records = np.zeros_like(usable)
        if dataset.records is not None:  # read whole, since that costs less than a smaller image
            records = usable & dataset.records[indices]
        jpegs = usable & ~records & (samples["format"] == headers.JPEG)
        jpegs &= request.shrinks[chosen] == 1
        rendered = np.zeros_like(usable)
        sides = np.stack([samples["height"], samples["width"]], 1).astype(np.int64)
        for kind, render in (
            (jpegs, self._render_chosen),
            (records, self._render_chosen_records),
        ):
            for part in parts_of(np.flatnonzero(kind), samples["size"]):
                encoded = dataset.read_stored(indices[part].tolist(), self._memory)
                rendered[part] = render(request, chosen[part], encoded, sides[part], memory)
        quarantine.count_decoded(int(rendered.sum()))
        for n in chosen[~rendered].tolist():  # not plain, or damaged: a library decides
            self._render_one(request, n, memory)

    def _render_chosen(
        self,
        request: Request,
        chosen: np.ndarray,
        files: Sequence[Encoded],
        sides: np.ndarray,
        memory: np.ndarray,
    ) -> np.ndarray:
        """Render the JPEGs of samples `chosen`, from their checkpoints where they have some: (n,)
        bool, where that succeeded."""
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
        records: Sequence[Encoded],
        sides: np.ndarray,
        memory: np.ndarray,
    ) -> np.ndarray:
        """Render records as samples `chosen`, likewise."""
        return self._render_records(records, sides, request.rows[chosen], chosen, memory)

    def _render_one(self, request: Request, n: int, memory: np.ndarray) -> None:
        image, shrink = self._loader._fetch(request, n, self._decode)
        row = request.rows[n]
        if shrink > 1:
            row = scale_crops(row, self._views, shrink, image.shape[0], image.shape[1])
        self._render(image, 0, 0, row, memory, n)

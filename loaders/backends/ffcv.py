"""The FFCV loader: FFCV's reader, pipeline graph and epoch thread around a decoder of our own.

FFCV holds the rows, compiles the pipeline into stages and runs them ahead of the consumer. Decoding
and resizing are ours. FFCV's decoders leave another sample's pixels in the slot of a corrupt image,
resize differently from Pillow, and reserve the largest image's size for every sample of every
prefetched batch.
"""

import contextlib
import itertools
import os
import queue
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch

from ...kernels.errors import MissingPackage
from ...kernels.layout import ViewLayout
from ..buffers import BufferPool
from ..config import LoaderConfig
from ..loader import Loader
from ..request import Rendered, Request
from ..scans.scan_index import ScanIndex
from ..shards.beton import BetonDataset, write_directory
from ..shards.dataset import Dataset
from .sample_renderer import SampleRenderer, ToolBox, samples_per_call


@contextlib.contextmanager
def _thread_counts_kept() -> Iterator[None]:
    """Context that keeps `import ffcv` from setting torch's and Numba's thread counts to 1.

    Setting Numba's count would also start its thread pool.
    """
    torch_set, numba_set = torch.set_num_threads, numba.set_num_threads
    torch.set_num_threads = numba.set_num_threads = lambda count: None
    try:
        yield
    finally:
        torch.set_num_threads, numba.set_num_threads = torch_set, numba_set
        compiler = sys.modules.get("ffcv.pipeline.compiler")
        if compiler is not None:
            compiler.set_num_threads = numba_set  # type: ignore[attr-defined]


try:
    with _thread_counts_kept():
        from ffcv.fields.rgb_image import SimpleRGBImageDecoder
        from ffcv.loader import Loader as PipelineLoader
        from ffcv.loader.epoch_iterator import EpochIterator
        from ffcv.memory_managers.base import MemoryContext
        from ffcv.pipeline import Compiler, PipelineSpec
        from ffcv.pipeline.allocation_query import AllocationQuery
        from ffcv.pipeline.graph import Graph
        from ffcv.pipeline.state import State
        from ffcv.reader import Reader
except ImportError as error:
    raise MissingPackage(
        f"the ffcv loader needs FFCV ({error}): `apt-get install g++ pkg-config python3-dev "
        "libopencv-dev libturbojpeg0-dev` and `pip install 'maskco-fast[ffcv]'`; or choose the "
        "backend native, which reads .beton files too"
    ) from error

_COMPILING = threading.Lock()
"""Lock to hold while FFCV's process-wide compiler switch is off."""

REPLACED = 1
"""Status of a sample whose image was replaced; other samples have 0."""

Work = tuple[Request, np.ndarray]
"""FFCV's storage state, which the epoch thread passes to the decoder: a request, and the memory of
the batch to render into."""

Execute = Callable[[Work, np.ndarray], None]
"""Renders a batch and writes the samples' statuses, (N, 1) uint8."""


class PlanDecoder(SimpleRGBImageDecoder):
    """An FFCV decoder that outputs statuses; pixels go to the buffer in the storage state.

    Seed and epoch arrive with the plan rows in that state, so that a new epoch compiles nothing.
    """

    def __init__(self, execute: Execute) -> None:
        super().__init__()
        self._execute = execute

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        """Reserve one byte per sample; FFCV's decoders reserve the largest image's size here."""
        status = AllocationQuery((1,), np.dtype("u1"))
        return State(
            jit_mode=True, device=previous_state.device, shape=(1,), dtype=np.dtype("u1")
        ), status

    def generate_code(self) -> Callable:
        """Return the function that FFCV's stage calls for a batch."""
        execute = self._execute

        def decode(
            batch_indices: np.ndarray, status: np.ndarray, metadata: np.ndarray, work: Work
        ) -> np.ndarray:
            execute(work, status)
            return status

        return decode


class _NoPages(MemoryContext):
    """FFCV's manager of memory-mapped pages, without pages: images are read by `Dataset.read`.

    Where a file shrinks or a network file system fails, a mapping kills the process. FFCV's page
    table also takes hundreds of MB.
    """

    state = None

    def schedule_epoch(self, batches: Any) -> "_NoPages":
        """Return the context of an epoch: this object."""
        return self

    def __enter__(self) -> "_NoPages":
        return self

    def __exit__(self, *exception: object) -> None:
        """Release nothing."""


class _Pipeline(PipelineLoader):
    """An FFCV loader with one output, made without FFCV's constructor.

    The constructor sets torch's and Numba's thread counts, indexes every page and makes a reader
    that prints KeyErrors at exit. FFCV does not compile the decoder, which calls machine code from
    our own cache.
    """

    def __init__(
        self, reader: Reader, batch_size: int, batches_ahead: int, decoder: PlanDecoder
    ) -> None:
        self.reader = reader
        self.batch_size = batch_size
        self.batches_ahead = batches_ahead
        self.memory_manager = _NoPages()
        self.traversal_order = None
        self.pipeline_specs = {"image": PipelineSpec("image", decoder=decoder)}
        positions = {name: position for position, name in enumerate(reader.handlers)}
        self.graph = Graph(self.pipeline_specs, reader.handlers, positions, reader.metadata, None)
        with _COMPILING:
            enabled = Compiler.is_enabled
            Compiler.set_enabled(False)
            try:
                self.generate_code()
            finally:
                Compiler.set_enabled(enabled)


class _Epoch(EpochIterator):
    """FFCV's epoch thread, over requests. Unlike FFCV's, it passes errors on and can be closed."""

    def __init__(
        self,
        pipeline: _Pipeline,
        requests: Iterator[Request],
        pool: BufferPool,
        layout: ViewLayout,
    ) -> None:
        self._requests = requests
        self._pool = pool
        self._layout = layout
        super().__init__(pipeline, [])  # FFCV's constructor starts the thread

    def run(self) -> None:
        """Render requests until closed; the last item in the queue is None or an exception."""
        self.name = "ffcv-epoch"
        slots = itertools.cycle(range(self.loader.batches_ahead + 2))
        end: BaseException | None = None
        try:
            for number, request in enumerate(self._requests):
                memory = self._pool.take()
                self.storage_state = (request, memory)
                self.run_pipeline(number, request.indices, next(slots), None)
                self.storage_state = None  # type: ignore[assignment]
                rendered = Rendered.on(self._pool.tensor(memory), request, self._layout)
                if not self._put(rendered):
                    return
                del memory, rendered
        except BaseException as raised:  # `__next__` raises it in the consumer's thread
            end = raised
        self._put(end)

    def _put(self, item: Rendered | BaseException | None) -> bool:
        """Queue an item; False if the epoch was closed meanwhile."""
        while not self.terminate_event.is_set():
            try:
                self.output_queue.put(item, timeout=0.05)
                return True
            except queue.Full:
                continue
        return False

    def __next__(self) -> Rendered:
        item = self.output_queue.get()
        if item is None:
            raise StopIteration
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """End the thread and drop the batches in the queue."""
        self.terminate_event.set()
        if self.is_alive():
            self.join()
        with contextlib.suppress(queue.Empty):
            while True:
                self.output_queue.get_nowait()


class FfcvLoader(Loader):
    """Batches through FFCV, from .beton files or tar shards.

    For tar shards FFCV reads a .beton file of their rows without image data. Our own threads render
    a batch; Numba's and OpenMP's thread pools abort with two callers or break after a fork.
    """

    def __init__(
        self, dataset: Dataset, config: LoaderConfig, *, max_bad_share: float = 0.1
    ) -> None:
        super().__init__(dataset, config, max_bad_share=max_bad_share)
        self._reader: Reader | None = None
        self._scan_index = ScanIndex.of(dataset, config)
        self._tools = ToolBox(config)

    def _run(self, requests: Iterator[Request]) -> Generator[Rendered, None, None]:
        config = self.config
        threads = ThreadPoolExecutor(config.thread_count, thread_name_prefix="ffcv")
        team = _Team(self, threads)
        epoch: _Epoch | None = None
        try:
            if self._reader is None:
                self._reader = _reader(self.dataset)
            pipeline = _Pipeline(
                self._reader, config.batch_size, config.prefetch, PlanDecoder(team.execute)
            )
            epoch = _Epoch(pipeline, requests, self._pool, config.views.layout)
            yield from epoch
        finally:
            self.dataset.cancel_reads()  # before `close` waits for threads that read
            team.closing = True
            if epoch is not None:
                epoch.close()
            threads.shutdown(cancel_futures=True)
            team.give_back()
            if self._scan_index is not None:
                self._scan_index.close()


def _reader(dataset: Dataset) -> Reader:
    """FFCV's reader of the rows, from the .beton file or a temporary one without image data."""
    # FFCV refuses the version of a file with records.
    if isinstance(dataset, BetonDataset) and len(dataset.paths) == 1 and dataset.records is None:
        reader = Reader(dataset.paths[0])
        if "image" in reader.handlers:  # other writers may name the field differently
            return reader
    with tempfile.TemporaryDirectory(prefix="maskco-fast-") as folder:
        path = Path(folder, "directory.beton")
        write_directory(dataset, path)
        return Reader(os.fspath(path))


class _Team:
    """Threads that render a batch together, each with its own decoder and scratch memory."""

    def __init__(self, loader: FfcvLoader, threads: ThreadPoolExecutor) -> None:
        self.closing = False
        self._threads = threads
        self._step = samples_per_call(loader.config)
        self._loader_tools = loader._tools
        self._tools = [loader._tools.take() for _ in range(loader.config.thread_count)]
        self._renderers = [
            SampleRenderer(loader, loader._scan_index, tools) for tools in self._tools
        ]

    def execute(self, work: Work, status: np.ndarray) -> None:
        """Render all samples of a batch; raise the first error of a thread."""
        # The threads share the iterator: each takes the next samples.
        begins = iter(range(0, len(work[0].indices), self._step))
        futures = [
            self._threads.submit(self._share, render, begins, work, status)
            for render in self._renderers
        ]
        errors = [future.exception() for future in futures]
        for error in errors:
            if error is not None:
                raise error

    def give_back(self) -> None:
        """Leave the tools to the next epoch."""
        for tools in self._tools:
            self._loader_tools.put(tools)

    def _share(
        self, render: SampleRenderer, begins: Iterator[int], work: Work, status: np.ndarray
    ) -> None:
        request, memory = work
        for begin in begins:
            if self.closing:
                return
            part = slice(begin, begin + self._step)
            original = request.indices[part].copy()
            render(request, range(*part.indices(len(request.indices))), memory)
            status[part, 0] = np.where(request.indices[part] != original, REPLACED, 0)

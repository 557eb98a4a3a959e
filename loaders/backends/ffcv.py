"""The FFCV loader: FFCV's reader, pipeline graph and epoch thread around a decoder that executes
the plan.

FFCV keeps the rows, compiles the pipeline into stages and runs them ahead of the consumer. Decoding
and resizing are ours, since FFCV's ignore a corrupt image (its slot then holds another sample's
pixels), resize up to 208 levels away from Pillow, and reserve the largest image's size for every
sample of every batch in the making.
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
from ..buffers import BufferPool
from ..config import LoaderConfig
from ..loader import Loader
from ..request import Rendered, Request
from ..shards.beton import BetonDataset, write_directory
from ..shards.dataset import Dataset
from .sample_renderer import SAMPLES_PER_CALL, SampleRenderer


@contextlib.contextmanager
def _threads_left_alone() -> Iterator[None]:
    """Importing FFCV sets the thread count of torch and of Numba to 1, which would also start
    Numba's thread pool."""
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
    with _threads_left_alone():
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
        f"the FFCV loader needs FFCV ({error}): `apt-get install g++ pkg-config python3-dev libopencv-dev "
        "libturbojpeg0-dev` and `pip install 'maskco-fast[ffcv]'`; or choose the loader native, which reads .beton too"
    ) from error

_COMPILING = threading.Lock()
"""Held while FFCV's process-wide compiler switch is off."""

REPLACED = 1
"""Status of a sample whose own image could not be used; 0 for all others."""

Work = tuple[Request, np.ndarray]
"""FFCV's storage state, from the epoch thread to the decoder: a request, and the buffer to render
into."""

Execute = Callable[[Work, np.ndarray], None]
"""Renders a batch and writes its status, (N, 1) uint8."""


class PlanDecoder(SimpleRGBImageDecoder):
    """An FFCV decoder whose output is each sample's status; the pixels go where the storage state
    says.

    Seed and epoch reach it as the plan rows in that state, so that a new epoch compiles nothing.
    """

    def __init__(self, execute: Execute) -> None:
        super().__init__()
        self._execute = execute

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        """One byte a sample, however large the images: FFCV's own decoders reserve the largest
        image's size here."""
        status = AllocationQuery((1,), np.dtype("u1"))
        return State(
            jit_mode=True, device=previous_state.device, shape=(1,), dtype=np.dtype("u1")
        ), status

    def generate_code(self) -> Callable:
        """What FFCV's stage calls for a batch."""
        execute = self._execute

        def decode(
            batch_indices: np.ndarray, status: np.ndarray, metadata: np.ndarray, work: Work
        ) -> np.ndarray:
            execute(work, status)
            return status

        return decode


class _NoPages(MemoryContext):
    """FFCV's place for memory-mapped pages, empty: images are read as `Dataset.read` reads them.

    A mapping would kill the process where a file shrinks or a network file system fails, and FFCV's
    page table takes 646 MB for ImageNet.
    """

    state = None

    def schedule_epoch(self, batches: Any) -> "_NoPages":
        """The context of an epoch: this one."""
        return self

    def __enter__(self) -> "_NoPages":
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing to release."""


class _Pipeline(PipelineLoader):
    """An FFCV loader of one output, made without its constructor.

    That would set the thread count of torch and Numba, index every page, and make a reader that
    prints KeyErrors at exit. The decoder is called as it is, not compiled: what it calls is machine
    code from our own cache.
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
    """FFCV's epoch thread, over requests: its errors reach the consumer, and closing it ends it."""

    def __init__(self, pipeline: _Pipeline, requests: Iterator[Request], pool: BufferPool) -> None:
        self._requests = requests
        self._pool = pool
        super().__init__(pipeline, [])  # starts the thread

    def run(self) -> None:
        """Carry out requests until told to stop; the last item put is None or what was raised."""
        self.name = "ffcv-epoch"
        slots = itertools.cycle(range(self.loader.batches_ahead + 2))
        end: BaseException | None = None
        try:
            for number, request in enumerate(self._requests):
                pixels = self._pool.take()
                self.storage_state = (request, pixels)
                self.run_pipeline(number, request.indices, next(slots), None)
                self.storage_state = None  # type: ignore[assignment]
                if not self._put(Rendered(request, self._pool.tensor(pixels))):
                    return
                del pixels
        except BaseException as raised:  # raised again in the consumer's thread
            end = raised
        self._put(end)

    def _put(self, item: Rendered | BaseException | None) -> bool:
        """Queue an item; False where the consumer has left."""
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
        """End the thread, and let go of the batches in the queue."""
        self.terminate_event.set()
        if self.is_alive():
            self.join()
        with contextlib.suppress(queue.Empty):
            while True:
                self.output_queue.get_nowait()


class FfcvLoader(Loader):
    """Batches through FFCV, from .beton files or, by a directory of them in FFCV's format, from tar
    shards.

    `threads` threads of our own render a batch, not Numba's or OpenMP's: those abort with two
    callers, or break a fork.
    """

    def __init__(
        self, dataset: Dataset, config: LoaderConfig, *, max_bad_share: float = 0.1
    ) -> None:
        super().__init__(dataset, config, max_bad_share=max_bad_share)
        self._reader: Reader | None = None

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
            epoch = _Epoch(pipeline, requests, self._pool)
            yield from epoch
        finally:
            self.dataset.cancel_reads()  # first, or the threads that are ended here would wait for their bytes
            team.closing = True
            if epoch is not None:
                epoch.close()
            threads.shutdown(cancel_futures=True)


def _reader(dataset: Dataset) -> Reader:
    """FFCV's reader of the dataset's rows: of its .beton where it is one, of a directory without
    data elsewhere."""
    if isinstance(dataset, BetonDataset) and len(dataset.paths) == 1:
        reader = Reader(dataset.paths[0])
        if "image" in reader.handlers:  # files of FFCV's own writer may name it otherwise
            return reader
    with tempfile.TemporaryDirectory(prefix="maskco-fast-") as folder:
        path = Path(folder, "directory.beton")
        write_directory(dataset, path)
        return Reader(os.fspath(path))


class _Team:
    """The threads that render a batch, each with its decoder and working memory."""

    def __init__(self, loader: FfcvLoader, threads: ThreadPoolExecutor) -> None:
        self.closing = False
        self._threads = threads
        self._executors = [SampleRenderer(loader) for _ in range(loader.config.thread_count)]

    def execute(self, work: Work, status: np.ndarray) -> None:
        """Render every sample of a batch; raise what a thread raised."""
        begins = iter(
            range(0, len(work[0].indices), SAMPLES_PER_CALL)
        )  # shared: each thread takes the next
        futures = [
            self._threads.submit(self._share, execute, begins, work, status)
            for execute in self._executors
        ]
        errors = [future.exception() for future in futures]
        for error in errors:
            if error is not None:
                raise error

    def _share(
        self, execute: SampleRenderer, begins: Iterator[int], work: Work, status: np.ndarray
    ) -> None:
        request, pixels = work
        for begin in begins:
            if self.closing:
                return
            some = slice(begin, begin + SAMPLES_PER_CALL)
            wanted = request.indices[some].copy()
            execute(request, range(*some.indices(len(request.indices))), pixels)
            status[some, 0] = np.where(request.indices[some] != wanted, REPLACED, 0)

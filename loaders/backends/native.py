"""The native loader: threads of one process decode an image once and render its views with the
fused Numba kernels."""

import collections
import queue
import threading
from collections.abc import Callable, Generator, Iterator

import numpy as np

from ..buffers import BufferPool
from ..loader import Loader
from ..request import Rendered, Request
from .sample_renderer import SAMPLES_PER_CALL, SampleRenderer


class NativeLoader(Loader):
    """Batches in the plan's order from `threads` threads, `prefetch` of them in the making at a
    time.

    A sample costs Python a read; decoding and rendering run without the GIL, several samples a
    call.
    """

    def _run(self, requests: Iterator[Request]) -> Generator[Rendered, None, None]:
        config, pool = self.config, self._pool
        workers = _Workers(config.thread_count, lambda: SampleRenderer(self))
        pending: collections.deque[_Work] = collections.deque()
        try:
            for request in requests:
                pending.append(workers.submit(request, pool.take()))
                if len(pending) >= config.prefetch:
                    yield self._finish(pending.popleft(), pool)
            while pending:
                yield self._finish(pending.popleft(), pool)
        finally:
            self.dataset.cancel_reads()  # first, or the threads that are ended here would wait for their bytes
            workers.close()

    def _finish(self, work: "_Work", pool: BufferPool) -> Rendered:
        work.wait()
        return Rendered(work.request, pool.tensor(work.pixels))


class _Work:
    """One batch in the making."""

    def __init__(self, request: Request, pixels: np.ndarray) -> None:
        self.request = request
        self.pixels = pixels
        self.error: BaseException | None = None
        self._left = len(request.indices)  # samples
        self._lock = threading.Lock()
        self._done = threading.Event()

    def samples_done(self, count: int, error: BaseException | None) -> None:
        """Count samples off, and keep the first error."""
        with self._lock:
            self._left -= count
            self.error = self.error or error
            if not self._left:
                self._done.set()

    def wait(self) -> None:
        """Return when the whole batch is there; raise what a thread raised."""
        self._done.wait()
        if self.error is not None:
            raise self.error


class _Workers:
    """Threads that render samples from one queue, in the order submitted."""

    def __init__(self, threads: int, make_executor: Callable[[], SampleRenderer]) -> None:
        self._queue: queue.SimpleQueue[tuple[_Work, range] | None] = queue.SimpleQueue()
        self._closing = False
        self._make_executor = make_executor
        self._threads = [
            threading.Thread(target=self._loop, name=f"native-{i}", daemon=True)
            for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, request: Request, pixels: np.ndarray) -> _Work:
        """Queue every sample of a request."""
        work = _Work(request, pixels)
        count = len(request.indices)
        for begin in range(0, count, SAMPLES_PER_CALL):
            self._queue.put((work, range(begin, min(begin + SAMPLES_PER_CALL, count))))
        return work

    def _loop(self) -> None:
        execute: SampleRenderer | None = None
        while (item := self._queue.get()) is not None:
            work, numbers = item
            error = None
            if not self._closing:
                try:
                    execute = execute or self._make_executor()
                    execute(work.request, numbers, work.pixels)
                except BaseException as raised:  # handed to the consumer, who raises it
                    error = raised
            work.samples_done(len(numbers), error)
            del work, item  # or an idle thread would hold the last batch's buffer

    def close(self) -> None:
        """End the threads: what is in work is finished, what is queued is dropped."""
        self._closing = True
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

"""The native loader: threads of one process decode an image once and render its views with the fused Numba kernels."""

import collections
import queue
import threading
from collections.abc import Callable, Generator, Iterator

import numpy as np

from ..kernels.render import Renderer
from .buffers import BufferPool
from .decode import Decoder
from .loader import Loader
from .request import Rendered, Request

Render = Callable[[Request, int, np.ndarray], None]
"""Renders sample n of a request into a batch buffer."""


class NativeLoader(Loader):
    """Batches in the plan's order from `threads` threads, `prefetch` of them in the making at a time.

    A sample costs Python a read and three calls; decoding and rendering run without the GIL.
    """

    def _run(self, requests: Iterator[Request]) -> Generator[Rendered, None, None]:
        config = self.config
        size = config.views.size
        shape = (len(config.views.views), config.batch_size, size, size, 3)
        pool = BufferPool(shape, config.pixel_dtype, page_locked=config.device.startswith("cuda"))
        workers = _Workers(config.thread_count, self._make_render)
        pending: collections.deque[_Work] = collections.deque()
        try:
            for request in requests:
                pending.append(workers.submit(request, pool.take()))
                if len(pending) >= config.prefetch:
                    yield self._finish(pending.popleft(), pool)
            while pending:
                yield self._finish(pending.popleft(), pool)
        finally:
            workers.close()

    def _finish(self, work: "_Work", pool: BufferPool) -> Rendered:
        work.wait()
        return Rendered(work.request, pool.tensor(work.pixels))

    def _make_render(self) -> Render:
        """One thread's render function, with its decoder and working memory."""
        config = self.config
        decoder = Decoder()
        renderer = Renderer(config.views, str(config.dtype).removeprefix("torch."))
        render = renderer.resize if config.seam else renderer.render

        def render_sample(request: Request, n: int, pixels: np.ndarray) -> None:
            image = self._fetch(request, n, decoder.decode)
            render(image, 0, 0, request.rows[n], pixels, n)

        return render_sample


class _Work:
    """One batch in the making."""

    def __init__(self, request: Request, pixels: np.ndarray) -> None:
        self.request = request
        self.pixels = pixels
        self.error: BaseException | None = None
        self._left = len(request.indices)
        self._lock = threading.Lock()
        self._done = threading.Event()

    def sample_done(self, error: BaseException | None) -> None:
        """Count one sample off, and keep the first error."""
        with self._lock:
            self._left -= 1
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

    def __init__(self, threads: int, make_render: Callable[[], Render]) -> None:
        self._queue: queue.SimpleQueue[tuple[_Work, int] | None] = queue.SimpleQueue()
        self._closing = False
        self._make_render = make_render
        self._threads = [threading.Thread(target=self._loop, name=f"native-{i}", daemon=True) for i in range(threads)]
        for thread in self._threads:
            thread.start()

    def submit(self, request: Request, pixels: np.ndarray) -> _Work:
        """Queue every sample of a request."""
        work = _Work(request, pixels)
        for n in range(len(request.indices)):
            self._queue.put((work, n))
        return work

    def _loop(self) -> None:
        render: Render | None = None
        while (item := self._queue.get()) is not None:
            work, n = item
            error = None
            if not self._closing:
                try:
                    render = render or self._make_render()
                    render(work.request, n, work.pixels)
                except BaseException as raised:  # handed to the consumer, who raises it
                    error = raised
            work.sample_done(error)
            del work, item  # or an idle thread would hold the last batch's buffer

    def close(self) -> None:
        """End the threads: what is in work is finished, what is queued is dropped."""
        self._closing = True
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

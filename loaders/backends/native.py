"""The native loader: threads decode each image once and render its views with the fused kernels."""

import collections
import queue
import threading
from collections.abc import Callable, Generator, Iterator

import numpy as np

from ..buffers import BufferPool
from ..config import LoaderConfig
from ..loader import Loader
from ..request import Rendered, Request
from ..scans.scan_index import ScanIndex
from ..shards.dataset import Dataset
from .sample_renderer import SampleRenderer, ToolBox, Tools, samples_per_call


class NativeLoader(Loader):
    """Batches in the plan's order, `prefetch` at once, from `threads` threads.

    Reading, decoding and rendering run without the GIL, several samples a call.
    """

    def __init__(
        self, dataset: Dataset, config: LoaderConfig, *, max_bad_share: float = 0.1
    ) -> None:
        super().__init__(dataset, config, max_bad_share=max_bad_share)
        self._scan_index = ScanIndex.of(dataset, config)
        self._tools = ToolBox(config)

    def _run(self, requests: Iterator[Request]) -> Generator[Rendered, None, None]:
        config, pool, scan_index = self.config, self._pool, self._scan_index
        workers = _Workers(
            config.thread_count,
            self._tools,
            lambda tools: SampleRenderer(self, scan_index, tools),
            samples_per_call(config),
        )
        pending: collections.deque[_Work] = collections.deque()
        try:
            for request in requests:
                pending.append(workers.submit(request, pool.take()))
                if len(pending) >= config.prefetch:
                    yield self._finish(pending.popleft(), pool)
            while pending:
                yield self._finish(pending.popleft(), pool)
        finally:
            self.dataset.cancel_reads()  # before `close` waits for threads that read
            workers.close()
            if scan_index is not None:
                scan_index.close()

    def _finish(self, work: "_Work", pool: BufferPool) -> Rendered:
        work.wait()
        return Rendered.on(pool.tensor(work.memory), work.request, self.config.views.layout)


class _Work:
    """A batch that the threads are rendering."""

    def __init__(self, request: Request, memory: np.ndarray) -> None:
        self.request = request
        self.memory = memory
        self.error: BaseException | None = None
        self._left = len(request.indices)
        """Samples that are not yet rendered."""
        self._lock = threading.Lock()
        self._done = threading.Event()

    def samples_done(self, count: int, error: BaseException | None) -> None:
        """Count rendered samples, and keep the first error."""
        with self._lock:
            self._left -= count
            self.error = self.error or error
            if not self._left:
                self._done.set()

    def wait(self) -> None:
        """Return when the whole batch is rendered; raise the first error of a thread."""
        self._done.wait()
        if self.error is not None:
            raise self.error


class _Workers:
    """Threads that render samples from one queue, in the order submitted."""

    def __init__(
        self,
        threads: int,
        tools: ToolBox,
        make_renderer: Callable[[Tools], SampleRenderer],
        samples_per_call: int,
    ) -> None:
        self._queue: queue.SimpleQueue[tuple[_Work, range] | None] = queue.SimpleQueue()
        self._closing = False
        self._tools = tools
        self._make_renderer = make_renderer
        self._samples_per_call = samples_per_call
        self._threads = [
            threading.Thread(target=self._loop, name=f"native-{i}", daemon=True)
            for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, request: Request, memory: np.ndarray) -> _Work:
        """Queue all samples of a request, to be rendered into a batch's flat `memory`."""
        work = _Work(request, memory)
        count, step = len(request.indices), self._samples_per_call
        for begin in range(0, count, step):
            self._queue.put((work, range(begin, min(begin + step, count))))
        return work

    def _loop(self) -> None:
        tools: Tools | None = None
        render: SampleRenderer | None = None
        while (item := self._queue.get()) is not None:
            work, numbers = item
            error = None
            if not self._closing:
                try:
                    if render is None:
                        tools = self._tools.take()
                        render = self._make_renderer(tools)
                    render(work.request, numbers, work.memory)
                except BaseException as raised:  # `wait` raises it in the consumer's thread
                    error = raised
            work.samples_done(len(numbers), error)
            del work, item  # an idle thread must not keep the last batch's buffer alive
        if tools is not None:
            self._tools.put(tools)

    def close(self) -> None:
        """End the threads: samples being rendered are finished, queued ones dropped."""
        self._closing = True
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

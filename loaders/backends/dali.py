"""The DALI loader: NVIDIA DALI decodes, its graph runs our kernels (on a CPU) or its own resize (on
a CUDA device).

What has been run: everything on a CPU. What has not: `device="cuda"`, of which only the graph's
definition and, made of CPU operators, its values are tested.
"""

import collections
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from ...kernels import headers
from ...kernels.errors import InvalidInput
from ..config import LoaderConfig
from ..loader import Loader
from ..request import Rendered, Request
from ..shards.dataset import Dataset
from ..shards.decode import Decoder
from .dali_graph import DeviceGraph, Graph, HostGraph, Probe, Samples, encode_lossless, import_dali


class DaliLoader(Loader):
    """Batches from a DALI pipeline, `prefetch` of them in the making at a time, without a copy.

    Baseline JPEGs of one or three components, whole by their markers, go to DALI as they are.
    Everything else, and each JPEG that DALI refuses, is decoded on the host, as in every loader,
    and goes into the graph as the pixels of its region: DALI draws what it can of a scan that other
    decoders refuse. An image that DALI does not decode ends its pipeline: it is set aside for the
    host, where it is decoded or replaced, and a new pipeline begins with the batch that failed.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: LoaderConfig,
        *,
        max_bad_share: float = 0.1,
        decode_on_device: bool = False,
    ) -> None:
        """`decode_on_device`: with a CUDA device, decode whole images there rather than regions on
        the CPU."""
        import_dali()
        if config.decode != "exact":
            raise InvalidInput(
                "the DALI loader decodes exactly: DALI's CPU decoder has no scaling. Take the loader native or ffcv"
            )
        super().__init__(dataset, config, max_bad_share=max_bad_share)
        self._decode_on_device = decode_on_device
        self._aside: set[int] = set()
        """Samples that DALI does not decode."""

    def _run(self, requests: Iterator[Request]) -> Generator[Rendered, None, None]:
        graph = self._make_graph()
        feed = _Feed(requests, self._read, self.config.thread_count)
        try:
            while (yield from self._run_pipeline(graph, feed)):
                pass  # a pipeline has failed, what ended it is set aside, and the next goes on from there
        finally:
            self.dataset.cancel_reads()  # first, or the threads that are ended here would wait for their bytes
            feed.close()

    def _make_graph(self) -> Graph:
        device = torch.device(self.config.device)
        if device.type != "cuda":
            return HostGraph(self.config)
        device_id = torch.cuda.current_device() if device.index is None else device.index
        return DeviceGraph(self.config, device_id, decode_on_device=self._decode_on_device)

    def _run_pipeline(self, graph: Graph, feed: "_Feed") -> Generator[Rendered, None, bool]:
        """One pipeline's batches, until the requests end (False) or it fails (True)."""
        first = feed.delivered
        pipeline = graph.pipeline(lambda iteration: feed.batch(first + iteration))
        try:
            while True:
                stream = (
                    None if graph.device_id is None else torch.cuda.current_stream(graph.device_id)
                )
                try:
                    outputs = pipeline.run(stream)
                except StopIteration:
                    feed.raise_error()
                    return False
                except RuntimeError as error:
                    failure = error
                    break
                views = graph.views(feed.batch(feed.delivered), outputs)
                del outputs
                yield Rendered(feed.deliver().request, views)
                del views
        finally:
            del pipeline  # ends its threads, which wait for nothing but their own work
        self._set_aside(feed.batch(feed.delivered), failure)
        return True

    def _set_aside(self, samples: Samples, failure: RuntimeError) -> None:
        """Find the samples of a failed batch that DALI does not decode, and have the host decode or
        replace them."""
        probe, decoder = Probe(), Decoder()
        refused = [
            n for n in np.flatnonzero(~samples.cut).tolist() if not probe.decodes(samples, n)
        ]
        if not refused:
            raise RuntimeError(
                f"DALI's pipeline failed, though it decodes each image of the batch: {failure}"
            ) from failure
        for n in refused:
            self._aside.add(int(samples.request.indices[n]))
            self._decode_here(samples, n, decoder)

    def _read(self, samples: Samples, n: int, decoder: Decoder) -> None:
        """Fetch the bytes of sample `n`, or its region's pixels where DALI is not to decode it."""
        index = int(samples.request.indices[n])
        is_jpeg = self.dataset.samples["format"][index] == headers.JPEG
        if is_jpeg and index not in self._aside and index not in self.quarantine:
            data = np.frombuffer(self.dataset.read(index), np.uint8)
            if headers.is_one_whole_scan(data):
                samples.encoded[n] = data
                return
        self._decode_here(samples, n, decoder)

    def _decode_here(self, samples: Samples, n: int, decoder: Decoder) -> None:
        image = self._fetch(samples.request, n, decoder.decode_scaled).image
        y, x, height, width = samples.regions[n].tolist()
        samples.encoded[n] = encode_lossless(image[y : y + height, x : x + width])
        samples.cut[n] = True


class _Feed:
    """Batches by their number in this pass, read one ahead by threads, and kept until they are
    delivered.

    A pipeline that takes the place of a failed one asks for the same numbers again and gets the
    same samples.
    """

    AHEAD = 2
    """Batches whose reading has begun when DALI asks for one."""

    def __init__(
        self,
        requests: Iterator[Request],
        read: Callable[[Samples, int, Decoder], None],
        threads: int,
    ) -> None:
        self._requests = requests
        self._read = read
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="dali")
        self._closing = threading.Event()
        self._reading: collections.deque[tuple[Samples, list[Future[None]]]] = collections.deque()
        self._kept: collections.deque[Samples] = collections.deque()
        self._error: Exception | None = None
        self.delivered = 0

    def batch(self, number: int) -> Samples:
        """Batch `number` of this pass; StopIteration where there is none, or where it cannot be
        read: `raise_error`."""
        while number >= self.delivered + len(self._kept):
            if self._error is not None:
                raise StopIteration
            try:
                self._kept.append(self._next())
            except StopIteration:
                raise
            except Exception as error:  # raised when the batches before it are delivered
                self._error = error
                raise StopIteration from None
        return self._kept[number - self.delivered]

    def deliver(self) -> Samples:
        """Let go of the oldest batch kept."""
        self.delivered += 1
        return self._kept.popleft()

    def raise_error(self) -> None:
        """Raise what ended the batches, unless it was their number."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """End the threads: what is being read is finished, what is queued is dropped."""
        self._closing.set()
        self._pool.shutdown(cancel_futures=True)

    def _next(self) -> Samples:
        while (
            len(self._reading) < self.AHEAD and (request := next(self._requests, None)) is not None
        ):
            self._reading.append(self._begin(request))
        if not self._reading:
            raise StopIteration
        samples, parts = self._reading.popleft()
        for part in parts:
            part.result()
        return samples

    def _begin(self, request: Request) -> tuple[Samples, list["Future[None]"]]:
        """Have the threads read a request's samples, each every so many of them."""
        count = len(request.indices)
        nothing: Any = None
        samples = Samples(request, [nothing] * count, np.zeros(count, bool))
        return samples, [
            self._pool.submit(self._read_part, samples, part) for part in range(self._threads)
        ]

    def _read_part(self, samples: Samples, part: int) -> None:
        decoder = Decoder()
        for n in range(part, len(samples.encoded), self._threads):
            if self._closing.is_set():
                return
            self._read(samples, n, decoder)

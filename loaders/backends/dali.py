"""The DALI loader: NVIDIA DALI decodes; its graph runs our kernels (CPU) or DALI's resize (CUDA).

Where there is no GPU, the tests of `device="cuda"` cover the graph's definition, and its values as
computed by the equivalent CPU operators.
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
from ...kernels.render.records import RecordRenderer
from ...kernels.views import ViewConfig
from ..config import LoaderConfig
from ..loader import Loader
from ..request import Rendered, Request
from ..shards.dataset import Dataset
from ..shards.decode import Decoder
from .dali_graph import DaliError, DeviceGraph, Graph, HostGraph, Probe, Samples, encode_lossless
from .dali_operator import import_dali


class DaliLoader(Loader):
    """Batches from a DALI pipeline, `prefetch` at once, without a copy.

    DALI decodes baseline JPEGs of one or three components whose markers show a complete scan. The
    host decodes all other images, as in every loader, and passes the pixels of the region into the
    graph, because DALI renders damaged scans that other decoders reject. So it does for records of
    coefficients, which DALI does not know. An image that DALI refuses ends its pipeline: the host
    decodes or replaces it from then on, and a new pipeline starts with the failed batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: LoaderConfig,
        *,
        max_bad_share: float = 0.1,
        decode_on_device: bool = False,
    ) -> None:
        """`decode_on_device`: decode whole images on the CUDA device, not regions on the CPU."""
        import_dali()
        if config.decode != "exact":
            raise InvalidInput(
                f"`decode` must be 'exact' for the dali loader, got {config.decode!r}: DALI's CPU "
                "decoder cannot scale; choose the backend native or ffcv"
            )
        super().__init__(dataset, config, max_bad_share=max_bad_share)
        self._decode_on_device = decode_on_device
        self._refused: set[int] = set()
        """Samples that DALI does not decode; the host does."""

    def _arguments(self) -> dict[str, Any]:
        return {**super()._arguments(), "decode_on_device": self._decode_on_device}

    def _run(self, requests: Iterator[Request]) -> Generator[Rendered, None, None]:
        graph = self._make_graph()
        feed = _Feed(requests, self._read, self.config.thread_count)
        try:
            while (yield from self._run_pipeline(graph, feed)):
                pass  # the next pipeline continues where one failed
        finally:
            self.dataset.cancel_reads()  # before `close` waits for threads that read
            feed.close()

    def _make_graph(self) -> Graph:
        device = torch.device(self.config.device)
        if device.type != "cuda":
            return HostGraph(self.config)
        device_id = torch.cuda.current_device() if device.index is None else device.index
        return DeviceGraph(self.config, device_id, decode_on_device=self._decode_on_device)

    def _run_pipeline(self, graph: Graph, feed: "_Feed") -> Generator[Rendered, None, bool]:
        """Yield one pipeline's batches; return whether it failed before the requests ended."""
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
                samples = feed.batch(feed.delivered)
                views = graph.views(samples, outputs)
                # `_fetch` has counted the samples that the host decoded.
                self.quarantine.count_decoded(int((~samples.cut).sum()))
                del outputs, samples
                yield Rendered(feed.deliver().request, views)
                del views
        finally:
            del pipeline  # ends its threads
        self._refuse(feed.batch(feed.delivered), failure)
        return True

    def _refuse(self, samples: Samples, failure: RuntimeError) -> None:
        """Find the samples of a failed batch that DALI refuses; decode or replace them here."""
        probe, decoder = Probe(), Decoder()
        refused = [
            n for n in np.flatnonzero(~samples.cut).tolist() if not probe.decodes(samples, n)
        ]
        if not refused:
            raise DaliError(
                f"DALI's pipeline failed although DALI decodes each image of the batch: {failure}. "
                "Choose the backend native, or another version of DALI"
            ) from failure
        for n in refused:
            self._refused.add(int(samples.request.indices[n]))
            self._decode_on_host(samples, n, decoder)

    def _read(self, samples: Samples, n: int, decoder: "_HostDecoder") -> None:
        """Read the bytes of sample `n` for DALI, or decode its region's pixels on the host."""
        index = int(samples.request.indices[n])
        if self.dataset.records is not None and self.dataset.records[index]:
            if not self._decode_record(samples, n, index, decoder.renderer):
                self._decode_on_host(samples, n, decoder)
            return
        is_jpeg = self.dataset.samples["format"][index] == headers.JPEG
        if is_jpeg and index not in self._refused and index not in self.quarantine:
            if samples.request.fields is not None:
                self._fetch_fields(samples.request, n)
            data = np.frombuffer(self.dataset.read(index), np.uint8)
            sample = self.dataset.samples[index]
            if headers.is_one_whole_scan(data, sample["height"], sample["width"]):
                samples.encoded[n] = data
                return
        self._decode_on_host(samples, n, decoder)

    def _decode_record(
        self, samples: Samples, n: int, index: int, renderer: RecordRenderer
    ) -> bool:
        """Decode the region's pixels of sample `n`, a record; whether that succeeded."""
        if index in self.quarantine:
            return False
        sample = self.dataset.samples[index]
        image = renderer.decode_region(
            self.dataset.read_record(index),
            int(sample["height"]),
            int(sample["width"]),
            samples.regions[n].tolist(),
        )
        if image is None:
            return False
        samples.encoded[n] = encode_lossless(image)
        samples.cut[n] = True
        self.quarantine.count_decoded()
        return True

    def _decode_on_host(self, samples: Samples, n: int, decoder: Decoder) -> None:
        image = self._fetch(samples.request, n, decoder.decode_scaled).image
        y, x, height, width = samples.regions[n].tolist()
        samples.encoded[n] = encode_lossless(image[y : y + height, x : x + width])
        samples.cut[n] = True


class _HostDecoder(Decoder):
    """A thread's decoder, of records too."""

    def __init__(self) -> None:
        super().__init__()
        self.renderer = RecordRenderer(ViewConfig.maskco())


class _Feed:
    """Reads batches ahead in threads and keeps each until it is delivered.

    Batches are numbered within a pass. A pipeline that replaces a failed one requests the same
    numbers again and gets the same samples.
    """

    AHEAD = 2
    """Batches being read or already read when DALI requests one."""

    def __init__(
        self,
        requests: Iterator[Request],
        read: Callable[[Samples, int, _HostDecoder], None],
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
        """Batch `number` of this pass; StopIteration past the end.

        StopIteration also replaces a read error, so that the batches before it are delivered first;
        `raise_error` then raises it.
        """
        while number >= self.delivered + len(self._kept):
            if self._error is not None:
                raise StopIteration
            try:
                self._kept.append(self._next())
            except StopIteration:
                raise
            except Exception as error:  # raised after the batches before it are delivered
                self._error = error
                raise StopIteration from None
        return self._kept[number - self.delivered]

    def deliver(self) -> Samples:
        """Return the oldest batch and stop keeping it."""
        self.delivered += 1
        return self._kept.popleft()

    def raise_error(self) -> None:
        """Raise the error that ended the batches, if one did."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """End the threads: samples being read are finished, queued ones dropped."""
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
        """Start reading a request's samples: thread i takes samples i, i + threads, …"""
        count = len(request.indices)
        nothing: Any = None
        samples = Samples(request, [nothing] * count, np.zeros(count, bool))
        return samples, [
            self._pool.submit(self._read_part, samples, part) for part in range(self._threads)
        ]

    def _read_part(self, samples: Samples, part: int) -> None:
        decoder = _HostDecoder()
        for n in range(part, len(samples.encoded), self._threads):
            if self._closing.is_set():
                return
            self._read(samples, n, decoder)

"""Copies rendered batches to the device and finishes their views there, overlapped with training.

Two slots take turns. A batch is copied into its slot on a side stream while the previous batch is
augmented and trained on; events order the two. On a CPU the same code runs in order.
"""

import collections
import contextlib
from collections.abc import Callable, Generator
from typing import Any, Protocol

import numpy as np
import torch

from ..kernels.augment.batch import BatchAugmenter
from ..kernels.plan import KEY_BOXES, MASKED_BOX, VIEW_FLOATS
from .batch import Batch
from .config import LoaderConfig
from .request import Rendered, extras
from .shards.dataset import Dataset

SLOTS = 2
"""One is copied into while the other is read."""


class Streams(Protocol):
    """Ordering of work on a device. Events are the return values of `copied` and `done`."""

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Queue a copy on the side stream."""

    def copied(self) -> Any:
        """An event that passes when all copies queued so far are complete."""

    def done(self) -> Any:
        """An event that passes when all work queued on the current stream so far is complete."""

    def side_waits(self, event: Any) -> None:
        """Make copies queued from now on wait for the event."""

    def current_waits(self, event: Any) -> None:
        """Make work queued on the current stream from now on wait for the event."""

    def host_waits(self, event: Any) -> None:
        """Block the host until the event has passed."""


class InOrderStreams:
    """Work on the CPU: everything is complete when its call returns, so events are None."""

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copy at once."""
        target.copy_(source)

    def copied(self) -> None:
        """No copy is pending."""

    def done(self) -> None:
        """No copy is pending."""

    def side_waits(self, event: None) -> None:
        """Nothing to wait for."""

    def current_waits(self, event: None) -> None:
        """Nothing to wait for."""

    def host_waits(self, event: None) -> None:
        """Nothing to wait for."""


class CudaStreams:
    """A side stream for copies beside the caller's current stream."""

    def __init__(self, device: torch.device) -> None:
        self._side = torch.cuda.Stream(device)

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Queue a copy; it blocks the host unless `source` is page-locked."""
        with torch.cuda.stream(self._side):
            target.copy_(source, non_blocking=True)

    def copied(self) -> torch.cuda.Event:
        """An event recorded on the side stream."""
        return self._side.record_event()

    def done(self) -> torch.cuda.Event:
        """An event recorded on the current stream."""
        return torch.cuda.current_stream(self._side.device).record_event()

    def side_waits(self, event: torch.cuda.Event) -> None:
        """On the device; the host goes on."""
        self._side.wait_event(event)

    def current_waits(self, event: torch.cuda.Event) -> None:
        """On the device; the host goes on."""
        torch.cuda.current_stream(self._side.device).wait_event(event)

    def host_waits(self, event: torch.cuda.Event) -> None:
        """Block the host until the event has passed."""
        event.synchronize()  # a CPU-GPU sync point, for a copy queued two batches earlier


class _Slot:
    """Memory of one batch on the device, reused by every second batch.

    Ownership: the side stream writes `pixels`, `plan` and `numbers` once `free` has passed; the
    current stream reads them once `copied` has passed. `source` is the host's page-locked memory.
    The slot keeps it until the host has seen `copied` pass; only then its pool may reuse it.
    """

    def __init__(
        self, source: tuple[torch.Tensor, ...], device: torch.device, streams: Streams
    ) -> None:
        """Allocate on `device` what `source` holds: the views' flat memory, plan rows and (3, N)
        int64 numbers."""
        self.source: tuple[torch.Tensor, ...] = ()
        self.pixels, self.plan, self.numbers = (
            torch.empty_like(tensor, device=device) for tensor in source
        )
        self.extras: dict[str, Any] = {}
        """Names and fields, which stay on the host."""
        self.copied: Any = None
        # The allocator may return memory that work queued on the current stream has yet to read.
        self.free = streams.done()


class DeviceStage:
    """Makes batches on the device from the uint8 views that the host renders up to the seam."""

    def __init__(
        self,
        dataset: Dataset,
        config: LoaderConfig,
        streams: Streams,
        device: torch.device,
        *,
        before_work: Callable[[], None] = lambda: None,
    ) -> None:
        """`streams` orders the work on `device`; `make_streams` makes the right one.

        `before_work`: called for each batch when the current stream waits for its copies and
        nothing else of the batch is queued there, for example to record an event.
        """
        self._dataset = dataset
        self._config = config
        self._streams = streams
        self._device = device
        self._before_work = before_work
        self._slots: list[_Slot] = []
        self._augmented: Any = None
        self._augment = BatchAugmenter(config.views, device)

    def batches(self, rendered: Generator[Rendered, None, None]) -> Generator[Batch, None, None]:
        """Finish the rendered batches, one batch behind the copies. Closing closes `rendered`."""
        ahead: collections.deque[_Slot] = collections.deque()
        with contextlib.closing(rendered):
            try:
                for one in rendered:
                    ahead.append(self._upload(one))
                    del one
                    if len(ahead) == SLOTS:
                        yield self._finish(ahead.popleft())
                while ahead:
                    yield self._finish(ahead.popleft())
            finally:
                # Source and target of a pending copy are freed here; their next owner does not know
                # of the copy.
                for slot in self._slots:
                    self._streams.host_waits(slot.copied)

    def _upload(self, rendered: Rendered) -> _Slot:
        """Queue the copies of a batch into the next slot, once its former batch is augmented."""
        streams, request = self._streams, rendered.request
        dataset, with_shard = self._dataset, bool(self._config.shard_in_id)
        ids = dataset.sample_ids(request.indices, shard_in_id=with_shard)
        targets = dataset.samples[request.indices]["target"]
        numbers = np.stack([ids, targets, request.indices])  # (3, N)
        pixels = rendered.memory
        if pixels is None:
            pixels = self._config.views.layout.pack(rendered.views)
        if pixels.device.type != "cpu":
            # A backend that renders on the device does so on the current stream.
            streams.side_waits(streams.done())
        host = (pixels, torch.from_numpy(request.rows), torch.from_numpy(numbers))
        source = tuple(self._page_locked(tensor) for tensor in host)
        if len(self._slots) < SLOTS:
            slot = _Slot(source, self._device, streams)
        else:
            slot = self._slots.pop(0)
            streams.host_waits(slot.copied)  # the slot's former `source` is freed below
            if slot.pixels.shape != pixels.shape:  # a short batch
                slot = _Slot(source, self._device, streams)
        streams.side_waits(slot.free)
        for tensor, target in zip(source, (slot.pixels, slot.plan, slot.numbers)):
            streams.copy(tensor, target)
        slot.source, slot.copied = source, streams.copied()
        slot.extras = extras(self._dataset, self._config, request)
        self._slots.append(slot)
        return slot

    def _page_locked(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor in page-locked memory where the device is CUDA, so that a copy does not block.

        Pixels lie there already, in the loader's pool; for them this is no copy.
        """
        pageable = self._device.type == "cuda" and tensor.device.type == "cpu"
        return tensor.pin_memory() if pageable else tensor

    def _finish(self, slot: _Slot) -> Batch:
        """Augment a slot's batch on the current stream into new tensors, and free the slot.

        torch's allocator reuses the memory of batches that the caller dropped, without a call of
        the CUDA runtime.
        """
        streams, views = self._streams, self._config.views
        streams.current_waits(slot.copied)
        # The kernels' workspace is one: the caller's stream may be another than at the last batch.
        if self._augmented is not None:
            streams.current_waits(self._augmented)
        self._before_work()
        count = len(views.views)
        columns = count * VIEW_FLOATS
        # Plan rows hold the columns of V views, here (V, N, VIEW_FLOATS), and then the boxes.
        parameters = slot.plan[:, :columns].unflatten(1, (count, VIEW_FLOATS)).movedim(1, 0)
        tail = slot.plan[:, columns:]
        masked_box = key_boxes = patch_corners = None
        if views.boxes:
            masked_box = tail[:, MASKED_BOX : MASKED_BOX + 4].clone()
            boxes = tail[:, KEY_BOXES : KEY_BOXES + 4 * views.boxes]
            key_boxes = boxes.unflatten(1, (views.boxes, 4)).clone()
        if views.patch_grid:
            corners = tail[:, KEY_BOXES + 4 * views.boxes :]
            patch_corners = corners.unflatten(1, (views.patch_grid**2, 2)).long()
        pixels = self._augment(
            slot.pixels,
            parameters,
            masked_box=masked_box if views.mask else None,
            dtype=self._config.dtype,
        )
        sample_id, target, index = slot.numbers.clone()
        batch = Batch(
            views=pixels,
            sample_id=sample_id,
            target=target,
            index=index,
            masked_box=masked_box,
            key_boxes=key_boxes,
            patch_corners=patch_corners,
            **slot.extras,
        )
        slot.free = self._augmented = streams.done()
        return batch


def make_streams(device: torch.device) -> Streams:
    """`CudaStreams` for a CUDA device, `InOrderStreams` otherwise."""
    return CudaStreams(device) if device.type == "cuda" else InOrderStreams()

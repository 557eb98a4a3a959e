"""From the host's seam to finished views on the device: the copy of one batch beside the step of
the one before.

Two slots take turns. A batch is copied into its slot on a side stream while the batch before it is
augmented and trained on; events order the two. The logic is the same on a CPU, where every copy is
done when it returns.
"""

import collections
import contextlib
from collections.abc import Generator
from typing import Any, Protocol

import numpy as np
import torch

from ..kernels.augment.triton import augmenter
from ..kernels.plan import KEY_BOXES, MASKED_BOX, VIEW_FLOATS
from .batch import Batch
from .config import LoaderConfig
from .request import Rendered
from .shards.dataset import Dataset

SLOTS = 2
"""One that is being copied into, one that is being read."""


class Streams(Protocol):
    """The order of work on a device, as `DeviceStage` needs it. An event is whatever `copied` and
    `done` return."""

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Queue a copy on the side stream."""

    def copied(self) -> Any:
        """An event that passes when the copies queued so far have been made."""

    def done(self) -> Any:
        """An event that passes when the work given to the current stream so far has been done."""

    def side_waits(self, event: Any) -> None:
        """Copies queued from now on wait for the event."""

    def current_waits(self, event: Any) -> None:
        """Work given to the current stream from now on waits for the event."""

    def host_waits(self, event: Any) -> None:
        """Return when the event has passed."""


class InOrder:
    """A device that does what it is told before it returns: the CPU."""

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copy now."""
        target.copy_(source)

    def copied(self) -> None:
        """Nothing is pending."""

    def done(self) -> None:
        """Nothing is pending."""

    def side_waits(self, event: None) -> None:
        """Nothing to wait for."""

    def current_waits(self, event: None) -> None:
        """Nothing to wait for."""

    def host_waits(self, event: None) -> None:
        """Nothing to wait for."""


class CudaStreams:
    """A side stream for copies, beside whatever stream the caller computes on. Never run: its
    authors have no GPU."""

    def __init__(self, device: torch.device) -> None:
        self._side = torch.cuda.Stream(device)

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Without the host waiting, where `source` is page-locked."""
        with torch.cuda.stream(self._side):
            target.copy_(source, non_blocking=True)

    def copied(self) -> torch.cuda.Event:
        """Recorded on the side stream."""
        return self._side.record_event()

    def done(self) -> torch.cuda.Event:
        """Recorded on the current stream."""
        return torch.cuda.current_stream(self._side.device).record_event()

    def side_waits(self, event: torch.cuda.Event) -> None:
        """On the device; the host goes on."""
        self._side.wait_event(event)

    def current_waits(self, event: torch.cuda.Event) -> None:
        """On the device; the host goes on."""
        torch.cuda.current_stream(self._side.device).wait_event(event)

    def host_waits(self, event: torch.cuda.Event) -> None:
        """The only place where the host waits: for a copy queued two batches ago, and at the end of
        an epoch."""
        event.synchronize()


class _Slot:
    """The memory that one batch at a time occupies on its way through.

    Who may touch it when: `pixels`, `plan` and `numbers` are written by the side stream once `free`
    has passed, and read by the current stream once `copied` has; `source`, the host's page-locked
    memory, goes back to its pool when the host has seen `copied` pass, which is why the slot holds
    on to it until then.
    """

    def __init__(
        self, source: tuple[torch.Tensor, ...], device: torch.device, streams: Streams
    ) -> None:
        """Memory for tensors like `source`: pixels, plan rows, and the identifying numbers."""
        self.source: tuple[torch.Tensor, ...] = ()
        self.pixels, self.plan, self.numbers = (
            torch.empty_like(tensor, device=device) for tensor in source
        )
        self.copied: Any = None
        # The allocator hands out memory that work queued on the current stream may yet have to
        # read.
        self.free = streams.done()


class DeviceStage:
    """Turns what the host rendered to the seam into batches on the device."""

    def __init__(
        self, dataset: Dataset, config: LoaderConfig, streams: Streams, device: torch.device
    ) -> None:
        """`streams` order the work on `device`; `make_streams` chooses them."""
        self._dataset = dataset
        self._config = config
        self._streams = streams
        self._device = device
        self._slots: list[_Slot] = []
        self._augment = augmenter(
            config.views.size, device, max_blur_sigma=config.views.max_blur_sigma
        )

    def batches(self, rendered: Generator[Rendered, None, None]) -> Generator[Batch, None, None]:
        """Each rendered batch, one behind the copies. Closing this closes `rendered`."""
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
                # Both ends of a copy are let go of here, and whoever gets that memory next knows
                # nothing of the copy.
                for slot in self._slots:
                    self._streams.host_waits(slot.copied)

    def _upload(self, rendered: Rendered) -> _Slot:
        """Queue the copies of one batch into the slot whose turn it is, behind the augmentation of
        its former batch."""
        streams, request = self._streams, rendered.request
        samples = self._dataset.samples[request.indices]
        numbers = np.stack([samples["sample_id"], samples["target"], request.indices])
        pixels = (
            rendered.pixels
            if isinstance(rendered.pixels, torch.Tensor)
            else torch.stack(rendered.pixels)
        )
        if pixels.device.type != "cpu":
            streams.side_waits(
                streams.done()
            )  # a loader that renders on the device does so on the current stream
        pageable = (pixels, torch.from_numpy(request.rows), torch.from_numpy(numbers))
        source = tuple(self._page_locked(tensor) for tensor in pageable)
        if len(self._slots) < SLOTS:
            slot = _Slot(source, self._device, streams)
        else:
            slot = self._slots.pop(0)
            streams.host_waits(slot.copied)  # before the former `source` is let go of
        streams.side_waits(slot.free)
        for tensor, target in zip(source, (slot.pixels, slot.plan, slot.numbers)):
            streams.copy(tensor, target)
        slot.source, slot.copied = source, streams.copied()
        self._slots.append(slot)
        return slot

    def _page_locked(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor where a copy to the device does not hold up the host; pixels come so from
        their pool already."""
        return (
            tensor.pin_memory()
            if self._device.type == "cuda" and tensor.device.type == "cpu"
            else tensor
        )

    def _finish(self, slot: _Slot) -> Batch:
        """Augment a slot's batch on the current stream, into memory that is the caller's, and free
        the slot.

        That memory is torch's allocator's to give: once the caller drops a batch, a later one gets
        it, without a call of the CUDA runtime.
        """
        streams, views = self._streams, self._config.views
        streams.current_waits(slot.copied)
        count, columns = len(views.views), len(views.views) * VIEW_FLOATS
        parameters = slot.plan[:, :columns].unflatten(1, (count, VIEW_FLOATS)).movedim(1, 0)
        tail = slot.plan[:, columns:]
        masked_box = tail[:, MASKED_BOX : MASKED_BOX + 4].clone() if views.boxes else None
        pixels = self._augment(
            slot.pixels,
            parameters,
            masked_box=masked_box if views.mask else None,
            dtype=self._config.dtype,
        )
        sample_id, target, index = slot.numbers.clone()
        batch = Batch(
            views=tuple(pixels),
            sample_id=sample_id,
            target=target,
            index=index,
            masked_box=masked_box,
            key_boxes=tail[:, KEY_BOXES:].unflatten(1, (views.boxes, 4)).clone()
            if views.boxes
            else None,
        )
        slot.free = streams.done()
        return batch


def make_streams(device: torch.device) -> Streams:
    """The device's own streams on CUDA, in-order work elsewhere."""
    return CudaStreams(device) if device.type == "cuda" else InOrder()

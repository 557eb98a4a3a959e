"""Metering of steps: their duration and the stall for data, on the clock of the run's device.

The host queues a device's work ahead of time, and then waits for the device inside `next(loader)`,
where memory for further batches becomes free. Its own clock would book that time as a wait for
data. On CUDA the meter therefore records events on the stream and reads them after they passed.
"""

import time
from dataclasses import dataclass
from typing import Any, Protocol

import torch


class Clock(Protocol):
    """Points in a device's work, and the seconds between them."""

    def mark(self) -> Any:
        """A point that passes when all work queued so far is complete."""

    def seconds(self, earlier: Any, later: Any) -> float:
        """Seconds between two marks that have passed."""


class HostClock:
    """The host's clock, for devices whose work is complete when its call returns."""

    def mark(self) -> float:
        """The present time, seconds."""
        return time.perf_counter()

    def seconds(self, earlier: float, later: float) -> float:
        """Difference of the times."""
        return later - earlier


class CudaClock:
    """Events on the current stream of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> torch.cuda.Event:
        """Record an event; the host goes on."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self, earlier: torch.cuda.Event, later: torch.cuda.Event) -> float:
        """Time between the events, by the device. RuntimeError if one has not passed yet."""
        return earlier.elapsed_time(later) / 1000


def make_clock(device: torch.device) -> Clock:
    """`CudaClock` for a CUDA device, `HostClock` otherwise."""
    return CudaClock(device) if device.type == "cuda" else HostClock()


@dataclass(frozen=True)
class StepTiming:
    """The marks of one step."""

    clock: Clock
    images: int
    """Images of the step, over all processes."""
    began: Any
    """End of the previous step."""
    asked: Any
    """The batch is requested: all work before the step is queued."""
    ready: Any
    """The batch has arrived on the device; the first work on it is queued behind this mark."""
    ended: Any

    def read(self) -> dict[str, float]:
        """Return `images_per_s` and `data_wait`; all work up to the step's end must be complete."""
        seconds = max(self.clock.seconds(self.began, self.ended), 1e-9)
        stalled = self.clock.seconds(self.asked, self.ready)
        return {
            "images_per_s": self.images / seconds,
            "data_wait": min(max(stalled / seconds, 0.0), 1.0),
        }


class StepMeter:
    """Marks the parts of each step: `ask`, `arrive`, `end`, and again.

    A step lasts from the end of the previous one, so that the durations add up to the run's and
    writing metrics and checkpoints counts. The data wait is the time between the end of the work
    that was queued when the batch was requested and the start of the first work on the batch.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.restart()

    def restart(self) -> None:
        """Begin the next step now; what happened since the end of the last one does not count."""
        self._began = self._asked = self._ready = self._clock.mark()

    def ask(self) -> None:
        """Mark the request for the next batch."""
        self._asked = self._clock.mark()
        self._ready = None

    def arrive(self) -> None:
        """Mark the arrival of the batch; only the first call after `ask` counts."""
        if self._ready is None:
            self._ready = self._clock.mark()

    def end(self, images: int) -> StepTiming:
        """Mark the end of a step of `images` images over all processes."""
        ended = self._clock.mark()
        timing = StepTiming(self._clock, images, self._began, self._asked, self._ready, ended)
        self._began = self._asked = self._ready = ended
        return timing

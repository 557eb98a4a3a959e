"""A device with a clock of its own: two streams as cursors of time, beside a host with another.

It is `Streams` for the device stage and `Clock` for the meter, so that the product's own code runs
on it. No second passes in a test.
"""

import dataclasses

import torch

from maskco_fast.loaders.device_stage import InOrderStreams


@dataclasses.dataclass
class SimulatedDevice(InOrderStreams):
    """What is queued on a stream starts after all earlier work there, and not before now."""

    copy_seconds: float = 0.001
    """Of one tensor, from the host to the device."""
    now: float = 0.0
    """The host's time, seconds."""
    side: float = 0.0
    current: float = 0.0
    """End of the work queued so far on each stream."""
    busy: float = 0.0
    """Seconds of work on the current stream."""
    host_waited: float = 0.0
    """Seconds that the host was blocked by events."""

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        super().copy(source, target)
        self.side = max(self.side, self.now) + self.copy_seconds

    def copied(self) -> float:  # type: ignore[override]
        return max(self.side, self.now)

    def done(self) -> float:  # type: ignore[override]
        return max(self.current, self.now)

    def side_waits(self, event: float) -> None:  # type: ignore[override]
        self.side = max(self.side, event)

    def current_waits(self, event: float) -> None:  # type: ignore[override]
        self.current = max(self.current, event)

    def host_waits(self, event: float) -> None:  # type: ignore[override]
        self.host_waited += max(0.0, event - self.now)
        self.now = max(self.now, event)

    def work(self, seconds: float, *, launch: float = 0.0) -> None:
        """Queue work on the current stream; queueing takes the host `launch` seconds."""
        self.current = max(self.current, self.now) + seconds
        self.busy += seconds
        self.now += launch

    mark = done

    def seconds(self, earlier: float, later: float) -> float:
        """Between two marks, which must have passed."""
        assert later <= self.now, "a mark is read before it has passed"
        return later - earlier

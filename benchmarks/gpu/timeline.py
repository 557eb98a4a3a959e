"""What a device did in some calls, from torch's profiler: busy share, and kernels by name."""

import gzip
import json
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity

DEVICE_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
"""Categories of the trace's events that are work of the device."""


@dataclass(frozen=True)
class Kernel:
    """All launches of one kernel."""

    name: str
    milliseconds: float
    """A call."""
    launches: float
    """A call."""
    registers: int | None = None
    """A thread."""


@dataclass(frozen=True)
class Timeline:
    """The device's work in some calls."""

    milliseconds: float
    """A call, from the first kernel's start to the last one's end."""
    busy: float
    """Share of that time in which at least one kernel or copy ran."""
    kernels: Sequence[Kernel]
    """The longest first."""

    @property
    def launches(self) -> float:
        """Kernels and copies a call."""
        return sum(kernel.launches for kernel in self.kernels)

    def table(self, most: int = 60) -> str:
        """The kernels that take longest, a line each."""
        lines = [
            f"{self.milliseconds:.2f} ms a call, busy {self.busy:.1%}, "
            f"{self.launches:.0f} launches a call"
        ]
        lines += [
            f"{kernel.milliseconds:9.3f} ms {kernel.launches:8.1f} x  {kernel.name[:150]}"
            for kernel in self.kernels[:most]
        ]
        return "\n".join(lines) + "\n"


def synchronize(device: str) -> None:
    """Wait until the device is idle."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def profile(
    call: Callable[[], Any], calls: int, device: str, trace: pathlib.Path | None = None
) -> Timeline | None:
    """Profile `calls` calls; None where no kernel was seen, as on a CPU.

    `trace`: where the whole trace is written, gzipped, for chrome://tracing.
    """
    on_cuda = device.startswith("cuda")
    activities = [ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(calls):
            call()
        synchronize(device)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        text = path.read_text()
    if trace is not None:
        trace.write_bytes(gzip.compress(text.encode(), 5))
    return summarise(json.loads(text)["traceEvents"], calls)


def summarise(events: Sequence[dict[str, Any]], calls: int) -> Timeline | None:
    """The timeline of a Chrome trace's events, which are in microseconds."""
    work = [event for event in events if event.get("ph") == "X" and event.get("cat") in DEVICE_WORK]
    if not work:
        return None
    spans = sorted((event["ts"], event["ts"] + event["dur"]) for event in work)
    covered = 0.0
    end = spans[0][0]
    for begin, stop in spans:
        covered += max(0.0, stop - max(begin, end))
        end = max(end, stop)
    whole = max(end - spans[0][0], 1e-9)
    by_name: dict[str, list[dict[str, Any]]] = {}
    for event in work:
        by_name.setdefault(event["name"], []).append(event)
    kernels = [
        Kernel(
            name,
            sum(event["dur"] for event in launched) / 1000 / calls,
            len(launched) / calls,
            launched[0].get("args", {}).get("registers per thread"),
        )
        for name, launched in by_name.items()
    ]
    kernels.sort(key=lambda kernel: -kernel.milliseconds)
    return Timeline(whole / 1000 / calls, covered / whole, kernels)

"""Run logging: JSON lines for every step, the loggers by name, and a progress line."""

import collections
import contextlib
import json
import os
import pathlib
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, TextIO

from maskco_fast.loaders.system.files import name_full_disk
from maskco_fast.loggers import LOGGERS, Logger
from maskco_fast.progress import LOG_SECONDS, TERMINAL_SECONDS, duration

Line = dict[str, float | int]
"""One step's metrics: step, epoch, loss, learning_rate, images_per_s, data_wait (share of the
step's time in which the device waited for data, 0..1), the method's other scalars, and at some
steps MEASURED. Times are the device's, without those of a measurement; see `StepMeter`.
"""

MEASURED = ("knn_top1",)
"""Metrics that only the steps of a measurement have: k-NN accuracy on the monitor's images, per
cent."""


class StepsFile:
    """metrics.jsonl or samples.jsonl: one line a step, in order, without duplicates.

    Opening the file for a run that resumes after `step` cuts every later line. A resumed run thus
    writes the file of an uninterrupted run.
    """

    def __init__(self, path: pathlib.Path, *, step: int) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        _truncate_after(path, step)
        self._file = path.open("a", encoding="utf-8")

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line and flush it to the operating system.

        Raises ValueError for a number that JSON does not have (NaN or infinity).
        """
        text = json.dumps(dict(line), allow_nan=False) + "\n"
        with name_full_disk(self._path):
            self._file.write(text)
            self._file.flush()

    def sync(self) -> None:
        """Force the lines to the disk, so that a later checkpoint is never ahead of this file."""
        with name_full_disk(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _truncate_after(path: pathlib.Path, step: int) -> None:
    """Cut the file after the last complete line of a step up to `step`."""
    if not path.exists():
        return
    kept = 0
    with path.open("rb") as file:
        for text in file:
            try:
                number = json.loads(text)["step"]
            except (ValueError, KeyError, TypeError):  # the process died while it wrote the line
                break
            if number > step or not text.endswith(b"\n"):
                break
            kept += len(text)
    os.truncate(path, kept)


class TrainingProgress:
    """The progress line of a run: rewritten in place on a terminal, appended to a log file."""

    def __init__(self, *, steps: int, window: int, stream: TextIO | None = None) -> None:
        """`steps`: of the whole run. `window`: steps over which the figures are averaged."""
        self._stream = stream if stream is not None else sys.stderr
        self._terminal = self._stream.isatty()
        self._steps = steps
        self._recent: collections.deque[tuple[float, Line]] = collections.deque(
            maxlen=max(window, 2)
        )
        self._measured: Line = {}
        self._interval = TERMINAL_SECONDS if self._terminal else LOG_SECONDS
        self._shown_at = -self._interval
        self._width = 0

    def add(self, line: Line) -> None:
        """Add a step's line; prints the progress at most once an interval."""
        now = time.monotonic()
        self._recent.append((now, line))
        self._measured.update({name: line[name] for name in MEASURED if name in line})
        if now - self._shown_at >= self._interval:
            self._show()

    def _show(self) -> None:
        first_at, first = self._recent[0]
        last_at, last = self._recent[-1]
        self._shown_at = last_at
        steps = int(last["step"]) - int(first["step"])
        left = (self._steps - int(last["step"])) * (last_at - first_at) / steps if steps else None
        lines = [line for _, line in self._recent]
        text = describe(lines, self._steps, remaining=left, measured=self._measured)
        if self._terminal:
            self._print("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            self._print(text + "\n")

    def _print(self, text: str) -> None:
        with contextlib.suppress(OSError):  # nobody reads any more: the terminal is closed
            self._stream.write(text)
            self._stream.flush()

    def close(self) -> None:
        """Print the last step and end the terminal's line."""
        if self._recent and self._recent[-1][0] != self._shown_at:
            self._show()
        if self._terminal and self._width:
            self._print("\n")


def describe(
    lines: Sequence[Line],
    steps: int,
    *,
    remaining: float | None,
    measured: Mapping[str, float] | None = None,
) -> str:
    """Format the progress of a run; the loss is the mean over `lines`.

    images/s and data wait are those of the whole time that the steps of `lines` took.

    For example `step 120/300 · 28.1 images/s · loss 4.812 · lr 0.0213 · data wait 1 % · ETA 3:12
    min`. `remaining`: seconds to the end, None while unknown. `measured`: the newest values of
    MEASURED, if there are any.
    """
    loss = sum(line["loss"] for line in lines) / len(lines)
    # A step's time, in units of its images; all steps have equally many.
    times = [1 / line["images_per_s"] for line in lines]
    speed = len(times) / sum(times)
    wait = sum(line["data_wait"] * time for line, time in zip(lines, times)) / sum(times)
    last = lines[-1]
    knn = f"k-NN {measured['knn_top1']:.1f} % · " if measured and "knn_top1" in measured else ""
    eta = "?" if remaining is None else duration(remaining)
    return (
        f"step {last['step']}/{steps} · {speed:.1f} images/s · "
        f"loss {loss:.3f} · {knn}lr {last['learning_rate']:.3g} · "
        f"data wait {100 * wait:.0f} % · ETA {eta}"
    )


class Metrics:
    """All logs of a run that starts or resumes after `step` and ends at `steps`."""

    def __init__(
        self,
        run_dir: pathlib.Path,
        *,
        step: int,
        steps: int,
        log_every: int,
        loggers: Sequence[str],
        log_samples: bool,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """`loggers`: names in `LOGGERS`; MissingPackage where one is not installed. `config`: the
        run's settings by dotted name, for trackers."""
        self._file = StepsFile(run_dir / "metrics.jsonl", step=step)
        self._samples = StepsFile(run_dir / "samples.jsonl", step=step) if log_samples else None
        self._progress = TrainingProgress(steps=steps, window=log_every)
        self._log_every = log_every
        self._loggers: dict[str, Logger] = {}
        for name in loggers:
            make = LOGGERS[name]
            if make is not None:
                self._loggers[name] = make(run_dir, step=step, config=config or {})

    def record(self, line: Line, sample_ids: Sequence[int]) -> None:
        """Log a step: its metrics and the ids of its images."""
        self._file.write(line)
        if self._samples is not None:
            self._samples.write(
                {"step": line["step"], "epoch": line["epoch"], "sample_ids": sample_ids}
            )
        self._progress.add(line)
        step = int(line["step"])
        due = line if step % self._log_every == 0 else line.keys() & set(MEASURED)
        values = {name: line[name] for name in due if name != "step"}
        if values:
            self._each_logger(lambda logger: logger.log(step, values))

    def _each_logger(self, call: Callable[[Logger], None]) -> None:
        """Call each logger; one that fails and may do so is left out from then on."""
        for name, logger in list(self._loggers.items()):
            try:
                call(logger)
            except Exception as error:  # a tracker's server is away; packages raise every kind
                if not logger.may_fail:
                    raise
                del self._loggers[name]
                warnings.warn(
                    f"the run goes on without --loggers {name}, which failed: {error}",
                    RuntimeWarning,
                    stacklevel=2,
                )

    def sync(self) -> None:
        """Force the JSON lines to the disk; see `StepsFile.sync`."""
        self._file.sync()
        if self._samples is not None:
            self._samples.sync()

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.close()
        # On a full disk, closing fails too: the error that ended the run is the one to report.
        with contextlib.suppress(OSError) if error is not None else contextlib.nullcontext():
            self._file.close()
            if self._samples is not None:
                self._samples.close()
            self._each_logger(lambda logger: logger.close())

"""Timed passes of the bench's rows: images/s, CPU time and memory, after the parity gate."""

import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from maskco_fast.bench.harness import RowError, RowProcess, Spread, ratio_by_round, run_rounds
from maskco_fast.bench.rows import ROWS
from maskco_fast.bench.setting import Setting

CALIBRATION_BATCHES = 4
"""Batches of the pass that estimates a row's speed, where a round has a time limit."""


@dataclass
class Result:
    """One row's figures."""

    name: str
    kind: str
    """ours, peer or bound."""
    what: str
    parity: str
    """Of ours: the difference from the reference that its gate let through. Of a peer: how its
    recipe differs."""
    views: int
    """Views that the row makes of each image."""
    error: str | None = None
    """Why the row has no figures."""
    missing: bool = False
    """Whether it has none because a package or library is missing."""
    images_per_s: float | None = None
    """Median over the rounds."""
    spread: list[float] = dataclasses.field(default_factory=list)
    """Slowest and fastest round, images/s."""
    cpu_ms_per_image: float | None = None
    """Median CPU time of the row's process and its workers."""
    peak_mb: float | None = None
    """Highest resident memory of the row's processes, shared pages counted in each."""
    first_batch_s: float | None = None
    """Seconds from opening the first pass to its first batch."""
    of_decoding: float | None = None
    """Its images/s over those of `decode_only`; median of the ratios by round."""
    rounds: list[float] = dataclasses.field(default_factory=list)
    """Images/s of each round."""

    @property
    def red(self) -> bool:
        """Whether a row of ours failed for another reason than a missing package."""
        return self.kind == "ours" and self.error is not None and not self.missing


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One pass of a row over its images."""

    images: int
    seconds: float
    first_batch_s: float
    cpu_s: float
    """CPU time of the row's process and its descendants."""
    peak_mb: float

    @property
    def images_per_s(self) -> float:
        """Throughput of the pass."""
        return self.images / self.seconds


class TimedRow:
    """A row in its own process: its parity gate, and timed passes over its images."""

    def __init__(self, name: str, setting: Setting) -> None:
        self._running = ROWS[name].open(setting)

    def check_parity(self) -> str:
        """See `Running.check_parity`."""
        return self._running.check_parity()

    def images(self) -> int:
        """Images of a full pass."""
        return self._running.images

    def timed(self, images: int) -> Pass:
        """Time a pass over about `images` images; RowError where none arrives."""
        cpu = _cpu_seconds()
        began = time.perf_counter()
        delivered, first = 0, 0.0
        for count in self._running.epoch(images):
            first = first or time.perf_counter() - began
            delivered += count
        seconds = time.perf_counter() - began
        if delivered == 0:
            raise RowError(
                "it delivered no images; check its log above, or pass more images than a batch"
            )
        return Pass(
            images=delivered,
            seconds=seconds,
            first_batch_s=first,
            cpu_s=_cpu_seconds() - cpu,
            peak_mb=sum(_peak_kib(pid) for pid in _process_tree()) / 1024,
        )

    def close(self) -> None:
        """Close the row."""
        self._running.close()


def time_rows(
    names: Sequence[str],
    setting: Setting,
    *,
    rounds: int,
    seconds: float | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Result]:
    """Time these rows of `ROWS`, a result each, in the order of `names`.

    Each row opens, passes its parity gate, makes an uncounted pass (compilation, caches), and then
    `rounds` interleaved passes. `seconds` limits a pass: a slow row sees fewer images. `say` gets a
    line for each failure and each round. A row that cannot run has its `error` set.
    """
    results = {name: _empty_result(name) for name in names}
    processes: list[RowProcess] = []
    images: dict[str, int] = {}
    try:
        for name in names:
            row = RowProcess(name, partial(TimedRow, name, setting))
            processes.append(row)
            try:
                images[name] = _prepare(row, results[name], setting, seconds)
            except RowError as error:
                say(f"{name}: {error}")
            else:
                say(f"{name}: ready, {images[name]} images a round")

        def after_round(number: int, passes: Mapping[str, Pass]) -> None:
            speeds = (f"{name} {one.images_per_s:.0f}" for name, one in passes.items())
            say(f"round {number} of {rounds}: {', '.join(speeds)}")

        passes = run_rounds(
            processes, rounds, lambda row: row.ask("timed", images[row.name]), after_round
        )
        for row in processes:
            _summarise(results[row.name], passes[row.name], row.error)
    finally:
        for row in processes:
            row.close()
    _compare_with_decoding(list(results.values()))
    return list(results.values())


def _empty_result(name: str) -> Result:
    row = ROWS[name]
    return Result(name=name, kind=row.kind, what=row.what, parity=row.parity, views=row.views)


def _prepare(row: RowProcess, result: Result, setting: Setting, seconds: float | None) -> int:
    """Check parity, warm up, and return the images of a round."""
    result.parity = row.ask("check_parity") or result.parity
    images = row.ask("images")
    batch = setting.batch_size
    if seconds is None:
        result.first_batch_s = round(row.ask("timed", images).first_batch_s, 2)
        return images
    few = min(images, CALIBRATION_BATCHES * batch)
    result.first_batch_s = round(row.ask("timed", min(few, 2 * batch)).first_batch_s, 2)
    affordable = int(row.ask("timed", few).images_per_s * seconds)
    return min(images, max(affordable // batch, 2) * batch)


def _summarise(result: Result, passes: list[Pass], error: RowError | None) -> None:
    """Fill in the figures over all rounds."""
    if error is not None:
        result.error = str(error)
        result.missing = error.missing
        return
    result.rounds = [one.images_per_s for one in passes]
    speed = Spread.of(result.rounds)
    result.images_per_s = round(speed.median, 1)
    result.spread = [round(speed.lowest, 1), round(speed.highest, 1)]
    milliseconds = Spread.of(1000 * one.cpu_s / one.images for one in passes)
    result.cpu_ms_per_image = round(milliseconds.median, 3)
    result.peak_mb = round(max(one.peak_mb for one in passes))


def _compare_with_decoding(results: list[Result]) -> None:
    """Fill in each row's share of the decoder's speed."""
    decoding = next((one for one in results if one.name == "decode_only" and one.rounds), None)
    for result in results:
        if decoding is not None and result.rounds and result is not decoding:
            share = ratio_by_round(result.rounds, decoding.rounds).median
            result.of_decoding = round(share, 3)


def _process_tree() -> list[int]:
    """This process and its descendants."""
    found = [os.getpid()]
    for pid in found:  # grows while it is read: breadth first
        for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                found.extend(int(child) for child in task.read_text().split())
            except OSError:  # the process ended in between
                continue
    return found


def _cpu_seconds() -> float:
    """User and system time of this process, its living descendants and those it has waited for."""
    ticks = 0
    for pid in _process_tree():
        try:
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # the process ended in between
            continue
        # utime, stime, cutime and cstime: fields 14 to 17 of proc(5); the list starts at field 3.
        ticks += sum(int(fields[at]) for at in (11, 12, 13, 14))
    return ticks / os.sysconf("SC_CLK_TCK")


def _peak_kib(pid: int) -> int:
    """The process's highest resident memory."""
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:  # the process ended in between
        return 0
    return next(
        (int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0
    )

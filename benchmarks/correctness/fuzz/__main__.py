"""Damaged files through every reader: memory that may not be touched, and a referee each.

    python -m benchmarks.correctness.fuzz                       # a minute, all targets in turn
    python -m benchmarks.correctness.fuzz --seconds 3600 --only jpeg --findings runs/fuzz

Rounds run in child processes, so that a crash or a hang ends one round and is a finding. The same
seed makes the same inputs. Prints executions and findings by target; the exit code is 1 after a
finding. The inputs are kept in `--findings`.
"""

import contextlib
import faulthandler
import mmap
import multiprocessing
import os
import pathlib
import resource
import shutil
import signal
import sys
import time
import traceback
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import numpy as np
import psutil
import tyro

from benchmarks.correctness.fuzz import targets
from benchmarks.correctness.fuzz.targets import TARGETS, Finding, Target
from maskco_fast.kernels.errors import InvalidInput

MAX_INPUT = 64 << 20
SLOW_S = 20.0
"""CPU time of one input that is a finding."""
HANG_S = 600.0
"""Seconds without a second of CPU time after which an input hangs, which ends its round."""
HANG_CPU_S = 300.0
"""CPU time after which an input hangs. The clock alone would blame a busy machine on the input."""
REPORT_S = 300.0
"""Time between two lines of progress."""
GREEDY_MB = 1500
"""Growth of a process by one input that is a finding."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Damaged files through every reader."""

    seconds: float = 60.0
    """When to stop: no round begins later."""
    seed: int = 0
    """Determines every input."""
    only: tuple[str, ...] = ()
    """Names of targets; default: all."""
    findings: pathlib.Path | None = None
    """Folder for the inputs that break a rule."""


@dataclass
class Tally:
    """What happened to one target."""

    executions: int = 0
    findings: dict[str, bytes] = field(default_factory=dict)
    """The first input for each message."""


def describe(error: Exception) -> str:
    """A message that is alike for like failures: the rule, or the exception and where it rose."""
    if isinstance(error, Finding):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = next((frame for frame in reversed(frames) if "benchmarks" not in frame.filename), None)
    where = f" in {pathlib.Path(place.filename).name}:{place.name}" if place else ""
    return f"{type(error).__name__} escapes{where}"


def run_round(
    target: Target, seed: int, number: int, count: int, before: mmap.mmap | None = None
) -> Tally:
    """Try `count` inputs of a target. `before` receives each input before it is tried."""
    tally = Tally()
    for n in range(count):
        random = np.random.default_rng((seed, number, n))
        data = target.make(random)[:MAX_INPUT]
        if before is not None:
            before[:8] = len(data).to_bytes(8, "little")
            before[8 : 8 + len(data)] = data
        size = _peak_mb()
        took, message = _try(target, data, random)
        if took > SLOW_S:  # once more: the first time it may have compiled a kernel
            took, message = _try(target, data, random)
        if message:
            tally.findings.setdefault(message, data)
        if took > SLOW_S:
            tally.findings.setdefault(f"takes more than {SLOW_S:.0f} s", data)
        # The first input also imports packages.
        if n and _peak_mb() - size > GREEDY_MB:
            tally.findings.setdefault(f"takes more than {GREEDY_MB} MB", data)
        tally.executions += 1
    return tally


def _try(target: Target, data: bytes, random: np.random.Generator) -> tuple[float, str]:
    """Check one input: its CPU seconds, and which rule it breaks, if any."""
    began = time.process_time()
    message = ""
    try:
        target.check(data, random)
    except Exception as error:
        message = describe(error)
    return time.process_time() - began, message


def _peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def _child(target: Target, seed: int, number: int, before: mmap.mmap, answer: Connection) -> None:
    faulthandler.disable()  # a crash is reported as a finding
    # Pillow's decoders report each damaged file there, at length.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        answer.send(run_round(target, seed, number, target.per_round, before))
    finally:
        shutil.rmtree(targets.scratch_folder(), ignore_errors=True)


def in_child(target: Target, seed: int, number: int) -> Tally:
    """A round in a process of its own; its end by a signal, or a hang, is a finding."""
    before = mmap.mmap(-1, MAX_INPUT + 8)
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    process = fork.Process(target=_child, args=(target, seed, number, before, theirs))
    process.start()
    theirs.close()
    watch = _Watch(process.pid or 0)
    last = b""
    tally: Tally | None = None
    while tally is None:
        if ours.poll(1.0):
            try:
                tally = ours.recv()
            except EOFError:  # the process has ended without an answer
                process.join()
                tally = Tally(0, {end_of(process.exitcode or 0): _last_input(before)})
            break
        if _last_input(before) != last:
            last = _last_input(before)
            watch.reset()
        elif watch.hangs():
            process.kill()
            tally = Tally(0, {"hangs": last})
    process.join()
    return tally


class _Watch:
    """Tells whether a process has come to a halt, or runs for ever, since `reset`."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self.reset()

    def reset(self) -> None:
        """A new input begins."""
        self._began = self._moved = self._used()
        self._since = time.monotonic()

    def hangs(self) -> bool:
        """Whether the input has used too much CPU time, or none for long."""
        used = self._used()
        if used - self._moved > 1.0:
            self._moved, self._since = used, time.monotonic()
        return used - self._began > HANG_CPU_S or time.monotonic() - self._since > HANG_S

    def _used(self) -> float:
        """CPU time of the process so far, seconds."""
        with contextlib.suppress(psutil.NoSuchProcess):
            times = self._process.cpu_times()
            return times.user + times.system
        return 0.0


def _last_input(before: mmap.mmap) -> bytes:
    return bytes(before[8 : 8 + int.from_bytes(before[:8], "little")])


def end_of(code: int) -> str:
    """How a process ended, by its exit code."""
    return f"ends the process by {signal.Signals(-code).name}" if code < 0 else f"exits with {code}"


def main(options: Options) -> int:
    """Fuzz the targets in turn until the time is over; returns 1 after a finding."""
    names = [target.name for target in TARGETS]
    unknown = set(options.only) - set(names)
    if unknown:
        raise InvalidInput(f"`only` must be among {names}, got {sorted(unknown)}.")
    chosen = [target for target in TARGETS if not options.only or target.name in options.only]
    totals = {target.name: Tally() for target in chosen}
    end = time.monotonic() + options.seconds
    next_report = time.monotonic() + REPORT_S
    number = 0
    while time.monotonic() < end:
        for target in chosen:
            tally = in_child(target, options.seed, number)
            total = totals[target.name]
            total.executions += tally.executions
            for message, data in tally.findings.items():
                if message not in total.findings:
                    total.findings[message] = data
                    print(f"{target.name}: {message} ({len(data)} bytes)", flush=True)
                    _keep(options.findings, f"{target.name}-{message}", data)
            if time.monotonic() >= end:
                break
        number += 1
        if time.monotonic() > next_report:
            next_report += REPORT_S
            print(_summary(totals), flush=True)
    for name, total in totals.items():
        print(f"{name:12}{total.executions:12,} executions, {len(total.findings)} findings")
    print(f"{_summary(totals)}, seed {options.seed}")
    return int(any(total.findings for total in totals.values()))


def _summary(totals: dict[str, Tally]) -> str:
    executions = sum(total.executions for total in totals.values())
    findings = sum(len(total.findings) for total in totals.values())
    return f"{executions:,} executions, {findings} findings"


def _keep(folder: pathlib.Path | None, name: str, data: bytes) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        plain = "".join(c if c.isalnum() else "_" for c in name)[:80]
        (folder / f"{plain}.bin").write_bytes(data)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))

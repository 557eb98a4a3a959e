"""The benchmark harness: rows in processes of their own, in interleaved rounds, and the statistics
over the rounds.

A round asks every row once, one after the other, so that a disturbance of the machine falls on all
rows alike. A row's processes are stopped while it is not their turn: a pipeline that reads ahead
would otherwise take time from the next row.
"""

import contextlib
import multiprocessing
import os
import platform
import signal
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any

import torch

from maskco_fast.kernels.errors import MaskCoError
from maskco_fast.loaders.system.cpus import cpu_model, usable_cpus

PRELOADED = ["torch", "torchvision", "maskco_fast.kernels.render.jpegs"]
"""Modules that every row needs, imported once for all; no peer's package is among them."""


@dataclass(frozen=True)
class Spread:
    """Median and range of a figure over the rounds."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """The spread of at least one value."""
        found = [float(value) for value in values]
        return cls(statistics.median(found), min(found), max(found))

    def text(self, digits: int = 0, unit: str = "") -> str:
        """ "1648 (1524-1666)"."""
        median, low, high = (
            f"{value:.{digits}f}{unit}" for value in (self.median, self.lowest, self.highest)
        )
        return f"{median} ({low}-{high})"


def ratio_by_round(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """The ratio within each round: a disturbance that slows a whole round cancels."""
    return Spread.of(a / b for a, b in zip(numerators, denominators))


def machine() -> str:
    """The machine and versions that figures belong to, in a line."""
    model = cpu_model()[0] or platform.processor() or platform.machine()
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{model}, {usable_cpus()} CPUs; {versions}"


class RowError(MaskCoError):
    """A row's process failed. The message is one line."""

    def __init__(self, message: str, *, missing: bool = False) -> None:
        super().__init__(message)
        self.missing = missing
        """Whether a package or library is missing, as opposed to a row that is broken."""


class RowProcess:
    """A process that holds one row, opened at the first question and stopped between questions.

    Rows are forked from one clean process, which has only imported `PRELOADED` and keeps the
    environment variables of its start. `open_row` must pickle. It returns any object; `ask` calls
    the object's methods. A `close` method is called at the end where there is one.
    """

    def __init__(self, name: str, open_row: Callable[[], Any]) -> None:
        self.name = name
        self.error: RowError | None = None
        """Why the row failed; it is not asked again."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self._pipe, child_pipe = context.Pipe()
        self._process = context.Process(target=_serve, args=(child_pipe, open_row))
        self._process.start()
        child_pipe.close()
        self._pipe.recv()  # from here on the child leads a process group, which signals reach

    def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method of the row and return its result; `RowError` where it raises or the process
        ends."""
        if self.error is not None:
            raise self.error
        try:
            self._signal(signal.SIGCONT)
            self._pipe.send((method, arguments))
            answer = self._pipe.recv()
            self._signal(signal.SIGSTOP)
        except (EOFError, OSError):
            self._process.join()
            answer = RowError(f"its process ended with exit code {self._process.exitcode}")
        if isinstance(answer, RowError):
            self.error = answer
            raise answer
        return answer

    @property
    def pid(self) -> int:
        """The row's process, which is also its process group."""
        assert self._process.pid is not None  # it has been started
        return self._process.pid

    @property
    def exitcode(self) -> int | None:
        """The exit code, None while the process lives."""
        return self._process.exitcode

    def _signal(self, number: int) -> None:
        """Signal the row's process and its workers."""
        with contextlib.suppress(ProcessLookupError):  # it has ended, which the pipe reports
            os.killpg(self.pid, number)

    def close(self) -> None:
        """End the process; it gets ten seconds to close its row."""
        self._signal(signal.SIGCONT)
        with contextlib.suppress(OSError):  # the process has ended already
            self._pipe.send(None)
        self._process.join(10)
        if self._process.is_alive():
            self._signal(signal.SIGKILL)
            self._process.join()
        self._pipe.close()

    def __enter__(self) -> "RowProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _serve(pipe: Connection, open_row: Callable[[], Any]) -> None:
    """The child's loop: open the row, answer questions until None arrives."""
    os.setpgid(0, 0)
    # Rows that are stopped when the bench is killed end with the process that forked them, which
    # ends when all copies of this pipe are closed.
    os.close(forkserver._forkserver._forkserver_alive_fd)  # type: ignore[attr-defined]
    pipe.send("ready")
    row = None
    while (question := _next_question(pipe)) is not None:
        method, arguments = question
        try:
            row = open_row() if row is None else row
            answer = getattr(row, method)(*arguments)
        except Exception as error:  # any library's failure is the row's result
            answer = _row_error(error)
        pipe.send(answer)
    if row is not None and hasattr(row, "close"):
        row.close()


def _next_question(pipe: Connection) -> tuple[str, tuple[Any, ...]] | None:
    """A method and its arguments; None at the end, and where the parent has died."""
    try:
        return pipe.recv()
    except (EOFError, ConnectionResetError):
        return None


def _row_error(error: Exception) -> RowError:
    """The error in one line, which pickles whatever the library's exception holds."""
    if isinstance(error, RowError):
        return error
    text = str(error) or type(error).__name__
    first = text.strip().splitlines()[0][:300]
    named = first if isinstance(error, MaskCoError) else f"{type(error).__name__}: {first}"
    return RowError(named, missing=isinstance(error, ImportError))


def run_rounds(
    rows: Sequence[RowProcess],
    rounds: int,
    ask: Callable[[RowProcess], Any],
    after_round: Callable[[int, Mapping[str, Any]], None] = lambda number, answers: None,
) -> dict[str, list[Any]]:
    """The answers of each row by round, each round asking all rows in turn.

    A row that fails is left out of later rounds; its `error` says why. `after_round` gets the
    number, from 1, and the round's answers.
    """
    answers: dict[str, list[Any]] = {row.name: [] for row in rows}
    for number in range(1, rounds + 1):
        newest = {}
        for row in rows:
            if row.error is None:
                with contextlib.suppress(RowError):
                    newest[row.name] = ask(row)
                    answers[row.name].append(newest[row.name])
        after_round(number, newest)
    return answers

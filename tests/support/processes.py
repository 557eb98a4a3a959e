"""Child processes that start with torch imported: forks of one clean server.

A new interpreter takes seconds of CPU time to import torch, a fork milliseconds. The server has
imported `PRELOADED` and started no thread. Where the start itself is tested, the command line or
the environment of an import, a test runs `sys.executable` instead.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import pathlib
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

import torch.multiprocessing

from maskco_fast.bench import harness

PRELOADED = [*harness.PRELOADED, "maskco_fast.training.trainer"]
"""Modules of most children. The benchmark rows share the server; the first to start it decides."""


def fork_context() -> ForkServerContext:
    """The context whose processes are forks of the server."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(PRELOADED)
    return found


def run_ranks(function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Call `function(rank, *arguments)` in two processes; raises what one of them raises."""
    fork_context()
    torch.multiprocessing.start_processes(function, arguments, nprocs=2, start_method="forkserver")


@dataclasses.dataclass(frozen=True)
class Ended:
    """A process that has ended, with the attributes of `subprocess.CompletedProcess`."""

    returncode: int
    """As of `subprocess`: -9 after SIGKILL."""
    stdout: str
    stderr: str


class Running:
    """A process of `started`, with methods of `subprocess.Popen`."""

    def __init__(self, process: ForkServerProcess, folder: pathlib.Path) -> None:
        self._process = process
        self._folder = folder

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None  # it has been started
        os.kill(self._process.pid, number)

    def wait(self, timeout: float = 120) -> Ended:
        """The process's end; AssertionError where it still runs after `timeout` seconds."""
        self._process.join(timeout)
        assert self._process.exitcode is not None, f"still running after {timeout} s"
        streams = ((self._folder / name).read_text() for name in ("stdout", "stderr"))
        return Ended(self._process.exitcode, *streams)


@contextlib.contextmanager
def started(
    main: Callable[[Sequence[str]], int],
    arguments: Sequence[str],
    environments: Sequence[Mapping[str, str]] = ({},),
) -> Iterator[list[Running]]:
    """Run `main(arguments)` in a process for each environment; kills those left at the end."""
    with contextlib.ExitStack() as stack:
        running = []
        for environment in environments:
            folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
            process = fork_context().Process(
                target=_call, args=(main, list(arguments), dict(environment), folder)
            )
            process.start()
            stack.callback(process.join)
            stack.callback(process.kill)
            running.append(Running(process, folder))
        yield running


def run_mains(
    main: Callable[[Sequence[str]], int],
    arguments: Sequence[str],
    environments: Sequence[Mapping[str, str]] = ({},),
) -> list[Ended]:
    """The ends of the processes of `started`."""
    with started(main, arguments, environments) as running:
        return [one.wait() for one in running]


def free_port() -> int:
    """A port of this machine that no process listens at."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def rank_environments(size: int) -> list[dict[str, str]]:
    """What torchrun sets for each of `size` ranks on this machine, which meet at a free port."""
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    world = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), **address}
    return [{"RANK": str(rank), "LOCAL_RANK": str(rank), **world} for rank in range(size)]


def _call(
    main: Callable[[Sequence[str]], int],
    arguments: Sequence[str],
    environment: Mapping[str, str],
    folder: pathlib.Path,
) -> None:
    """The child's part: its output goes to files, its result is the exit code."""
    os.environ.update(environment)
    for number, stream in ((1, "stdout"), (2, "stderr")):
        file = os.open(folder / stream, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    sys.exit(main(arguments))

"""The lock of a kernel between real processes, one of which is killed while it compiles."""

import os
import signal
import subprocess
import sys
import time

import pytest

from maskco_fast.kernels.compiler.lock import lock_file

pytest.importorskip("fcntl", reason="this system has no file locks")

KERNEL = """
from maskco_fast.kernels.compiler.jit import inline_jit, jit


@inline_jit()
def double(x):
    return 2 * x


@jit()
def quadruple(x):
    return double(double(x))
"""
COMPILE = "import kernel; print(kernel.quadruple(3), kernel.double(4))"
HANG = """
import time
import kernel
kernel.quadruple._compiler.compile = lambda *arguments: print(flush=True) or time.sleep(600)
kernel.quadruple(3)
"""


@pytest.fixture
def start(tmp_path):
    """A function that starts a process with `KERNEL` and a cache of its own."""
    (tmp_path / "kernel.py").write_text(KERNEL)
    environment = {
        **os.environ,
        "MASKCO_FAST_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": str(tmp_path),
    }
    started = []

    def run(code):
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def test_processes_wait_for_the_one_that_compiles_and_survive_its_death(start, tmp_path):
    killed = start(HANG)
    assert killed.stdout.readline() == "\n"  # it has the lock
    others = [start(COMPILE) for _ in range(3)]
    (lock,) = tmp_path.rglob("*.lock")
    assert lock_file(lock, patience=0.2) is None
    killed.send_signal(signal.SIGKILL)
    ended = [process.communicate() for process in others]
    assert [out for out, _ in ended] == ["12 8\n"] * 3
    assert sum("compiled quadruple" in told for _, told in ended) == 1
    assert {path.suffix for path in tmp_path.rglob("*quadruple*")} == {".nbi", ".nbc", ".lock"}


def test_a_lock_ends_with_its_file(tmp_path):
    path = tmp_path / "new" / "lock"
    first = lock_file(path)
    assert first is not None
    began = time.monotonic()
    assert lock_file(path, patience=0.1) is None
    assert time.monotonic() - began >= 0.1
    first.close()
    again = lock_file(path, patience=0)
    assert again is not None
    again.close()


def test_without_locks_nothing_waits(tmp_path):
    (tmp_path / "file").touch()
    assert lock_file(tmp_path / "file" / "lock") is None

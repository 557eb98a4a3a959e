"""A child process in which Triton interprets its kernels on the CPU."""

import contextlib
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest


def _knows_booleans() -> bool:
    """Whether Triton's interpreter has the type int1, which the one of Triton 3.2 lacks."""
    from triton.runtime.interpreter import InterpreterBuilder

    return hasattr(InterpreterBuilder, "get_int1_ty")


@contextlib.contextmanager
def triton_interpreter() -> Iterator[ProcessPoolExecutor]:
    """One process with TRITON_INTERPRET=1, which must be set before Triton is first imported.

    Skips the test where Triton's interpreter cannot run our kernels.
    """
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    try:
        pool.submit(os.getpid).result()  # the child starts, with this environment
    finally:
        if before is None:
            del os.environ["TRITON_INTERPRET"]
        else:
            os.environ["TRITON_INTERPRET"] = before
    with pool:
        if not pool.submit(_knows_booleans).result():
            pytest.skip("Triton's interpreter is too old; that of torch 2.14 is known to work")
        yield pool

"""Where the Triton kernels are tested: in a process that interprets them, and on a GPU."""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch

from tests.support.interpreter import triton_interpreter


@pytest.fixture(scope="session")
def interpreter() -> Iterator[ProcessPoolExecutor]:
    """A child process in which Triton interprets its kernels on the CPU."""
    pytest.importorskip("triton")
    with triton_interpreter() as pool:
        yield pool


@pytest.fixture(scope="module", params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Call a function with "cpu" in the interpreter's process, or with "cuda" here."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")

    def call(function: Callable[..., Any], *arguments: Any) -> Any:
        if request.param == "cuda":
            return function("cuda", *arguments)
        pool = request.getfixturevalue("interpreter")
        return pool.submit(function, "cpu", *arguments).result()

    return call

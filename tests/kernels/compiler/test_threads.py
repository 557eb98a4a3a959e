"""Parallel kernels on PyTorch's threads: every part runs once, whatever the number of threads."""

import numpy as np
import pytest

from maskco_fast.kernels.compiler.jit import inline_jit, jit
from maskco_fast.kernels.compiler.threads import in_parts
from maskco_fast.networks import batch_norm


@inline_jit()
def _mark(part, parts, times, done):
    done[part] += times * parts


@jit()
def mark_twice(entry, parts, times, done):
    """Two parallel calls in one function, the second with other argument types."""
    in_parts(entry, parts, _mark, (times, done))
    in_parts(entry, parts, _mark, (np.float32(1), done))


@pytest.mark.parametrize("parts", [0, 1, 2, 7])
@pytest.mark.parametrize("entry", [0, batch_norm._openmp()], ids=["this thread", "torch's threads"])
def test_every_part_is_done_once(entry, parts):
    done = np.zeros(9, np.int64)
    for _ in range(50):
        mark_twice(entry, parts, 2, done)
    assert done.tolist() == [50 * 3 * parts] * parts + [0] * (9 - parts)


def test_torchs_threads_are_found():
    """On Linux; elsewhere one thread does all."""
    assert batch_norm._openmp() > 0

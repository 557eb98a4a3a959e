"""Calls of kernels by address."""

from typing import NamedTuple

import numpy as np

from maskco_fast.kernels.compiler.address import address_of, call_kernel
from maskco_fast.kernels.compiler.jit import jit


class Pair(NamedTuple):
    """An argument that is no scalar."""

    values: np.ndarray
    factor: float


@jit()
def total(pair, offset, where):
    """A callee that reads a tuple's array and writes to an array."""
    where[0] = pair.factor * pair.values.sum()
    return np.int64(len(pair.values) + offset)


@jit()
def negative_total(pair, offset, where):
    """A callee of the same types."""
    where[0] = -pair.factor * pair.values.sum()
    return np.int64(-offset)


@jit()
def both(first, second, pair, offset, where):
    """A caller of two kernels that are chosen at run time."""
    one = call_kernel(first, (pair, offset, where[:1]))
    return one, call_kernel(second, (pair, offset, where[1:]))


def test_kernels_are_called_by_address():
    where = np.zeros(2)
    arguments = Pair(np.arange(5.0), 0.5), 7, where
    plus, minus = (address_of(kernel, *arguments) for kernel in (total, negative_total))
    assert both(plus, minus, *arguments) == (12, -7)
    np.testing.assert_array_equal(where, [5, -5])
    assert both(minus, plus, *arguments) == (-7, 12)
    np.testing.assert_array_equal(where, [-5, 5])
    assert address_of(total, *arguments) == plus

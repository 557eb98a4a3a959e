"""A pool of batch buffers: a buffer is reused once no tensor refers to it."""

import math
import sys
import threading

import numpy as np
import torch

from ..kernels.torch_formats import FORMATS

_CACHE_LINE = 64
"""Buffers begin at a cache line, because the kernels store whole lines past the caches."""


def is_unused(arrays: list[np.ndarray], position: int) -> bool:
    """Whether nothing but the list refers to its array at `position`.

    The count is compared with that of a new object in a list, by the same expression: what CPython
    counts for a call's argument or a variable differs between its versions (3.14 borrows them).
    """
    fresh = [object()]
    return sys.getrefcount(arrays[position]) == sys.getrefcount(fresh[0])


class BufferPool:
    """Arrays of one shape and dtype, reused because first writes to fresh memory cost page faults.

    Ownership is CPython's reference count: a tensor from `tensor` keeps its array alive, and so
    does every view of that tensor. A buffer is therefore overwritten only when nothing can read it.
    A batch that the caller keeps is never reused; the pool allocates another.
    """

    MAX_KEPT = 16
    """Buffers that the pool reuses; further ones are freed when they become unused."""

    def __init__(
        self, shape: tuple[int, ...], dtype: torch.dtype, *, page_locked: bool = False
    ) -> None:
        """`page_locked`: memory that a CUDA device copies from without blocking the host."""
        self._shape = shape
        self._dtype = dtype
        self._page_locked = page_locked
        self._arrays: list[np.ndarray] = []
        self._lock = threading.Lock()

    def take(self) -> np.ndarray:
        """An unused array with undefined contents; uint16 stands for float16 and bfloat16."""
        with self._lock:
            for position in range(len(self._arrays)):
                if is_unused(self._arrays, position):
                    return self._arrays[position]
            array = self._allocate()
            if len(self._arrays) < self.MAX_KEPT:
                self._arrays.append(array)
            return array

    def _allocate(self) -> np.ndarray:
        dtype = np.dtype(FORMATS[self._dtype].storage)
        size = math.prod(self._shape) * dtype.itemsize
        memory = np.empty(size + _CACHE_LINE, np.uint8)
        if self._page_locked:
            memory = torch.from_numpy(memory).pin_memory().numpy()
        begin = -memory.ctypes.data % _CACHE_LINE
        return memory[begin : begin + size].view(dtype).reshape(self._shape)

    def tensor(self, array: np.ndarray) -> torch.Tensor:
        """The array as a tensor of the pool's dtype, without a copy."""
        tensor = torch.from_numpy(array)
        return tensor.view(self._dtype) if tensor.dtype != self._dtype else tensor

"""A pool of batch buffers: a buffer is reused once no tensor refers to it."""

import math
import sys
import threading

import numpy as np
import torch

from ..kernels.formats import FORMATS

_UNUSED_REFERENCES = 3
"""References to an unused array: the pool's list, the loop variable and getrefcount's argument."""

_CACHE_LINE = 64
"""Buffers begin at a cache line, because the kernels store whole lines past the caches."""


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
            for array in self._arrays:
                if sys.getrefcount(array) == _UNUSED_REFERENCES:
                    return array
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

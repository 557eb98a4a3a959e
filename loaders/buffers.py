"""Batch buffers that are used again once nobody holds them."""

import math
import sys
import threading

import numpy as np
import torch

from ..kernels.formats import FORMATS

_FREE = 3
"""References to an array that only the pool holds: the list's, the loop variable's and
getrefcount's argument."""

_LINE = 64
"""Buffers begin at a cache line, which lets the kernels write whole lines past the caches."""


class BufferPool:
    """Arrays of one shape and dtype, handed out again when the tensors made of them are gone.

    The ownership rule is CPython's reference count: a tensor from `tensor` keeps its array alive,
    as does every view of that tensor, so that a buffer is written again only when nothing can read
    it any more. A batch that the caller keeps is simply never reused, and the pool makes another.
    First writes to fresh memory cost a page fault every 4 KiB, which is why buffers are reused at
    all.
    """

    KEPT = 16
    """Buffers that the pool remembers; beyond that they are left to the collector."""

    def __init__(
        self, shape: tuple[int, ...], dtype: torch.dtype, *, page_locked: bool = False
    ) -> None:
        """`page_locked`: memory that a CUDA device copies from without the host waiting."""
        self._shape = shape
        self._dtype = dtype
        self._page_locked = page_locked
        self._arrays: list[np.ndarray] = []
        self._lock = threading.Lock()

    def take(self) -> np.ndarray:
        """An array that nobody else holds, its contents undefined; halves are uint16, holding their
        bits."""
        with self._lock:
            for array in self._arrays:
                if sys.getrefcount(array) == _FREE:
                    return array
            array = self._make()
            if len(self._arrays) < self.KEPT:
                self._arrays.append(array)
            return array

    def _make(self) -> np.ndarray:
        dtype = np.dtype(FORMATS[self._dtype].storage)
        size = math.prod(self._shape) * dtype.itemsize
        memory = np.empty(size + _LINE, np.uint8)
        if self._page_locked:
            memory = torch.from_numpy(memory).pin_memory().numpy()
        begin = -memory.ctypes.data % _LINE
        return memory[begin : begin + size].view(dtype).reshape(self._shape)

    def tensor(self, array: np.ndarray) -> torch.Tensor:
        """The array as a tensor of the pool's dtype, without a copy."""
        tensor = torch.from_numpy(array)
        return tensor.view(self._dtype) if tensor.dtype != self._dtype else tensor

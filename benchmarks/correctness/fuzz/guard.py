"""Arrays between pages that may not be touched: an access outside them ends the process."""

import ctypes
import functools
import mmap

import numpy as np
import numpy.typing as npt

PAGE = mmap.PAGESIZE
_NO_ACCESS = 0  # PROT_NONE


def guarded(size: int, dtype: npt.DTypeLike = np.uint8) -> np.ndarray:
    """A (size,) array whose last byte is followed by a page without access, zeros at first.

    The page before its first page is closed too. An access that runs over an end raises SIGSEGV.
    """
    item = np.dtype(dtype)
    length = size * item.itemsize
    pages = -(-length // PAGE) + 2
    memory = mmap.mmap(-1, pages * PAGE)
    whole = np.frombuffer(memory, np.uint8)
    _close(whole.ctypes.data)
    _close(whole.ctypes.data + (pages - 1) * PAGE)
    begin = (pages - 1) * PAGE - length
    return whole[begin : begin + length].view(item)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _close(address: int) -> None:
    """Take all access away from the page at an address."""
    if _libc().mprotect(ctypes.c_void_p(address), ctypes.c_size_t(PAGE), _NO_ACCESS):
        raise OSError(ctypes.get_errno(), "mprotect failed")


class GuardedBytes:
    """Copies data to the end of guarded memory, which it makes once."""

    def __init__(self, capacity: int) -> None:
        self._memory = guarded(capacity)

    def __call__(self, data: bytes) -> np.ndarray:
        """(len(data),) uint8, read-only as files are for the kernels, valid until the next call.
        The byte behind it may not be read."""
        if len(data) > len(self._memory):
            self._memory = guarded(2 * len(data))
        place = self._memory[len(self._memory) - len(data) :]
        place[:] = np.frombuffer(data, np.uint8)
        place.flags.writeable = False
        return place

"""Reading parts of open files: several a call, without the GIL.

`os.pread` does the same; it takes the GIL again after every part, which many threads wait for.
"""

import os

import numpy as np
from numba import types

from .compiler.jit import jit

Encoded = bytes | np.ndarray
"""An encoded file, or a record; an array is C-contiguous uint8."""

AVAILABLE = hasattr(os, "pread")
"""Whether the system reads at an offset: Windows does not."""

_pread = types.ExternalFunction(
    "pread", types.intp(types.int32, types.voidptr, types.uintp, types.int64)
)


@jit()
def read_parts(descriptors, offsets, sizes, memory, got):
    """Read `sizes` (n,) int64 bytes at `offsets` (n,) int64 of the open files `descriptors` (n,)
    int64, one behind the other into `memory` (at least their sum,) uint8; `got` (n,) int64 receives
    how many bytes each part has.

    A part is shorter where the file ends or cannot be read. Checks nothing.
    """
    begin = 0
    for i in range(len(sizes)):
        got[i] = 0
        while got[i] < sizes[i]:  # a network's file system may give less than is asked for
            rest = memory[begin + got[i] :].ctypes
            count = _pread(descriptors[i], rest, sizes[i] - got[i], offsets[i] + got[i])
            if count <= 0:
                break
            got[i] += count
        begin += sizes[i]

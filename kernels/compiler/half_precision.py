"""Vectors of half precision as their bits, in uint16: what Numba has no types for, or a machine no
instructions."""

import numpy as np
from llvmlite import binding
from numba.core import config

from .jit import inline_jit
from .vector import convert, reinterpret, select


def converts_float16() -> bool:
    """Whether the machine converts to float16 by itself; where it doesn't, LLVM calls a function
    that Numba lacks."""
    return config.CPU_NAME is None and binding.get_host_cpu_features().get("f16c", False)


@inline_jit(forceinline=True)
def float16_bits(values):
    """The nearest float16, ties to even, as bits; values below float16's normal numbers (6e-5)
    become 0."""
    bits = reinterpret(values, np.int32)
    sign = (bits >> np.int32(16)) & np.int32(0x8000)
    size = bits & np.int32(0x7FFFFFFF)
    shifted = size - np.int32(0x38000000)
    rounded = (shifted + np.int32(0xFFF) + ((shifted >> np.int32(13)) & np.int32(1))) >> np.int32(
        13
    )
    return convert(
        sign | select(size < np.int32(0x38800000), rounded & np.int32(0), rounded), np.uint16
    )


@inline_jit(forceinline=True)
def bfloat16_bits(values):
    """The nearest bfloat16, ties to even, as bits; NaN stays NaN."""
    bits = reinterpret(values, np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return convert(
        select(values == values, rounded, (bits >> np.uint32(16)) | np.uint32(0x40)), np.uint16
    )


@inline_jit(forceinline=True)
def from_bfloat16(bits):
    """The float32 of bfloat16's bits."""
    return reinterpret(convert(bits, np.uint32) << np.uint32(16), np.float32)

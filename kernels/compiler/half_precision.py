"""Conversion between float32 vectors and float16 or bfloat16, held as their bits in uint16.

Numba has no bfloat16, and some CPUs have no float16 instructions.
"""

import numpy as np
from llvmlite import binding
from numba.core import config

from .jit import inline_jit
from .vector import convert, reinterpret, select


def converts_float16() -> bool:
    """Whether this CPU has float16 conversion instructions (F16C).

    Without them LLVM emits a call to a runtime function that Numba does not provide.
    """
    return config.CPU_NAME is None and binding.get_host_cpu_features().get("f16c", False)


@inline_jit(forceinline=True)
def float16_bits(values):
    """Round float32 lanes to float16, ties to even: uint16 lanes of its bits.

    Magnitudes below float16's smallest normal number (6e-5) become 0. Magnitudes must be at most
    float16's largest number, 65504.
    """
    bits = reinterpret(values, np.int32)
    sign = (bits >> np.int32(16)) & np.int32(0x8000)
    size = bits & np.int32(0x7FFFFFFF)
    # Rebias the exponent from float32's 127 to float16's 15: 112 << 23.
    rebiased = size - np.int32(0x38000000)
    # Drop 13 bits of the fraction; adding half minus one, plus the kept last bit, rounds to even.
    last_bit = (rebiased >> np.int32(13)) & np.int32(1)
    rounded = (rebiased + np.int32(0xFFF) + last_bit) >> np.int32(13)
    zero = rounded & np.int32(0)
    return convert(sign | select(size < np.int32(0x38800000), zero, rounded), np.uint16)


@inline_jit(forceinline=True)
def bfloat16_bits(values):
    """Round float32 lanes to bfloat16, ties to even: uint16 lanes of its bits. NaN stays NaN."""
    bits = reinterpret(values, np.uint32)
    last_bit = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = (bits + np.uint32(0x7FFF) + last_bit) >> np.uint32(16)
    # Rounding can carry a NaN's fraction into its exponent; setting the quiet bit keeps it a NaN.
    quiet_nan = (bits >> np.uint32(16)) | np.uint32(0x40)
    return convert(select(values == values, rounded, quiet_nan), np.uint16)


@inline_jit(forceinline=True)
def from_bfloat16(bits):
    """Convert bfloat16 to float32, exactly: uint16 lanes of bits to float32 lanes."""
    return reinterpret(convert(bits, np.uint32) << np.uint32(16), np.float32)

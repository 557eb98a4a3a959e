"""Words of bits, as LLVM's instructions."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


def _word_at(context: Any, builder: Any, array: Any, memory: Any, index: Any) -> Any:
    """Emit the load of the uint64 that begins at `index` of a uint8 array."""
    data = context.make_array(array)(context, builder, memory).data
    pointer = builder.bitcast(builder.gep(data, [index]), ir.IntType(64).as_pointer())
    return builder.load(pointer, align=1)


@intrinsic
def load_little_endian(typing_context, array, index):
    """Load the little-endian uint64 that begins at `index`, int64 or uint64, of a uint8 array.
    Needs no alignment and checks no bounds."""

    def generate(context, builder, signature, arguments):
        return _word_at(context, builder, array, *arguments)

    return types.uint64(array, index), generate


@intrinsic
def load_big_endian(typing_context, array, index):
    """`load_little_endian` with the bytes in the other order."""

    def generate(context, builder, signature, arguments):
        return builder.bswap(_word_at(context, builder, array, *arguments))

    return types.uint64(array, index), generate


@intrinsic
def count_bits(typing_context, bits):
    """The number of bits that are set in `bits`, int64 or uint64."""

    def generate(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return types.int64(bits), generate


@intrinsic
def leading_zeros(typing_context, bits):
    """Zeros above the highest bit that is set in `bits`, uint64; 64 where none is."""

    def generate(context, builder, signature, arguments):
        return builder.ctlz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.uint64), generate


@intrinsic
def trailing_zeros(typing_context, bits):
    """The number of the lowest bit that is set in `bits`, int64 or uint64; 64 where none is."""

    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(bits), generate

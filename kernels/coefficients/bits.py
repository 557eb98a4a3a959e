"""Words of bits, as LLVM's instructions."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


@intrinsic
def load_u64(typing_context, array, index):
    """The little-endian uint64 that begins at `index` of a uint8 array; no alignment needed."""

    def generate(context, builder, signature, arguments):
        data = context.make_array(array)(context, builder, arguments[0]).data
        pointer = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(64).as_pointer())
        return builder.load(pointer, align=1)

    return types.uint64(array, types.int64), generate


@intrinsic
def leading_zeros(typing_context, word):
    """Zeros above the highest bit set in a uint64; 64 where there is none."""

    def generate(context, builder, signature, arguments):
        return builder.ctlz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.uint64), generate

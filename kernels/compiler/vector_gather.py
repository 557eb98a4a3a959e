"""AVX-512: gathers, scatters and permutations, for code that is compiled only where
`features.has_avx512` holds.

LLVM's portable forms of these compile to slow sequences of single lanes.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .vector import VectorType, call_intrinsic, vector_pointer

_INT32 = ir.IntType(32)


def _bytes_of(context, builder, array, value):
    """The address of an array's first element, as bytes."""
    data = context.make_array(array)(context, builder, value).data
    return builder.bitcast(data, ir.IntType(8).as_pointer())


@intrinsic(prefer_literal=True)
def gather(typing_context, array, places, scale):
    """The 16 uint32 that begin `places` · `scale` bytes behind the begin of `array`, at any
    alignment. `places`: 16 uint32 below 2³¹; `scale`: a literal, 1, 2 or 4."""

    def generate(context, builder, signature, arguments):
        vector = places.llvm
        parts = [
            ir.Constant(vector, [0] * 16),
            _bytes_of(context, builder, array, arguments[0]),
            arguments[1],
            ir.Constant(ir.VectorType(ir.IntType(1), 16), [1] * 16),
            _INT32(scale.literal_value),
        ]
        return call_intrinsic(builder, "llvm.x86.avx512.mask.gather.dpi.512", vector, parts)

    return places(array, places, scale), generate


@intrinsic(prefer_literal=True)
def scatter(typing_context, array, condition, places, values):
    """Store the 16 uint32 of `values` at the int16 numbered `places` of `array`, two of them each,
    in the lanes where `condition` holds."""

    def generate(context, builder, signature, arguments):
        base = _bytes_of(context, builder, array, arguments[0])
        parts = [base, *arguments[1:], _INT32(array.dtype.bitwidth // 8)]
        call_intrinsic(builder, "llvm.x86.avx512.mask.scatter.dpi.512", ir.VoidType(), parts)
        return context.get_dummy_value()

    return types.void(array, condition, places, values), generate


@intrinsic(prefer_literal=True)
def expand(typing_context, array, index, condition, vector):
    """`vector`, 16 uint32, with elements of `array` from `index` on, in turn, in the lanes where
    `condition` holds. Elements for other lanes are not read."""

    def generate(context, builder, signature, arguments):
        memory, index, mask, others = arguments
        pointer = vector_pointer(
            context, builder, array, memory, index, VectorType(vector.element, 1)
        )
        pointer = builder.bitcast(pointer, _INT32.as_pointer())
        return call_intrinsic(
            builder, "llvm.masked.expandload.v16i32", vector.llvm, [pointer, mask, others]
        )

    return vector(array, types.intp, condition, vector), generate


@intrinsic(prefer_literal=True)
def compress(typing_context, vector, bits):
    """Of 64 uint8 the lanes whose bits are set in `bits`, uint64, moved together; others behind
    them are 0. Only where `features.has_vbmi2` holds."""

    def generate(context, builder, signature, arguments):
        mask = builder.bitcast(arguments[1], ir.VectorType(ir.IntType(1), 64))
        parts = [arguments[0], ir.Constant(vector.llvm, [0] * 64), mask]
        return call_intrinsic(builder, "llvm.x86.avx512.mask.compress.v64i8", vector.llvm, parts)

    return vector(vector, types.uint64), generate


@intrinsic(prefer_literal=True)
def pick_16(typing_context, table, places):
    """The lanes `places` of `table`, 16 uint32 each."""

    def generate(context, builder, signature, arguments):
        return call_intrinsic(
            builder, "llvm.x86.avx512.permvar.si.512", table.llvm, list(arguments)
        )

    return table(table, places), generate


@intrinsic(prefer_literal=True)
def pick_of_two(typing_context, a, places, b):
    """The lanes `places` of `a` and `b`, 32 int16 each: those of `b` count from 32. `places`: 32
    int16."""

    def generate(context, builder, signature, arguments):
        return call_intrinsic(builder, "llvm.x86.avx512.vpermi2var.hi.512", a.llvm, list(arguments))

    return a(a, places, b), generate


@intrinsic(prefer_literal=True)
def pick_byte_of_two(typing_context, a, places, b):
    """The lanes `places` of `a` and `b`, 64 uint8 each: those of `b` count from 64. The highest bit
    of a place is ignored. Only where `features.has_vbmi2` holds."""

    def generate(context, builder, signature, arguments):
        return call_intrinsic(builder, "llvm.x86.avx512.vpermi2var.qi.512", a.llvm, list(arguments))

    return a(a, places, b), generate


@intrinsic(prefer_literal=True)
def swap_bytes(typing_context, vector):
    """16 uint32 with their bytes in the other order."""

    def generate(context, builder, signature, arguments):
        return call_intrinsic(builder, "llvm.bswap.v16i32", vector.llvm, list(arguments))

    return vector(vector), generate


@intrinsic(prefer_literal=True)
def bits_of(typing_context, condition):
    """A bit for each lane where `condition` holds, int64."""

    def generate(context, builder, signature, arguments):
        bits = builder.bitcast(arguments[0], ir.IntType(condition.lanes))
        return builder.zext(bits, ir.IntType(64))

    return types.int64(condition), generate

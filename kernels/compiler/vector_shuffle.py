"""Lanes of vectors in other orders: transposed, and interleaved as the channels of pixels are."""

from collections.abc import Iterable
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic

from .vector import VectorType, vector_pointer


def _lanes(picks: Iterable[int]) -> ir.Constant:
    """A shuffle's choice of lanes."""
    chosen = list(picks)
    return ir.Constant(ir.VectorType(ir.IntType(32), len(chosen)), chosen)


@intrinsic(prefer_literal=True)
def transpose(typing_context, source, at, stride, target, to, step):
    """Transpose 32 rows of 8 uint16, or of 32 uint8, from `source` into rows of 32 in `target`.

    Source rows begin at `at`, `stride` elements apart, those of the target at `to`, `step` apart.
    By rounds of interleaving the first half of the registers with the second within 128-bit lanes,
    which x86 does in one instruction; the lanes are loaded so that the target's rows come out
    whole.
    """
    count = 128 // source.dtype.bitwidth  # elements of a lane, and registers
    groups = 32 // count  # lanes that a target row is made of
    pieces = 4 // groups  # lanes that a source row is made of
    piece = VectorType(source.dtype, count)

    def generate(context, builder, signature, arguments):
        source_array, at, stride, target_array, to, step = arguments

        def number(value):
            return ir.Constant(at.type, value)

        def load_piece(row, part):
            index = builder.add(
                builder.add(at, builder.mul(stride, number(row))), number(part * count)
            )
            pointer = vector_pointer(context, builder, source, source_array, index, piece)
            return builder.load(pointer, align=source.dtype.bitwidth // 8)

        def concatenate(a, b):
            return builder.shuffle_vector(a, b, _lanes(range(2 * a.type.count)))

        registers = []
        for i in range(count):
            parts = [
                load_piece(i + count * group, part)
                for part in range(pieces)
                for group in range(groups)
            ]
            registers.append(
                concatenate(concatenate(parts[0], parts[1]), concatenate(parts[2], parts[3]))
            )
        low = [lane * count + i // 2 + i % 2 * 4 * count for lane in range(4) for i in range(count)]
        high = [pick + count // 2 for pick in low]
        for _ in range(count.bit_length() - 1):
            pairs = zip(registers[: count // 2], registers[count // 2 :])
            registers = [
                builder.shuffle_vector(a, b, _lanes(picks))
                for a, b in pairs
                for picks in (low, high)
            ]
        for i, register in enumerate(registers):
            for part in range(pieces):
                row = builder.shuffle_vector(
                    register, register, _lanes(range(32 * part, 32 * part + 32))
                )
                index = builder.add(to, builder.mul(step, number(i + count * part)))
                pointer = vector_pointer(
                    context, builder, target, target_array, index, VectorType(source.dtype, 32)
                )
                builder.store(row, pointer, align=source.dtype.bitwidth // 8)
        return context.get_dummy_value()

    intp = types.intp
    return types.void(source, intp, intp, target, intp, intp), generate


@intrinsic(prefer_literal=True)
def transpose_8(typing_context, a, b, c, d, e, f, g, h):
    """Eight vectors, each group of eight lanes the rows of a matrix, to the matrices' columns."""

    def generate(context, builder, signature, arguments):
        rows = list(arguments)
        picks = _interleaved(a.lanes, 0), _interleaved(a.lanes, 4)
        for _ in range(
            3
        ):  # interleaving the first half of the rows with the second, three times, transposes
            pairs = zip(rows[:4], rows[4:])
            rows = [
                builder.shuffle_vector(first, second, half)
                for first, second in pairs
                for half in picks
            ]
        return context.make_tuple(builder, signature.return_type, rows)

    return types.UniTuple(a, 8)(a, b, c, d, e, f, g, h), generate


def _interleaved(lanes: int, begin: int) -> ir.Constant:
    """The choice of four lanes of two vectors, from `begin` on in each group of eight, interleaved."""
    return _lanes(
        group + begin + i // 2 + i % 2 * lanes for group in range(0, lanes, 8) for i in range(8)
    )


@intrinsic(prefer_literal=True)
def interleave_low(typing_context, a, b):
    """a0 b0 a1 b1 a2 b2 a3 b3 of each group of eight lanes."""

    def generate(context, builder, signature, arguments):
        return builder.shuffle_vector(*arguments, _interleaved(a.lanes, 0))

    return a(a, b), generate


@intrinsic(prefer_literal=True)
def interleave_high(typing_context, a, b):
    """a4 b4 a5 b5 a6 b6 a7 b7 of each group of eight lanes."""

    def generate(context, builder, signature, arguments):
        return builder.shuffle_vector(*arguments, _interleaved(a.lanes, 4))

    return a(a, b), generate


@intrinsic(prefer_literal=True)
def multiply_pairs(typing_context, a, b):
    """a0 b0 + a1 b1, a2 b2 + a3 b3 and so on as int32, of int16 lanes."""
    result = VectorType(types.int32, a.lanes // 2)

    def generate(context, builder, signature, arguments):
        if a.lanes == 16 and _has_avx2():  # one instruction that LLVM does not find by itself
            kind = ir.FunctionType(result.llvm, [a.llvm, a.llvm])
            function = cgutils.get_or_insert_function(
                builder.module, kind, "llvm.x86.avx2.pmadd.wd"
            )
            return builder.call(function, arguments)
        even, odd = _lanes(range(0, a.lanes, 2)), _lanes(range(1, a.lanes, 2))
        products = []
        for pick in (even, odd):
            chosen = [builder.shuffle_vector(argument, argument, pick) for argument in arguments]
            products.append(builder.mul(*[builder.sext(one, result.llvm) for one in chosen]))
        return builder.add(*products)

    return result(a, b), generate


@intrinsic(prefer_literal=True)
def narrow_groups(typing_context, low, high):
    """Groups of eight int16 lanes, the first four of each from `low`, the others from `high`; int32
    that saturate."""
    result = VectorType(types.int16, 2 * low.lanes)

    def generate(context, builder, signature, arguments):
        if low.lanes == 8 and _has_avx2():  # as above
            kind = ir.FunctionType(result.llvm, [low.llvm, low.llvm])
            function = cgutils.get_or_insert_function(
                builder.module, kind, "llvm.x86.avx2.packssdw"
            )
            return builder.call(function, arguments)
        least, most = (ir.Constant(low.llvm, [bound] * low.lanes) for bound in (-32768, 32767))
        clamped = []
        for value in arguments:
            raised = builder.select(builder.icmp_signed("<", value, least), least, value)
            lowered = builder.select(builder.icmp_signed(">", raised, most), most, raised)
            clamped.append(builder.trunc(lowered, ir.VectorType(ir.IntType(16), low.lanes)))
        picks = [
            group + i % 4 + i // 4 * low.lanes for group in range(0, low.lanes, 4) for i in range(8)
        ]
        return builder.shuffle_vector(*clamped, _lanes(picks))

    return result(low, high), generate


def _has_avx2() -> bool:
    """Whether code is made for this machine, and this machine has AVX2."""
    return config.CPU_NAME is None and binding.get_host_cpu_features().get("avx2", False)


@intrinsic(prefer_literal=True)
def load_two(typing_context, array, first, second, lanes):
    """`lanes` (a literal) elements of `array` from `first` on, and as many from `second` on, as one
    vector."""
    half, whole = (
        VectorType(array.dtype, lanes.literal_value),
        VectorType(array.dtype, 2 * lanes.literal_value),
    )

    def generate(context, builder, signature, arguments):
        memory, *places, _ = arguments
        halves = [
            builder.load(
                vector_pointer(context, builder, array, memory, place, half),
                align=array.dtype.bitwidth // 8,
            )
            for place in places
        ]
        return builder.shuffle_vector(*halves, _lanes(range(whole.lanes)))

    return whole(array, types.intp, types.intp, lanes), generate


@intrinsic(prefer_literal=True)
def store_two(typing_context, array, first, second, vector):
    """Write the first half of the lanes to `array` from `first` on, the other from `second` on."""
    half = VectorType(vector.element, vector.lanes // 2)

    def generate(context, builder, signature, arguments):
        memory, *places, whole = arguments
        for part, place in enumerate(places):
            lanes = _lanes(range(part * half.lanes, (part + 1) * half.lanes))
            pointer = vector_pointer(context, builder, array, memory, place, half)
            builder.store(
                builder.shuffle_vector(whole, whole, lanes),
                pointer,
                align=array.dtype.bitwidth // 8,
            )
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, vector), generate


@intrinsic(prefer_literal=True)
def interleave(typing_context, a, b):
    """a0 b0 a1 b1 and so on: twice the lanes."""
    result = VectorType(a.element, 2 * a.lanes)

    def generate(context, builder, signature, arguments):
        return builder.shuffle_vector(
            *arguments, _lanes(i // 2 + i % 2 * a.lanes for i in range(2 * a.lanes))
        )

    return result(a, b), generate


def _interleaved_pieces(
    builder: Any, lanes: int, first: Any, second: Any, third: Any
) -> Iterable[Any]:
    """Lanes a0 b0 c0 a1 b1 c1 and so on of three vectors, as three vectors.

    LLVM would take one vector of three times a power of two lanes apart, lane by lane.
    """
    for part in range(3):
        order = [(lane % 3, lane // 3) for lane in range(part * lanes, (part + 1) * lanes)]
        pair = _lanes(channel % 2 * lanes + lane for channel, lane in order)
        both = _lanes(
            lanes + lane if channel == 2 else i for i, (channel, lane) in enumerate(order)
        )
        yield builder.shuffle_vector(builder.shuffle_vector(first, second, pair), third, both)


@intrinsic(prefer_literal=True)
def store_interleaved(typing_context, array, index, a, b, c):
    """Write lanes a0 b0 c0 a1 b1 c1 and so on to `array` from `index` on."""

    def generate(context, builder, signature, arguments):
        memory, index, *vectors = arguments
        for part, piece in enumerate(_interleaved_pieces(builder, a.lanes, *vectors)):
            at = builder.add(index, ir.Constant(index.type, part * a.lanes))
            pointer = vector_pointer(context, builder, array, memory, at, a)
            builder.store(piece, pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, a, b, c), generate


@intrinsic(prefer_literal=True)
def stream_interleaved(typing_context, array, index, a, b, c):
    """`store_interleaved` past the caches, to whole cache lines; `fence` before others read it.

    `array` from `index` on begins at a multiple of the vector's bytes, or of 64.
    """

    def generate(context, builder, signature, arguments):
        memory, index, *vectors = arguments
        past_caches = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        for part, piece in enumerate(_interleaved_pieces(builder, a.lanes, *vectors)):
            at = builder.add(index, ir.Constant(index.type, part * a.lanes))
            pointer = vector_pointer(context, builder, array, memory, at, a)
            written = builder.store(
                piece, pointer, align=min(a.lanes * array.dtype.bitwidth // 8, 64)
            )
            written.set_metadata("nontemporal", past_caches)
        return context.get_dummy_value()

    return types.void(array, types.intp, a, b, c), generate


@intrinsic(prefer_literal=True)
def load_interleaved(typing_context, array, index, lanes):
    """Three vectors of `lanes` (a literal), whose lanes lie in `array` as `store_interleaved`
    writes them."""
    vector = VectorType(array.dtype, lanes.literal_value)

    def generate(context, builder, signature, arguments):
        memory, index, _ = arguments
        pieces = []
        for part in range(3):
            at = builder.add(index, ir.Constant(index.type, part * vector.lanes))
            pointer = vector_pointer(context, builder, array, memory, at, vector)
            pieces.append(builder.load(pointer, align=array.dtype.bitwidth // 8))
        channels = []
        for channel in range(3):
            places = range(channel, 3 * vector.lanes, 3)
            pair = _lanes(place if place < 2 * vector.lanes else 0 for place in places)
            both = _lanes(
                place - vector.lanes if place >= 2 * vector.lanes else i
                for i, place in enumerate(places)
            )
            channels.append(
                builder.shuffle_vector(builder.shuffle_vector(*pieces[:2], pair), pieces[2], both)
            )
        return context.make_tuple(builder, signature.return_type, channels)

    return types.UniTuple(vector, 3)(array, types.intp, lanes), generate

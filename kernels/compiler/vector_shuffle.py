"""Vector shuffles: transposes, packing of narrower lanes, and loads of several places."""

from collections.abc import Iterable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .features import has_avx512, has_features
from .vector import VectorType, call_intrinsic, vector_pointer


def shuffle_mask(picks: Iterable[int]) -> ir.Constant:
    """The mask of an LLVM shuffle: result lane i takes lane `picks[i]` of its two operands."""
    chosen = list(picks)
    return ir.Constant(ir.VectorType(ir.IntType(32), len(chosen)), chosen)


@intrinsic(prefer_literal=True)
def transpose(typing_context, source, at, stride, target, to, step):
    """Transpose a block of 32 rows from `source` into rows of 32 elements in `target`.

    A block has 8 columns of uint16 or 32 columns of uint8. Source rows start at `at`, `stride`
    elements apart; target rows start at `to`, `step` elements apart.

    Rounds of interleaving the first half of the registers with the second transpose a matrix.
    Interleaving within 128-bit pieces is one instruction on x86. Pieces are loaded in the order
    that makes every target row one contiguous store.
    """
    count = 128 // source.dtype.bitwidth  # elements in a 128-bit piece; also registers
    groups = 32 // count  # pieces in a target row
    pieces = 4 // groups  # pieces in a source row
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
            return builder.shuffle_vector(a, b, shuffle_mask(range(2 * a.type.count)))

        # Load: register i holds four pieces, from rows `count` apart.
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
        # Interleave the low and high halves of pieces of both operands, log2(count) times.
        low = [lane * count + i // 2 + i % 2 * 4 * count for lane in range(4) for i in range(count)]
        high = [pick + count // 2 for pick in low]
        for _ in range(count.bit_length() - 1):
            pairs = zip(registers[: count // 2], registers[count // 2 :])
            registers = [
                builder.shuffle_vector(a, b, shuffle_mask(picks))
                for a, b in pairs
                for picks in (low, high)
            ]
        # Store: each register now holds `pieces` rows of the target.
        for i, register in enumerate(registers):
            for part in range(pieces):
                row = builder.shuffle_vector(
                    register, register, shuffle_mask(range(32 * part, 32 * part + 32))
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
    """Transpose 8 x 8 matrices: lanes 8 i to 8 i + 7 of the eight vectors are matrix i's rows."""

    def generate(context, builder, signature, arguments):
        rows = list(arguments)
        picks = _interleaved(a.lanes, 0), _interleaved(a.lanes, 4)
        # Interleaving the first half of the rows with the second, three times, transposes.
        for _ in range(3):
            pairs = zip(rows[:4], rows[4:])
            rows = [
                builder.shuffle_vector(first, second, half)
                for first, second in pairs
                for half in picks
            ]
        return context.make_tuple(builder, signature.return_type, rows)

    return types.UniTuple(a, 8)(a, b, c, d, e, f, g, h), generate


def _interleaved(lanes: int, begin: int) -> ir.Constant:
    """The mask that interleaves four lanes of two vectors, from `begin` in each group of eight."""
    return shuffle_mask(
        group + begin + i // 2 + i % 2 * lanes for group in range(0, lanes, 8) for i in range(8)
    )


@intrinsic(prefer_literal=True)
def interleave_low(typing_context, a, b):
    """Interleave the low halves of each group of eight lanes: a0 b0 a1 b1 a2 b2 a3 b3."""

    def generate(context, builder, signature, arguments):
        return builder.shuffle_vector(*arguments, _interleaved(a.lanes, 0))

    return a(a, b), generate


@intrinsic(prefer_literal=True)
def interleave_high(typing_context, a, b):
    """Interleave the high halves of each group of eight lanes: a4 b4 a5 b5 a6 b6 a7 b7."""

    def generate(context, builder, signature, arguments):
        return builder.shuffle_vector(*arguments, _interleaved(a.lanes, 4))

    return a(a, b), generate


@intrinsic(prefer_literal=True)
def multiply_pairs(typing_context, a, b):
    """Multiply int16 lanes and add neighbours: int32 lanes a0 b0 + a1 b1, a2 b2 + a3 b3, …."""
    result = VectorType(types.int32, a.lanes // 2)

    def generate(context, builder, signature, arguments):
        name = _instruction(a.lanes, "llvm.x86.avx2.pmadd.wd", "llvm.x86.avx512.pmaddw.d.512")
        if name:  # LLVM does not find this instruction (vpmaddwd)
            return call_intrinsic(builder, name, result.llvm, arguments)
        even, odd = shuffle_mask(range(0, a.lanes, 2)), shuffle_mask(range(1, a.lanes, 2))
        products = []
        for pick in (even, odd):
            chosen = [builder.shuffle_vector(argument, argument, pick) for argument in arguments]
            products.append(builder.mul(*[builder.sext(one, result.llvm) for one in chosen]))
        return builder.add(*products)

    return result(a, b), generate


@intrinsic(prefer_literal=True)
def narrow_groups(typing_context, low, high):
    """Narrow int32 lanes to int16 with saturation, alternating four of `low` and four of `high`."""
    result = VectorType(types.int16, 2 * low.lanes)

    def generate(context, builder, signature, arguments):
        name = _instruction(result.lanes, "llvm.x86.avx2.packssdw", "llvm.x86.avx512.packssdw.512")
        if name:  # LLVM does not find this instruction (vpackssdw)
            return call_intrinsic(builder, name, result.llvm, arguments)
        clamped = _saturated(builder, arguments, low, result, (-32768, 32767))
        picks = [
            group + i % 4 + i // 4 * low.lanes for group in range(0, low.lanes, 4) for i in range(8)
        ]
        return builder.shuffle_vector(*clamped, shuffle_mask(picks))

    return result(low, high), generate


@intrinsic(prefer_literal=True)
def narrow_levels(typing_context, low, high):
    """Narrow int16 lanes to uint8 with saturation, eight of `low` and eight of `high` in turn."""
    result = VectorType(types.uint8, 2 * low.lanes)

    def generate(context, builder, signature, arguments):
        name = _instruction(low.lanes, "llvm.x86.avx2.packuswb", "llvm.x86.avx512.packuswb.512")
        if name:  # LLVM does not find this instruction (vpackuswb)
            return call_intrinsic(builder, name, result.llvm, arguments)
        clamped = _saturated(builder, arguments, low, result, (0, 255))
        return builder.shuffle_vector(*clamped, shuffle_mask(eights(low.lanes)))

    return result(low, high), generate


def _saturated(
    builder: Any, values: Any, wide: VectorType, narrow: VectorType, bounds: tuple[int, int]
) -> list[Any]:
    """Emit vectors of the type `wide`, clamped to `bounds`, in the elements of `narrow`."""
    least, most = (ir.Constant(wide.llvm, [bound] * wide.lanes) for bound in bounds)
    clamped = []
    for value in values:
        raised = builder.select(builder.icmp_signed("<", value, least), least, value)
        lowered = builder.select(builder.icmp_signed(">", raised, most), most, raised)
        clamped.append(builder.trunc(lowered, VectorType(narrow.element, wide.lanes).llvm))
    return clamped


def eights(lanes: int) -> list[int]:
    """Eight lanes of one vector and eight of another in turn."""
    return [group + i % 8 + i // 8 * lanes for group in range(0, lanes, 8) for i in range(16)]


@intrinsic(prefer_literal=True)
def store_eights(typing_context, array, places, vector):
    """Store each eight uint8 lanes of `vector` to `array`, from `places`, a tuple, on."""

    def generate(context, builder, signature, arguments):
        memory, packed, whole = arguments
        # As float64, whose halves of a register are stored without a shuffle.
        count = vector.lanes // 8
        eights = builder.bitcast(whole, ir.VectorType(ir.DoubleType(), count))
        for number, place in enumerate(cgutils.unpack_tuple(builder, packed, count)):
            pointer = vector_pointer(
                context, builder, array, memory, place, VectorType(types.float64, 1)
            )
            pointer = builder.bitcast(pointer, ir.DoubleType().as_pointer())
            piece = builder.extract_element(eights, ir.Constant(ir.IntType(32), number))
            builder.store(piece, pointer, align=1)
        return context.get_dummy_value()

    return types.void(array, types.UniTuple(types.intp, vector.lanes // 8), vector), generate


def _instruction(lanes: int, avx2: str, avx512: str) -> str | None:
    """Which of two forms of an instruction on int16 lanes the target has, if any: `avx2` takes 16
    lanes, `avx512` 32."""
    if lanes == 16 and has_features("avx2"):
        return avx2
    if lanes == 32 and has_avx512():
        return avx512
    return None


def _load_parts(context: Any, builder: Any, array: Any, arguments: Any, part: VectorType) -> Any:
    """Emit a vector of the parts that begin at some places of an array. `arguments`: the array, a
    power of two of places, and the number of lanes."""
    memory, *places, _ = arguments
    parts = []
    for place in places:
        pointer = vector_pointer(context, builder, array, memory, place, part)
        parts.append(builder.load(pointer, align=array.dtype.bitwidth // 8))
    while len(parts) > 1:
        both = shuffle_mask(range(2 * parts[0].type.count))
        pairs = zip(parts[::2], parts[1::2])
        parts = [builder.shuffle_vector(first, second, both) for first, second in pairs]
    return parts[0]


@intrinsic(prefer_literal=True)
def load_two(typing_context, array, first, second, lanes):
    """Load `lanes` elements of `array` from `first` and as many from `second`, as one vector.
    `lanes`: a literal."""
    part = VectorType(array.dtype, lanes.literal_value)

    def generate(context, builder, signature, arguments):
        return _load_parts(context, builder, array, arguments, part)

    return VectorType(array.dtype, 2 * part.lanes)(array, *[types.intp] * 2, lanes), generate


@intrinsic(prefer_literal=True)
def load_four(typing_context, array, first, second, third, fourth, lanes):
    """`load_two` of four places."""
    part = VectorType(array.dtype, lanes.literal_value)

    def generate(context, builder, signature, arguments):
        return _load_parts(context, builder, array, arguments, part)

    return VectorType(array.dtype, 4 * part.lanes)(array, *[types.intp] * 4, lanes), generate


@intrinsic(prefer_literal=True)
def interleave(typing_context, a, b):
    """Interleave two vectors into one of twice the lanes: a0 b0 a1 b1 …."""
    result = VectorType(a.element, 2 * a.lanes)

    def generate(context, builder, signature, arguments):
        return builder.shuffle_vector(
            *arguments, shuffle_mask(i // 2 + i % 2 * a.lanes for i in range(2 * a.lanes))
        )

    return result(a, b), generate

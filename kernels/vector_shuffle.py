"""Lanes of vectors in other orders: transposed, and interleaved as the channels of pixels are."""

from collections.abc import Iterable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .vector import VectorType, vector_pointer


def _lanes(picks: Iterable[int]) -> ir.Constant:
    """A shuffle's choice of lanes."""
    chosen = list(picks)
    return ir.Constant(ir.VectorType(ir.IntType(32), len(chosen)), chosen)


@intrinsic(prefer_literal=True)
def transpose(typing_context, source, at, stride, target, to, step):
    """Transpose 32 rows of 8 uint16, or of 32 uint8, from `source` into rows of 32 in `target`.

    Source rows begin at `at`, `stride` elements apart, those of the target at `to`, `step` apart. By rounds of
    interleaving the first half of the registers with the second within 128-bit lanes, which x86 does in one
    instruction; the lanes are loaded so that the target's rows come out whole.
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
            index = builder.add(builder.add(at, builder.mul(stride, number(row))), number(part * count))
            pointer = vector_pointer(context, builder, source, source_array, index, piece)
            return builder.load(pointer, align=source.dtype.bitwidth // 8)

        def concatenate(a, b):
            return builder.shuffle_vector(a, b, _lanes(range(2 * a.type.count)))

        registers = []
        for i in range(count):
            parts = [load_piece(i + count * group, part) for part in range(pieces) for group in range(groups)]
            registers.append(concatenate(concatenate(parts[0], parts[1]), concatenate(parts[2], parts[3])))
        low = [lane * count + i // 2 + i % 2 * 4 * count for lane in range(4) for i in range(count)]
        high = [pick + count // 2 for pick in low]
        for _ in range(count.bit_length() - 1):
            pairs = zip(registers[: count // 2], registers[count // 2 :])
            registers = [builder.shuffle_vector(a, b, _lanes(picks)) for a, b in pairs for picks in (low, high)]
        for i, register in enumerate(registers):
            for part in range(pieces):
                row = builder.shuffle_vector(register, register, _lanes(range(32 * part, 32 * part + 32)))
                index = builder.add(to, builder.mul(step, number(i + count * part)))
                pointer = vector_pointer(context, builder, target, target_array, index, VectorType(source.dtype, 32))
                builder.store(row, pointer, align=source.dtype.bitwidth // 8)
        return context.get_dummy_value()

    intp = types.intp
    return types.void(source, intp, intp, target, intp, intp), generate


@intrinsic(prefer_literal=True)
def transpose_8(typing_context, a, b, c, d, e, f, g, h):
    """Eight vectors of eight lanes, as the rows of a matrix, to its columns."""

    def generate(context, builder, signature, arguments):
        rows = list(arguments)
        low, high = _lanes([0, 8, 1, 9, 2, 10, 3, 11]), _lanes([4, 12, 5, 13, 6, 14, 7, 15])
        for _ in range(3):  # interleaving the first half of the rows with the second, three times, transposes
            pairs = zip(rows[:4], rows[4:])
            rows = [builder.shuffle_vector(first, second, picks) for first, second in pairs for picks in (low, high)]
        return context.make_tuple(builder, signature.return_type, rows)

    return types.UniTuple(a, 8)(a, b, c, d, e, f, g, h), generate


@intrinsic(prefer_literal=True)
def interleave(typing_context, a, b):
    """a0 b0 a1 b1 and so on: twice the lanes."""
    result = VectorType(a.element, 2 * a.lanes)

    def generate(context, builder, signature, arguments):
        return builder.shuffle_vector(*arguments, _lanes(i // 2 + i % 2 * a.lanes for i in range(2 * a.lanes)))

    return result(a, b), generate


def _interleaved_pieces(builder: Any, lanes: int, first: Any, second: Any, third: Any) -> Iterable[Any]:
    """Lanes a0 b0 c0 a1 b1 c1 and so on of three vectors, as three vectors.

    LLVM would take one vector of three times a power of two lanes apart, lane by lane.
    """
    for part in range(3):
        order = [(lane % 3, lane // 3) for lane in range(part * lanes, (part + 1) * lanes)]
        pair = _lanes(channel % 2 * lanes + lane for channel, lane in order)
        both = _lanes(lanes + lane if channel == 2 else i for i, (channel, lane) in enumerate(order))
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
            written = builder.store(piece, pointer, align=min(a.lanes * array.dtype.bitwidth // 8, 64))
            written.set_metadata("nontemporal", past_caches)
        return context.get_dummy_value()

    return types.void(array, types.intp, a, b, c), generate


@intrinsic(prefer_literal=True)
def load_interleaved(typing_context, array, index, lanes):
    """Three vectors of `lanes` (a literal), whose lanes lie in `array` as `store_interleaved` writes them."""
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
            both = _lanes(place - vector.lanes if place >= 2 * vector.lanes else i for i, place in enumerate(places))
            channels.append(builder.shuffle_vector(builder.shuffle_vector(*pieces[:2], pair), pieces[2], both))
        return context.make_tuple(builder, signature.return_type, channels)

    return types.UniTuple(vector, 3)(array, types.intp, lanes), generate

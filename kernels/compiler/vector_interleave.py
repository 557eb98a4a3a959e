"""Interleaving of three vectors, the channels of (…, 3) pixels, in stores and loads."""

from collections.abc import Iterable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .vector import VectorType, vector_pointer
from .vector_shuffle import eights, shuffle_mask


def _interleaved_pieces(
    builder: Any,
    lanes: int,
    first: Any,
    second: Any,
    third: Any,
    *,
    places: Sequence[int] | None = None,
) -> Iterable[Any]:
    """Interleave three vectors into three: lanes a0 b0 c0 a1 b1 c1 … in order. `places`: where in
    the vectors each lane is, by default in order.

    Three separate vectors, because LLVM splits one of 3 · 2ⁿ lanes into single lanes.
    """
    for part in range(3):
        order = [(lane % 3, lane // 3) for lane in range(part * lanes, (part + 1) * lanes)]
        if places is not None:
            order = [(channel, places[lane]) for channel, lane in order]
        pair = shuffle_mask(channel % 2 * lanes + lane for channel, lane in order)
        both = shuffle_mask(
            lanes + lane if channel == 2 else i for i, (channel, lane) in enumerate(order)
        )
        yield builder.shuffle_vector(builder.shuffle_vector(first, second, pair), third, both)


def _interleaved_stores(
    context: Any,
    builder: Any,
    array: Any,
    arguments: Any,
    vector: VectorType,
    *,
    places: Sequence[int] | None = None,
    align: int | None = None,
) -> Iterable[Any]:
    """Emit the stores of three vectors, interleaved as by `_interleaved_pieces`, and yield each.
    `arguments`: the array, an index, the vectors. `align`: bytes, default one element's."""
    memory, index, *vectors = arguments
    pieces = _interleaved_pieces(builder, vector.lanes, *vectors, places=places)
    for part, piece in enumerate(pieces):
        at = builder.add(index, ir.Constant(index.type, part * vector.lanes))
        pointer = vector_pointer(context, builder, array, memory, at, vector)
        yield builder.store(piece, pointer, align=align or array.dtype.bitwidth // 8)


@intrinsic(prefer_literal=True)
def store_interleaved(typing_context, array, index, a, b, c):
    """Store three vectors interleaved, a0 b0 c0 a1 b1 c1 …, to `array` from `index`."""

    def generate(context, builder, signature, arguments):
        list(_interleaved_stores(context, builder, array, arguments, a))
        return context.get_dummy_value()

    return types.void(array, types.intp, a, b, c), generate


@intrinsic(prefer_literal=True)
def store_interleaved_eights(typing_context, array, index, a, b, c):
    """`store_interleaved` of three vectors as `narrow_levels` makes them: eights in turn."""

    def generate(context, builder, signature, arguments):
        places = eights(a.lanes // 2)
        order = [places.index(lane) for lane in range(a.lanes)]
        list(_interleaved_stores(context, builder, array, arguments, a, places=order))
        return context.get_dummy_value()

    return types.void(array, types.intp, a, b, c), generate


@intrinsic(prefer_literal=True)
def stream_interleaved(typing_context, array, index, a, b, c):
    """`store_interleaved` with non-temporal stores, which bypass the caches. Call `fence` before
    other threads read the result.

    The address of `array[index]` must be a multiple of the vector's bytes, or of 64.
    """

    def generate(context, builder, signature, arguments):
        non_temporal = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        align = min(a.lanes * array.dtype.bitwidth // 8, 64)
        for stored in _interleaved_stores(context, builder, array, arguments, a, align=align):
            stored.set_metadata("nontemporal", non_temporal)
        return context.get_dummy_value()

    return types.void(array, types.intp, a, b, c), generate


@intrinsic
def fence(typing_context):
    """Memory fence: other threads see the stores before it before any store after it."""

    def generate(context, builder, signature, arguments):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic(prefer_literal=True)
def load_interleaved(typing_context, array, index, lanes):
    """Load three vectors of `lanes` (a literal) that `store_interleaved` would store to `array`
    from `index`."""
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
            pair = shuffle_mask(place if place < 2 * vector.lanes else 0 for place in places)
            both = shuffle_mask(
                place - vector.lanes if place >= 2 * vector.lanes else i
                for i, place in enumerate(places)
            )
            channels.append(
                builder.shuffle_vector(builder.shuffle_vector(*pieces[:2], pair), pieces[2], both)
            )
        return context.make_tuple(builder, signature.return_type, channels)

    return types.UniTuple(vector, 3)(array, types.intp, lanes), generate

"""Coefficients of the chunks between checkpoints to levels: prediction, dequantiser, inverse DCT.

`put_levels_in_order` takes coefficients in natural order, on any CPU; `put_levels_zigzag` in zigzag
order, with AVX-512.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..compiler.features import has_avx512
from ..compiler.jit import inline_jit
from ..compiler.vector import any_lane, broadcast, load, store, with_first
from ..compiler.vector_gather import pick_of_two
from .entropy import NATURAL_ORDER
from .pixels import fill_group, inverse_dct_flat, inverse_dct_four, inverse_dct_pair
from .planes import convert_row, ring_row
from .scan import CHECKPOINT_FIELDS, mcus_between
from .segments import QUANTISATION, QUANTISATION_STRIDE, STRIDE, H, V

_ZIGZAG_ORDER = np.argsort(NATURAL_ORDER[:64]).astype(np.int16)
"""Zigzag order by natural order."""


@inline_jit()
def set_factors(scratch, components):
    """Write the components' quantisation tables to `scratch.factors`, in natural order."""
    for c in range(components):
        table = QUANTISATION_STRIDE * scratch.frame[c, QUANTISATION]
        for k in range(64):
            place = 64 * c + np.int64(NATURAL_ORDER[k])
            scratch.factors[place] = scratch.quantisation[table + k]


@inline_jit(forceinline=True)
def _stage_in_order(coefficients, source, factors, q, dc, block, to):
    """Dequantise a block in natural order into `block`, with the DC coefficient `dc`."""
    first = load(coefficients, source, 32) * load(factors, q, 32)
    store(block, to, with_first(first, dc))
    second = load(coefficients, source + 32, 32) * load(factors, q + 32, 32)
    store(block, to + 32, second)


@inline_jit(forceinline=True)
def _stage_zigzag(coefficients, source, factors, q, dc, block, to):
    """Dequantise a block in zigzag order into `block`, in natural order, with the DC coefficient
    `dc`."""
    low, high = load(coefficients, source, 32), load(coefficients, source + 32, 32)
    first = pick_of_two(low, load(_ZIGZAG_ORDER, 0, 32), high) * load(factors, q, 32)
    store(block, to, with_first(first, dc))
    second = pick_of_two(low, load(_ZIGZAG_ORDER, 32, 32), high) * load(factors, q + 32, 32)
    store(block, to + 32, second)


@inline_jit(forceinline=True)
def _transform_pair(block, planes, places):
    """Inverse DCT of the two blocks in `block`. `places`: where each block's samples begin, then
    each one's stride."""
    inverse_dct_pair(block, 0, 64, planes, places[0], places[2], places[1], places[3])


def _make_put_levels(stage: Any, transform: Any, group: int) -> Callable[..., Any]:
    """Make `put_levels` from how blocks are dequantised, and transformed `group` at a time."""

    @inline_jit(forceinline=True)
    def put_block(coefficients, source, dc, inside, q, to, stride, scratch, waiting):
        """Clear the block at `source`; inside the region, turn it to levels, or add it to the
        group, which is transformed once it is full. Returns the number of blocks that wait."""
        factors, places = scratch.factors, scratch.places
        zero = broadcast(np.int16(0), 32)
        dequantised = dc * np.int64(factors[q])
        others = with_first(load(coefficients, source, 32), 0) | load(coefficients, source + 32, 32)
        if not any_lane(others != zero):
            if inside:
                inverse_dct_flat(np.int64(np.int16(dequantised)), scratch.planes, to, stride)
            coefficients[source] = 0
            return waiting
        if inside:
            stage(coefficients, source, factors, q, dequantised, scratch.block, 64 * waiting)
            places[waiting], places[group + waiting] = to, stride
            waiting += 1
            if waiting == group:
                transform(scratch.block, scratch.planes, places)
                waiting = 0
        store(coefficients, source, zero)
        store(coefficients, source + 32, zero)
        return waiting

    @inline_jit()
    def put_levels(checkpoints, first_row, last_row, picture, mcu_columns, scratch):
        """Turn the coefficients of MCU rows `first_row` to `last_row` - 1 to pixels; clears them.

        `scratch.coefficients`: chunk by chunk, as `chunks.decode_chunks` lays them out, DC
        coefficients as differences. `picture`: a `planes.Picture`.
        """
        frame, coefficients, components = scratch.frame, scratch.coefficients, picture.components
        x1, _, x2, _ = picture.mcus
        h, luma_stride, chroma_stride = frame[0, H], frame[0, STRIDE], frame[1, STRIDE]
        luma_blocks, colour = h * frame[0, V], components == 3
        between = mcus_between(h)
        chunks_a_row = (mcu_columns + between - 1) // between
        space = 64 * (between * (luma_blocks + components - 1) + 1)
        begin = 0
        for my in range(first_row, last_row):
            luma_row = ring_row(my, picture, frame, 0) - 8 * x1 * h
            blue_row = ring_row(my, picture, frame, 1) - 8 * x1
            red_row = ring_row(my, picture, frame, 2) - 8 * x1
            waiting = 0
            for chunk in range(x1 // between, (x2 - 1) // between + 1):
                field = CHECKPOINT_FIELDS * (my * chunks_a_row + chunk) + 2
                luma = np.int64(checkpoints[field])
                blue, red = np.int64(checkpoints[field + 1]), np.int64(checkpoints[field + 2])
                source = begin
                begin += space
                for mx in range(chunk * between, min((chunk + 1) * between, x2)):
                    inside = mx >= x1
                    at = luma_row + 8 * mx * h
                    for n in range(luma_blocks):
                        to = at + (8 if n & 1 else 0) + (8 * luma_stride if n & 2 else 0)
                        luma += np.int64(coefficients[source])
                        waiting = put_block(
                            coefficients, source, luma, inside, 0, to, luma_stride, scratch, waiting
                        )
                        source += 64
                    if colour:
                        blue += np.int64(coefficients[source])
                        waiting = put_block(
                            coefficients, source, blue, inside, 64, blue_row + 8 * mx,
                            chroma_stride, scratch, waiting,
                        )  # fmt: skip
                        red += np.int64(coefficients[source + 64])
                        waiting = put_block(
                            coefficients, source + 64, red, inside, 128, red_row + 8 * mx,
                            chroma_stride, scratch, waiting,
                        )  # fmt: skip
                        source += 128
            if waiting:
                fill_group(scratch.block, scratch.places, waiting, group)
                transform(scratch.block, scratch.planes, scratch.places)
            convert_row(scratch, picture, my)

    return put_levels


put_levels_in_order = (
    _make_put_levels(_stage_in_order, inverse_dct_four, 4)
    if has_avx512()
    else _make_put_levels(_stage_in_order, _transform_pair, 2)
)
put_levels_zigzag = _make_put_levels(_stage_zigzag, inverse_dct_four, 4)

"""Rendering of encoded images, by their plan rows, into the views of a batch: several a call,
without the GIL.

A decoder makes the part of an image that its crops need, in memory that stays in the CPU's cache,
and `render_views` or `resize_views` reads it there. Both are called by address, so that one loop
serves every kind of file, and each large kernel is compiled once, apart from the others.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from ..compiler.address import call_kernel
from ..compiler.jit import inline_jit, jit
from ..jpeg.decode import DECODED
from ..jpeg.pixels import LANES
from ..plan import CROP, VIEW_FLOATS


@intrinsic
def _bytes_at(typing_context, address, size):
    """A (size,) uint8 array of the bytes at an address. Borrowed: the caller keeps them alive."""
    array = types.Array(types.uint8, 1, "C", readonly=True)

    def generate(context, builder, signature, arguments):
        made = context.make_array(array)(context, builder)
        populate_array(
            made,
            data=builder.inttoptr(arguments[0], ir.IntType(8).as_pointer()),
            shape=[arguments[1]],
            strides=[context.get_constant(types.intp, 1)],
            itemsize=context.get_constant(types.intp, 1),
            meminfo=None,
        )
        return made._getvalue()

    return array(types.intp, types.intp), generate


@inline_jit()
def _set_region(height, width, row, views, pixels, region):
    """Write the smallest region that contains every view's crop to `region`; returns whether it
    lies inside the image and fits in `pixels`."""
    y, x, bottom, right = np.int64(height), np.int64(width), np.int64(0), np.int64(0)
    for v in range(views):
        crop = row[v * VIEW_FLOATS + CROP :]
        y, x = min(y, int(crop[0])), min(x, int(crop[1]))
        bottom, right = max(bottom, int(crop[0] + crop[2])), max(right, int(crop[1] + crop[3]))
    if y < 0 or x < 0 or bottom > height or right > width or y >= bottom or x >= right:
        return False
    y, x = y & ~1, x & ~1  # the decoder starts at whole chroma samples
    region[0], region[1], region[2], region[3] = y, x, bottom - y, right - x
    return 3 * ((bottom - y) * (right - x) + LANES) <= len(pixels)


@inline_jit()
def _decode(decoders, arguments):
    """Decode a file by the first of the `decoders`, addresses or 0 for none, that takes it; returns
    whether one does."""
    for decoder in decoders:
        if decoder and call_kernel(decoder, arguments) == DECODED:
            return True
    return False


@jit()
def render_files(
    decoders,
    finish,
    files,
    sides,
    plans,
    numbers,
    views,
    scratch,
    pixels,
    table,
    settings,
    out,
    done,
):
    """Decode n files and render or resize their views, as samples `numbers` of `out`; set `done`
    (n,) bool where that succeeded.

    `decoders`: a pair of addresses of kernels that take the arguments of `jpeg.decode_region`, the
    preferred one first, or 0 for none. `finish`: the address of `image.render_views` or
    `image.resize_views`, or 0 to decode only; `settings`: the arguments of that kernel from
    `places` to `scratch`. `out`: theirs.

    `files` (n, 2) int64: address and length of each. `sides` (n, 2) int64: height and width.
    `plans` (n, columns) float32: plan rows, of `views` views. `numbers` (n,) int64: positions in
    `out`. `scratch`: a `JpegScratch`; its `region` receives the last file's. `pixels` uint8, flat:
    room for the largest region and one more vector. `table`: a `CheckpointTable` of the n files.

    Not done are files whose crops exceed the image, whose region exceeds `pixels`, or which no
    decoder takes.
    """
    region = scratch.region
    for i in range(len(files)):
        height, width, row = sides[i, 0], sides[i, 1], plans[i]
        done[i] = _set_region(height, width, row, views, pixels, region)
        if not done[i]:
            continue
        y, x, rows, columns = region[0], region[1], region[2], region[3]
        file = _bytes_at(files[i, 0], files[i, 1]), files[i, 1], height, width
        memory = scratch, pixels, table, i
        done[i] = _decode(decoders, (*file, y, x, rows, columns, *memory))
        if done[i] and finish:
            image = pixels[: 3 * rows * columns].reshape(rows, columns, 3)
            call_kernel(finish, (image, y, x, row, *settings, out, numbers[i]))

"""Our Numba kernels as an operator of a DALI graph, on the CPU.

S is the side of a view, pixels. DALI is imported when an operator is made, never with this module.
"""

import functools
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types as numba_types
from numba.core import cgutils
from numba.extending import intrinsic

from ...kernels.errors import MissingPackage
from ...kernels.formats import FORMAT_NAMES
from ...kernels.plan import BICUBIC, CROP
from ...kernels.render import make_scratch, render_views, resize_views
from ...kernels.views import IMAGENET_MEAN, IMAGENET_STD

SEAM = "seam"
"""Format of `render_operator` besides `FORMAT_NAMES`: uint8 views, only resized and flipped."""

STATUSES = (
    "finished",
    "the kernel ended early, probably for lack of memory",
    "the kernel raised an exception",
    "a crop lies outside the decoded region",
)
"""Outcomes of the operator by status code. The operator returns a code because DALI's Numba
functions swallow exceptions."""
_FINISHED, _DIED, _RAISED, _OUTSIDE = range(4)

SCRATCH_COLUMNS = 512
"""Least image width, pixels, that an operator's scratch memory is made for."""


def import_dali() -> Any:
    """Import `nvidia.dali`; MissingPackage names the extra that installs it."""
    try:
        import nvidia.dali
    except ImportError as error:
        raise MissingPackage(
            "the dali loader needs nvidia-dali: pip install 'maskco-fast[dali]' (with CUDA 12: "
            "nvidia-dali-cuda120)"
        ) from error
    return nvidia.dali


@functools.cache
def render_operator(size: int, form: str) -> Any:
    """Make the DALI operator that renders one view. Takes seconds, once per process.

    Call it as `view, status = render_operator(size, form)(images, origins, rows)`, per sample:
    `images` (h, w, 3) uint8, the decoded region; `origins` (3,) int64, y and x of the region's
    corner and whether to mask; `rows` (columns,) float32, the view's columns of the plan and those
    after the views. `view` is (S, S, 3) of `form`, one of `FORMAT_NAMES` or `SEAM`; `status` (1,)
    int32, an index into `STATUSES`.
    """
    import_dali()
    from nvidia.dali import types
    from nvidia.dali.plugin.numba import NumbaFunction

    return NumbaFunction(
        _run_function(size, form),
        setup_fn=_setup_function(size),
        out_types=[types.to_dali_type(_storage(form).name), types.INT32],
        outs_ndim=[3, 1],
        in_types=[types.UINT8, types.INT64, types.FLOAT],
        ins_ndim=[3, 1, 1],
        device="cpu",
    )


def _storage(form: str) -> np.dtype:
    """dtype of a view's memory; float16 and bfloat16 are stored as uint16."""
    return np.dtype(np.uint8 if form == SEAM else FORMAT_NAMES[form].storage)


def _setup_function(size: int) -> Callable[..., None]:
    """The function by which DALI learns the outputs' shapes; they do not depend on the inputs."""

    def setup(outputs, _):
        for n in range(len(outputs[0])):
            outputs[0][n][0], outputs[0][n][1], outputs[0][n][2] = size, size, 3
            outputs[1][n][0] = 1

    return setup


def _run_function(size: int, form: str) -> Callable[..., None]:
    """The function that renders one sample's view, to be compiled by DALI."""
    draw = _draw_function(size, form)
    integer, boolean = numba_types.int64, numba_types.boolean
    allocate = machine_code(make_scratch, integer, integer, boolean)

    def run(view, status, image, origin, row):
        status[0] = _DIED  # stays if the kernel ends without returning
        # The kernels check no bounds.
        y, x = int(row[CROP]) - origin[0], int(row[CROP + 1]) - origin[1]
        height, width = int(row[CROP + 2]), int(row[CROP + 3])
        inside = y >= 0 and x >= 0 and y + height <= image.shape[0] and x + width <= image.shape[1]
        if not (inside and height >= 1 and width >= 1):
            status[0] = _OUTSIDE
            return
        scratch = allocate((size, max(SCRATCH_COLUMNS, image.shape[1]), row[BICUBIC] != 0))[1]
        out = view.reshape(1, 1, size, size, 3)
        failed = draw(image, origin[0], origin[1], row, origin[2] != 0, scratch, out)[0]
        status[0] = _RAISED if failed else _FINISHED

    return run


def _draw_function(size: int, form: str) -> Callable[..., Any]:
    """`draw(image, y, x, row, mask, scratch, out)`: the kernel that makes a view of `form`.

    Returns (whether the kernel raised, its result).
    """
    integer = numba_types.int64
    image_type = numba_types.Array(numba_types.uint8, 3, "C")
    row_type = numba_types.Array(numba_types.float32, 1, "C")
    pixels_type = numba_types.Array(numba.from_dtype(_storage(form)), 5, "C")
    scratch_type = numba.typeof(make_scratch(size, SCRATCH_COLUMNS, False))
    region_types = (image_type, integer, integer, row_type, integer)
    if form == SEAM:
        resize = machine_code(resize_views, *region_types, scratch_type, pixels_type, integer)
        return numba.njit(
            lambda image, y, x, row, mask, scratch, out: resize(
                (image, y, x, row, 1, scratch, out, 0)
            )
        )
    code = FORMAT_NAMES[form].code
    mean = np.asarray(IMAGENET_MEAN, np.float64)
    std = np.asarray(IMAGENET_STD, np.float64)
    scale = tuple(float(value) for value in np.float32(1 / (255 * std)))
    offset = tuple(float(value) for value in np.float32(-mean / std))
    normalisation_type = numba_types.Array(numba_types.float32, 2, "C")
    render = machine_code(
        render_views,
        *region_types,
        numba_types.boolean,
        integer,
        normalisation_type,
        scratch_type,
        pixels_type,
        integer,
    )

    @numba.njit
    def draw(image, y, x, row, mask, scratch, out):
        normalisation = np.empty((2, 3), np.float32)
        for channel in range(3):
            normalisation[0, channel] = scale[channel]
            normalisation[1, channel] = offset[channel]
        return render((image, y, x, row, 1, mask, code, normalisation, scratch, out, 0))

    return draw


def machine_code(dispatcher: Any, *arguments: Any) -> Any:
    """Compile a kernel for arguments of these Numba types; return a function that calls it.

    The function takes the arguments as one tuple and returns (whether the kernel raised, its
    result). It calls the kernel by address: by name, Numba would optimise the whole kernel again
    within each function that DALI compiles.
    """
    dispatcher.compile(arguments)
    compiled = dispatcher.overloads[arguments]
    address = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
    returned = compiled.signature.return_type

    @intrinsic
    def call(typing_context, values):
        result = numba_types.Tuple((numba_types.boolean, returned))

        def generate(context, builder, signature, parts):
            # Load the address as a constant, call it by Numba's convention, and keep its status.
            convention = context.call_conv
            function = convention.get_function_type(returned, arguments).as_pointer()
            callee = builder.inttoptr(context.get_constant(numba_types.uintp, address), function)
            values = cgutils.unpack_tuple(builder, parts[0])
            status, value = convention.call_function(builder, callee, returned, arguments, values)
            raised = context.cast(
                builder, status.is_error, numba_types.boolean, numba_types.boolean
            )
            return context.make_tuple(builder, result, (raised, value))

        return result(numba_types.Tuple(arguments)), generate

    return call

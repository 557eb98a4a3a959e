"""Our Numba kernels as an operator of a DALI graph, on the CPU.

H, W are the height and width of a view, pixels. DALI is imported when an operator is made, never
with this module.
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
from ...kernels.render.image import make_scratch, render_views, resize_views

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
def render_operator(form: str) -> Any:
    """Make the DALI operator that renders one view. Takes seconds, once per process.

    Call it as `view, status = render_operator(form)(shapes, images, origins, rows)`, per sample:
    `shapes` (H, W) uint8, of which only the shape is read; `images` (h, w, 3) uint8, the decoded
    region; `origins` (3,) int64, y and x of the region's corner and whether to mask; `rows`
    (columns,) float32, the view's columns of the plan, those after the views, and the
    `normalisation` of its channels, scales first. `view` is (H, W, 3) of `form`, one of
    `FORMAT_NAMES` or `SEAM`; `status` (1,) int32, an index into `STATUSES`.
    """
    import_dali()
    from nvidia.dali import types
    from nvidia.dali.plugin.numba import NumbaFunction

    return NumbaFunction(
        _run_function(form),
        setup_fn=_setup,
        out_types=[types.to_dali_type(_storage(form).name), types.INT32],
        outs_ndim=[3, 1],
        # DALI shows `_setup` as many inputs as there are outputs, hence the shapes come first.
        in_types=[types.UINT8, types.UINT8, types.INT64, types.FLOAT],
        ins_ndim=[2, 3, 1, 1],
        device="cpu",
    )


def _storage(form: str) -> np.dtype:
    """dtype of a view's memory; float16 and bfloat16 are stored as uint16."""
    return np.dtype(np.uint8 if form == SEAM else FORMAT_NAMES[form].storage)


def _setup(outputs, inputs):
    """The function by which DALI learns the outputs' shapes, from the inputs' alone."""
    for n in range(len(outputs[0])):
        outputs[0][n][0], outputs[0][n][1] = inputs[0][n][0], inputs[0][n][1]
        outputs[0][n][2] = 3
        outputs[1][n][0] = 1


def _run_function(form: str) -> Callable[..., None]:
    """The function that renders one sample's view, to be compiled by DALI."""
    draw = _draw_function(form)
    integer, boolean = numba_types.int64, numba_types.boolean
    allocate = machine_code(make_scratch, integer, integer, boolean)

    def run(view, status, shape, image, origin, row):
        status[0] = _DIED  # stays if the kernel ends without returning
        # The kernels check no bounds.
        y, x = int(row[CROP]) - origin[0], int(row[CROP + 1]) - origin[1]
        height, width = int(row[CROP + 2]), int(row[CROP + 3])
        inside = y >= 0 and x >= 0 and y + height <= image.shape[0] and x + width <= image.shape[1]
        if not (inside and height >= 1 and width >= 1):
            status[0] = _OUTSIDE
            return
        places = np.zeros((1, 3), np.int64)
        places[0, 1], places[0, 2] = view.shape[0], view.shape[1]
        side, columns = max(view.shape[0], view.shape[1]), max(SCRATCH_COLUMNS, image.shape[1])
        scratch = allocate((side, columns, row[BICUBIC] != 0))[1]
        mask, flat = origin[2] != 0, view.reshape(-1)
        failed = draw(image, origin[0], origin[1], row, places, mask, scratch, flat)[0]
        status[0] = _RAISED if failed else _FINISHED

    return run


def _draw_function(form: str) -> Callable[..., Any]:
    """`draw(image, y, x, row, places, mask, scratch, out)`: the kernel that makes a view of `form`.

    Returns (whether the kernel raised, its result).
    """
    integer = numba_types.int64
    image_type = numba_types.Array(numba_types.uint8, 3, "C")
    row_type = numba_types.Array(numba_types.float32, 1, "C")
    places_type = numba_types.Array(numba_types.int64, 2, "C")
    pixels_type = numba_types.Array(numba.from_dtype(_storage(form)), 1, "C")
    scratch_type = numba.typeof(make_scratch(32, SCRATCH_COLUMNS, False))
    region_types = (image_type, integer, integer, row_type, places_type)
    if form == SEAM:
        resize = machine_code(resize_views, *region_types, scratch_type, pixels_type, integer)
        return numba.njit(
            lambda image, y, x, row, places, mask, scratch, out: resize(
                (image, y, x, row, places, scratch, out, 0)
            )
        )
    code = FORMAT_NAMES[form].code
    normalisation_type = numba_types.Array(numba_types.float32, 3, "C")
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
    def draw(image, y, x, row, places, mask, scratch, out):
        normalisation = row[len(row) - 6 :].copy().reshape(1, 2, 3)
        return render((image, y, x, row, places, mask, code, normalisation, scratch, out, 0))

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

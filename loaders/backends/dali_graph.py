"""The DALI graphs: decode the region that all crops need, then make the views on the CPU or on the
device.

N samples a batch, V views of S × S pixels. DALI is imported when a graph is made, never with this
module.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch
from numba import types as numba_types
from numba.core import cgutils
from numba.extending import intrinsic

from ...kernels.errors import MissingPackage
from ...kernels.formats import FORMAT_NAMES
from ...kernels.plan import CROP, FLIP, VIEW_FLOATS
from ...kernels.render import make_scratch, render_views, resize_views
from ...kernels.views import IMAGENET_MEAN, IMAGENET_STD
from ..config import LoaderConfig
from ..request import Request

SEAM = "seam"
"""What `resampler` makes besides `FORMAT_NAMES`: views that are resized and flipped, and no more.
"""

STATUSES = (
    "finished",
    "the kernel ended early, most likely for want of memory",
    "the kernel raised an exception",
    "a crop lies outside the region that was decoded",
)
"""What became of a view in `numba_function`, which swallows exceptions; by the number that it
writes."""
_FINISHED, _DIED, _RAISED, _OUTSIDE = range(4)


def import_dali() -> Any:
    """The module `nvidia.dali`; ImportError names the extra where it is not installed."""
    try:
        import nvidia.dali
    except ImportError as error:
        raise MissingPackage(
            "the DALI loader wants nvidia-dali: pip install 'maskco-fast[dali]' (with CUDA 12: nvidia-dali-cuda120)"
        ) from error
    return nvidia.dali


@dataclass
class Samples:
    """A request with the bytes that carry it out, as DALI gets them."""

    request: Request
    encoded: list[np.ndarray]
    """N arrays of bytes: JPEGs as they are, or the region alone, decoded on the host, in a lossless
    format."""
    cut: np.ndarray
    """(N,) bool: the host has decoded the image and cut out the region."""

    @property
    def regions(self) -> np.ndarray:
        """(N, 4) int64: y, x, height, width of the part of each image that holds all crops."""
        return self.request.regions

    @property
    def starts(self) -> np.ndarray:
        """(N, 2) int32: y, x of the region in what is encoded."""
        return np.where(self.cut[:, None], 0, self.regions[:, :2]).astype(np.int32)


def encode_lossless(image: np.ndarray) -> np.ndarray:
    """The (h, w, 3) uint8 pixels as the bytes of a PPM file, which DALI decodes to the same pixels."""
    header = b"P6\n%d %d\n255\n" % (image.shape[1], image.shape[0])
    return np.frombuffer(header + image.tobytes(), np.uint8)


def _decode(encoded: Any, starts: Any, shapes: Any) -> Any:
    """The regions (h, w, 3) uint8, on the CPU. EXIF orientation is left as it is, so that the
    header's size holds.

    Never on the device: `image_slice(device="mixed")` with nvImageCodec 0.9 has an open report of
    crashes on H100.
    """
    from nvidia.dali import fn

    return fn.decoders.image_slice(
        encoded, start=starts, shape=shapes, axes=[0, 1], adjust_orientation=False
    )


class Graph(ABC):
    """One configuration's DALI graph: `pipeline` makes it, `views` takes the views out of what it
    returns."""

    def __init__(self, config: LoaderConfig) -> None:
        self._dali = import_dali()
        self.config = config
        self.views_count = len(config.views.views)
        self.device_id: int | None = None

    @abstractmethod
    def arrays(self, samples: Samples) -> tuple[Any, ...]:
        """What the external source yields for a batch: arrays, or lists of them, one entry a
        sample."""

    @abstractmethod
    def define(self, inputs: list[Any]) -> list[Any]:
        """The graph's outputs, from the nodes that `arrays` feeds: the V views first."""

    def pipeline(self, source: Callable[[int], Samples]) -> Any:
        """A DALI pipeline whose iteration i makes `source(i)`; StopIteration from `source` ends it.

        It keeps the dynamic executor, DALI's default, with which outputs that are still held are
        never written again.
        """
        from nvidia.dali import fn

        config = self.config
        pipeline = self._dali.Pipeline(
            batch_size=config.batch_size,
            num_threads=config.thread_count,
            device_id=self.device_id,
            prefetch_queue_depth=config.prefetch,
            exec_dynamic=True,
            set_affinity=False,
        )
        with pipeline:
            inputs = fn.external_source(
                lambda iteration: self.arrays(source(iteration)),
                num_outputs=self.inputs_count,
                batch=True,
                no_copy=self.device_id is None,  # `Samples` lives until its batch is delivered
            )
            pipeline.set_outputs(*self.define(list(inputs)))
        pipeline.build()
        return pipeline

    @property
    @abstractmethod
    def inputs_count(self) -> int:
        """Entries of what `arrays` returns."""

    def views(self, samples: Samples, outputs: Any) -> tuple[torch.Tensor, ...]:
        """V tensors (N, S, S, 3) of the configuration's `pixel_dtype`, without a copy: DALI's own
        memory."""
        tensors = [torch.from_dlpack(outputs[v].as_tensor()) for v in range(self.views_count)]
        dtype = self.config.pixel_dtype
        return tuple(tensor if tensor.dtype == dtype else tensor.view(dtype) for tensor in tensors)


class HostGraph(Graph):
    """Everything on the CPU: DALI decodes the region, our Numba kernels render each view from it.

    DALI's own ROI resize is not used, since it reads pixels outside of the crop: at the edge of a
    region it is wrong by up to 65 levels. Its colour operators are slower than ours and differ from
    torchvision's.
    """

    @property
    def inputs_count(self) -> int:
        return 3 + 2 * self.views_count

    def arrays(self, samples: Samples) -> tuple[Any, ...]:
        rows, tail = samples.request.rows, samples.request.rows[:, self.views_count * VIEW_FLOATS :]
        fed: list[Any] = [samples.encoded, samples.starts, samples.regions[:, 2:].astype(np.int32)]
        for v in range(self.views_count):
            masked = self.config.views.mask and v == 0 and self.config.dtype != torch.uint8
            origins = np.concatenate(
                [samples.regions[:, :2], np.full((len(rows), 1), masked, np.int64)], 1
            )
            view = rows[:, v * VIEW_FLOATS : (v + 1) * VIEW_FLOATS]
            fed += [origins, np.concatenate([view, tail], 1)]
        return tuple(fed)

    def define(self, inputs: list[Any]) -> list[Any]:
        form = SEAM if self.config.seam else str(self.config.dtype).removeprefix("torch.")
        render = resampler(self.config.views.size, form)
        images = _decode(*inputs[:3])
        made = [render(images, *inputs[3 + 2 * v : 5 + 2 * v]) for v in range(self.views_count)]
        return [view for view, _ in made] + [status for _, status in made]

    def views(self, samples: Samples, outputs: Any) -> tuple[torch.Tensor, ...]:
        for v in range(self.views_count):
            status = np.asarray(outputs[self.views_count + v].as_tensor())[:, 0]
            if status.any():
                n = int(np.flatnonzero(status)[0])
                raise RuntimeError(
                    f"view {v} of sample {int(samples.request.indices[n])} was not made: {STATUSES[status[n]]}"
                )
        return super().views(samples, outputs)


class DeviceGraph(Graph):
    """The seam on a CUDA device: decode, crop, resize and flip to uint8 views. Never run on a GPU
    by its authors.

    The CPU decodes the region and the device does the rest; `decode_on_device` decodes the whole
    image there instead. The crop comes before the resize, so that the filter reads nothing outside
    of it, as in torchvision. `device_id` None makes the same graph of the CPU's operators, which is
    how its values are tested without a GPU.
    """

    def __init__(
        self, config: LoaderConfig, device_id: int | None, *, decode_on_device: bool = False
    ) -> None:
        super().__init__(config)
        self.device_id = device_id
        self._decode_on_device = decode_on_device

    @property
    def inputs_count(self) -> int:
        return (1 if self._decode_on_device else 3) + 3 * self.views_count

    def arrays(self, samples: Samples) -> tuple[Any, ...]:
        rows, origins = samples.request.rows, samples.regions[:, :2]
        fed: list[Any] = [samples.encoded, samples.starts, samples.regions[:, 2:].astype(np.int32)]
        if self._decode_on_device:
            fed, origins = [samples.encoded], origins - samples.starts
        for v in range(self.views_count):
            crop = rows[:, v * VIEW_FLOATS + CROP : v * VIEW_FLOATS + CROP + 4].astype(np.int32)
            flip = rows[:, v * VIEW_FLOATS + FLIP].astype(np.int32)
            fed += [
                (crop[:, :2] - origins).astype(np.int32),
                np.ascontiguousarray(crop[:, 2:]),
                flip,
            ]
        return tuple(fed)

    def define(self, inputs: list[Any]) -> list[Any]:
        from nvidia.dali import fn, types

        if self._decode_on_device:
            on = "cpu" if self.device_id is None else "mixed"
            images = fn.decoders.image(
                inputs[0], device=on, jpeg_fancy_upsampling=True, adjust_orientation=False
            )
        else:
            images = _decode(*inputs[:3])
            images = images if self.device_id is None else images.gpu()
        size, views = self.config.views.size, []
        crops = inputs[-3 * self.views_count :]
        for v in range(self.views_count):
            start, shape, flip = crops[3 * v : 3 * v + 3]
            view = fn.slice(images, start=start, shape=shape, axes=[0, 1])
            view = fn.resize(
                view, size=[size, size], interp_type=types.INTERP_LINEAR, antialias=True
            )
            views.append(fn.flip(view, horizontal=flip))
        return views


class Probe:
    """Tells which of a failed batch's samples DALI does not decode: its errors name a sample only
    now and then."""

    def __init__(self) -> None:
        self._dali = import_dali()
        self._sample: tuple[np.ndarray, ...] = ()
        self._pipeline: Any = None

    def decodes(self, samples: Samples, n: int) -> bool:
        """Whether DALI decodes sample `n` by itself."""
        sizes = samples.regions[n, 2:].astype(np.int32)
        self._sample = (samples.encoded[n][None], samples.starts[n][None], sizes[None])
        self._pipeline = self._pipeline or self._make()
        try:
            self._pipeline.run()
        except RuntimeError:  # the answer; and the end of that pipeline
            self._pipeline = None
            return False
        return True

    def _make(self) -> Any:
        from nvidia.dali import fn

        pipeline = self._dali.Pipeline(1, 1, None, prefetch_queue_depth=1, set_affinity=False)
        with pipeline:
            pipeline.set_outputs(
                _decode(*fn.external_source(lambda: self._sample, num_outputs=3, batch=True))
            )
        return pipeline


@functools.cache
def resampler(size: int, form: str) -> Any:
    """The DALI operator that renders one view: `view, status = resampler(size, form)(images,
    origins, rows)`.

    `images` (h, w, 3) uint8, regions of decoded images; `origins` (3,) int64: y, x of the region's
    corner and whether to mask; `rows` (columns,) float32: the view's columns of the plan and those
    after the views. `view` (S, S, 3) of `form`, one of `FORMAT_NAMES` or `SEAM`; `status` (1,)
    int32, of `STATUSES`. Takes seconds, once a process.
    """
    import_dali()
    from nvidia.dali import types
    from nvidia.dali.plugin.numba import NumbaFunction

    output = {"float32": types.FLOAT, "float16": types.UINT16, "bfloat16": types.UINT16}.get(
        form, types.UINT8
    )
    # The shapes of as many inputs as there are outputs reach the setup function, which needs none
    # of them.
    return NumbaFunction(
        _run_function(size, form),
        setup_fn=_setup_function(size),
        out_types=[output, types.INT32],
        outs_ndim=[3, 1],
        in_types=[types.UINT8, types.INT64, types.FLOAT],
        ins_ndim=[3, 1, 1],
        device="cpu",
    )


def _setup_function(size: int) -> Callable[..., None]:
    def setup(outputs, _):
        for n in range(len(outputs[0])):
            outputs[0][n][0], outputs[0][n][1], outputs[0][n][2] = size, size, 3
            outputs[1][n][0] = 1

    return setup


def _run_function(size: int, form: str) -> Callable[..., None]:
    """One sample of `resampler`, to be compiled by DALI."""
    element = {
        "float32": numba_types.float32,
        "float16": numba_types.uint16,
        "bfloat16": numba_types.uint16,
    }
    pixels = numba_types.Array(element.get(form, numba_types.uint8), 5, "C")
    image_type, row_type = (
        numba_types.Array(numba_types.uint8, 3, "C"),
        numba_types.Array(numba_types.float32, 1, "C"),
    )
    integer, scratch_type = numba_types.int64, numba.typeof(make_scratch(size, 512))
    allocate = machine_code(make_scratch, integer, integer)
    region = (image_type, integer, integer, row_type, integer)
    if form == SEAM:
        resize = machine_code(resize_views, *region, scratch_type, pixels, integer)
        draw = numba.njit(
            lambda image, y, x, row, mask, scratch, out: resize(
                (image, y, x, row, 1, scratch, out, 0)
            )
        )
    else:
        number = FORMAT_NAMES[form].code
        scale = tuple(
            float(one) for one in np.float32(1 / (255 * np.asarray(IMAGENET_STD, np.float64)))
        )
        offset = tuple(
            float(one)
            for one in np.float32(
                -np.asarray(IMAGENET_MEAN, np.float64) / np.asarray(IMAGENET_STD, np.float64)
            )
        )
        normalisation_type = numba_types.Array(numba_types.float32, 2, "C")
        arguments = (
            *region,
            numba_types.boolean,
            integer,
            normalisation_type,
            scratch_type,
            pixels,
            integer,
        )
        render = machine_code(render_views, *arguments)

        @numba.njit
        def draw(image, y, x, row, mask, scratch, out):
            normalisation = np.empty((2, 3), np.float32)
            for channel in range(3):
                normalisation[0, channel], normalisation[1, channel] = (
                    scale[channel],
                    offset[channel],
                )
            return render((image, y, x, row, 1, mask, number, normalisation, scratch, out, 0))

    def run(view, status, image, origin, row):
        status[0] = _DIED
        y, x = int(row[CROP]) - origin[0], int(row[CROP + 1]) - origin[1]
        height, width = int(row[CROP + 2]), int(row[CROP + 3])
        inside = y >= 0 and x >= 0 and y + height <= image.shape[0] and x + width <= image.shape[1]
        if not (inside and height >= 1 and width >= 1):
            status[0] = _OUTSIDE
            return
        scratch = allocate((size, max(512, image.shape[1])))[1]
        out = view.reshape(1, 1, size, size, 3)
        failed = draw(image, origin[0], origin[1], row, origin[2] != 0, scratch, out)[0]
        status[0] = _RAISED if failed else _FINISHED

    return run


def machine_code(dispatcher: Any, *arguments: Any) -> Any:
    """A kernel's machine code for arguments of these Numba types, to be called by its address with
    their tuple.

    The call yields (whether it raised, its result). Calling the kernel by name would have Numba
    optimise all of it once more with each function that DALI compiles, a matter of 16 seconds where
    this takes 3.
    """
    dispatcher.compile(arguments)
    compiled = dispatcher.overloads[arguments]
    address = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
    returned = compiled.signature.return_type

    @intrinsic
    def call(typing_context, values):
        result = numba_types.Tuple((numba_types.boolean, returned))

        def generate(context, builder, signature, parts):
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

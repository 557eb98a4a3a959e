"""DALI graphs: decode the region that all crops need, then make the views on the CPU or the device.

N samples per batch, V views. DALI is imported when a graph is made, never with this
module.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...kernels.errors import MaskCoError
from ...kernels.plan import CROP, FLIP, VIEW_FLOATS, WINDOW
from ...kernels.render.image import normalisation
from ...kernels.torch_formats import FORMATS
from ...kernels.views import BICUBIC
from ..config import LoaderConfig
from ..request import Request
from .dali_operator import SEAM, STATUSES, import_dali, render_operator


class DaliError(MaskCoError, RuntimeError):
    """A DALI pipeline failed for another reason than a bad image."""


@dataclass
class Samples:
    """A request and its images as DALI gets them."""

    request: Request
    encoded: list[np.ndarray]
    """N arrays of bytes: a JPEG file, or the region's pixels in a lossless format."""
    cut: np.ndarray
    """(N,) bool: the host decoded the image, and `encoded` holds the region only."""

    @property
    def regions(self) -> np.ndarray:
        """(N, 4) int64: y, x, height, width of the regions that contain all crops of an image."""
        return self.request.regions

    @property
    def starts(self) -> np.ndarray:
        """(N, 2) int32: y, x of the region in the encoded image."""
        return np.where(self.cut[:, None], 0, self.regions[:, :2]).astype(np.int32)


def encode_lossless(image: np.ndarray) -> np.ndarray:
    """Encode (h, w, 3) uint8 pixels as a PPM file, which DALI decodes to the same pixels."""
    header = b"P6\n%d %d\n255\n" % (image.shape[1], image.shape[0])
    return np.frombuffer(header + image.tobytes(), np.uint8)


def _decode(encoded: Any, starts: Any, shapes: Any) -> Any:
    """Decode regions (h, w, 3) uint8 on the CPU, ignoring EXIF orientation as all loaders do.

    On the device, `image_slice(device="mixed")` of nvImageCodec 0.9 has an open report of crashes
    on H100.
    """
    from nvidia.dali import fn

    return fn.decoders.image_slice(
        encoded, start=starts, shape=shapes, axes=[0, 1], adjust_orientation=False
    )


class Graph(ABC):
    """The DALI graph of a configuration; subclasses define its inputs and operators."""

    def __init__(self, config: LoaderConfig) -> None:
        self._dali = import_dali()
        self.config = config
        self.views_count = len(config.views.views)
        self.device_id: int | None = None

    @abstractmethod
    def arrays(self, samples: Samples) -> tuple[Any, ...]:
        """The graph's inputs for a batch: arrays, or lists of arrays, with one entry per sample."""

    @abstractmethod
    def define(self, inputs: list[Any]) -> list[Any]:
        """Define the operators; return the output nodes, the V views first."""

    def pipeline(self, source: Callable[[int], Samples]) -> Any:
        """Build a DALI pipeline whose iteration i renders `source(i)`; StopIteration ends it.

        Only with the dynamic executor does DALI never overwrite outputs that are still referenced.
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
        """Number of inputs that `arrays` returns."""

    def views(self, samples: Samples, outputs: Any) -> tuple[torch.Tensor, ...]:
        """V tensors (N, height, width, 3) of `LoaderConfig.pixel_dtype` in DALI's memory, without a
        copy."""
        tensors = [torch.from_dlpack(outputs[v].as_tensor()) for v in range(self.views_count)]
        dtype = self.config.pixel_dtype
        return tuple(tensor if tensor.dtype == dtype else tensor.view(dtype) for tensor in tensors)


class HostGraph(Graph):
    """CPU graph: DALI decodes the region; our Numba kernels render each view from it.

    DALI's own ROI resize reads pixels outside the crop, which is wrong at the edge of a region. Its
    colour operators are slower than ours and differ from torchvision's.
    """

    def __init__(self, config: LoaderConfig) -> None:
        super().__init__(config)
        views = config.views
        self._normalisations = [normalisation(view.mean, view.std) for view in views.views]
        # Of these only the shapes are read.
        shapes = {size: np.empty(size, np.uint8) for size in views.layout.sizes}
        self._shapes = [shapes[size] for size in views.layout.sizes]

    @property
    def inputs_count(self) -> int:
        return 3 + 3 * self.views_count

    def arrays(self, samples: Samples) -> tuple[Any, ...]:
        rows = samples.request.rows  # (N, columns)
        tail = rows[:, self.views_count * VIEW_FLOATS :]  # the boxes
        fed: list[Any] = [samples.encoded, samples.starts, samples.regions[:, 2:].astype(np.int32)]
        for v in range(self.views_count):
            masked = self.config.views.mask and v == 0 and FORMATS[self.config.dtype].normalised
            origins = np.concatenate(
                [samples.regions[:, :2], np.full((len(rows), 1), masked, np.int64)], 1
            )
            view = rows[:, v * VIEW_FLOATS : (v + 1) * VIEW_FLOATS]
            affine = np.broadcast_to(self._normalisations[v].reshape(1, -1), (len(rows), 6))
            shapes = [self._shapes[v]] * len(rows)
            fed += [shapes, origins, np.concatenate([view, tail, affine], 1)]
        return tuple(fed)

    def define(self, inputs: list[Any]) -> list[Any]:
        form = SEAM if self.config.seam else FORMATS[self.config.dtype].name
        render = render_operator(form)
        images = _decode(*inputs[:3])
        # Inputs: encoded image, start, shape; then shape, origins and plan columns of each view.
        made = []
        for v in range(self.views_count):
            shapes, origins, rows = inputs[3 + 3 * v : 6 + 3 * v]
            made.append(render(shapes, images, origins, rows))
        return [view for view, _ in made] + [status for _, status in made]

    def views(self, samples: Samples, outputs: Any) -> tuple[torch.Tensor, ...]:
        for v in range(self.views_count):
            status = np.asarray(outputs[self.views_count + v].as_tensor())[:, 0]
            if status.any():
                n = int(np.flatnonzero(status)[0])
                raise DaliError(
                    f"view {v} of sample {int(samples.request.indices[n])} was not rendered: "
                    f"{STATUSES[status[n]]}. Choose the backend native"
                )
        return super().views(samples, outputs)


class DeviceGraph(Graph):
    """CUDA graph: decode, crop, resize and flip to uint8 views.

    The CPU decodes the region and the device does the rest; with `decode_on_device` the device
    decodes whole images. The crop precedes the resize, so that the filter reads nothing outside it,
    as in torchvision. Within the crop it reads around the window, DALI's region of interest. DALI
    may resize rows before columns: where edges overshoot, bicubic rectangles are then up to a few
    levels off. With `device_id` None the graph consists of CPU operators; tests compare its values
    without a GPU.
    """

    def __init__(
        self, config: LoaderConfig, device_id: int | None, *, decode_on_device: bool = False
    ) -> None:
        super().__init__(config)
        self.device_id = device_id
        self._decode_on_device = decode_on_device

    @property
    def inputs_count(self) -> int:
        return (1 if self._decode_on_device else 3) + 5 * self.views_count

    def arrays(self, samples: Samples) -> tuple[Any, ...]:
        rows, origins = samples.request.rows, samples.regions[:, :2]
        fed: list[Any] = [samples.encoded, samples.starts, samples.regions[:, 2:].astype(np.int32)]
        if self._decode_on_device:
            fed, origins = [samples.encoded], origins - samples.starts
        for v in range(self.views_count):
            crop = rows[:, v * VIEW_FLOATS + CROP : v * VIEW_FLOATS + CROP + 4].astype(np.int32)
            window = rows[:, v * VIEW_FLOATS + WINDOW : v * VIEW_FLOATS + WINDOW + 4]
            corner = window[:, :2] - crop[:, :2].astype(np.float32)
            fed += [
                (crop[:, :2] - origins).astype(np.int32),
                np.ascontiguousarray(crop[:, 2:]),
                corner,
                corner + window[:, 2:],
                rows[:, v * VIEW_FLOATS + FLIP].astype(np.int32),
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
        views, sizes = [], self.config.views.layout.sizes
        crops = inputs[-5 * self.views_count :]
        for v, settings in enumerate(self.config.views.views):
            start, shape, corner, end, flip = crops[5 * v : 5 * v + 5]
            bicubic = settings.interpolation == BICUBIC
            view = fn.slice(images, start=start, shape=shape, axes=[0, 1])
            view = fn.resize(
                view,
                size=list(sizes[v]),
                roi_start=corner,
                roi_end=end,
                interp_type=types.INTERP_CUBIC if bicubic else types.INTERP_LINEAR,
                antialias=True,
            )
            views.append(fn.flip(view, horizontal=flip))
        return views


class Probe:
    """Finds the samples of a failed batch that DALI refuses, because its errors rarely name one."""

    def __init__(self) -> None:
        self._dali = import_dali()
        self._sample: tuple[np.ndarray, ...] = ()
        self._pipeline: Any = None

    def decodes(self, samples: Samples, n: int) -> bool:
        """Whether DALI decodes sample `n`, alone in a batch."""
        sizes = samples.regions[n, 2:].astype(np.int32)
        self._sample = (samples.encoded[n][None], samples.starts[n][None], sizes[None])
        self._pipeline = self._pipeline or self._make()
        try:
            self._pipeline.run()
        except RuntimeError:  # a pipeline cannot be used after an error
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

"""DALI's own operators, as its users would write them, for the bench."""

import itertools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from maskco_fast.bench.peers import Epochs
from maskco_fast.bench.peers_gpu import finish, row_device
from maskco_fast.bench.setting import Setting
from maskco_fast.kernels.plan import plan
from maskco_fast.kernels.views import IMAGENET_MEAN, IMAGENET_STD
from maskco_fast.loaders import Dataset, ViewConfig
from maskco_fast.loaders.order import SHARDS_PER_BLOCK, order

BLUR_WINDOW = 23
"""Taps of a Gaussian of at most 2 pixels (moco's and lightly's MoCo v2)."""


def colour_and_normalise(images: Any, dtype: Any, mirror: Any = 0) -> Any:
    """MoCo v2's jitter, grayscale and blur, a flip where `mirror` is 1, and normalisation.

    Called while a pipeline with `enable_conditionals` is built. `dtype`: DALI's type of the output,
    channels first.
    """
    from nvidia.dali import fn, types

    out = images
    if fn.random.coin_flip(probability=0.8, dtype=types.BOOL):
        out = fn.color_twist(
            out,
            brightness=fn.random.uniform(range=(0.6, 1.4)),
            contrast=fn.random.uniform(range=(0.6, 1.4)),
            saturation=fn.random.uniform(range=(0.6, 1.4)),
            hue=fn.random.uniform(range=(-36.0, 36.0)),
        )
    if fn.random.coin_flip(probability=0.2, dtype=types.BOOL):
        out = fn.saturation(out, saturation=0.0)
    if fn.random.coin_flip(probability=0.5, dtype=types.BOOL):
        sigma = fn.random.uniform(range=(0.1, 2.0))
        out = fn.gaussian_blur(out, sigma=sigma, window_size=BLUR_WINDOW)
    return fn.crop_mirror_normalize(
        out,
        mirror=mirror,
        mean=[255 * mean for mean in IMAGENET_MEAN],
        std=[255 * std for std in IMAGENET_STD],
        dtype=dtype,
    )


def dali_stock(dataset: Dataset, setting: Setting, *, on_gpu: bool = False) -> Epochs:
    """MoCo v2 by DALI's own operators, from the tar shards through its webdataset reader.

    `on_gpu`: decoded by nvJPEG and augmented on the CUDA device.
    """
    device = row_device("DALI's GPU operators", on_gpu)
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.pytorch import DALIGenericIterator, LastBatchPolicy

    place, decoder = ("gpu", "mixed") if device.type == "cuda" else ("cpu", "cpu")

    def view(images: Any) -> Any:
        crop = fn.random_resized_crop(
            images, size=setting.size, random_area=(0.2, 1.0), device=place
        )
        return colour_and_normalise(crop, types.FLOAT, mirror=fn.random.coin_flip())

    @pipeline_def(
        batch_size=setting.batch_size,
        num_threads=setting.workers,
        device_id=device.index,
        enable_conditionals=True,
    )
    def moco_v2() -> Any:
        paths = [shard.path for shard in dataset.shards]
        jpegs = fn.readers.webdataset(paths=paths, ext=["jpg"], random_shuffle=True, name="reader")
        images = fn.decoders.image(jpegs, device=decoder, output_type=types.RGB)
        return view(images), view(images)

    iterator = DALIGenericIterator(
        moco_v2(),
        ["query", "key"],
        reader_name="reader",
        last_batch_policy=LastBatchPolicy.DROP,
        auto_reset=True,
    )

    def epoch(count: int) -> Iterator[Any]:
        """Continues where the last pass stopped: DALI cannot be reset in the middle of an epoch."""
        for _ in range(max(count // setting.batch_size, 1)):
            try:
                outputs = next(iterator)
            except StopIteration:  # the epoch ended, and auto_reset began the next
                outputs = next(iterator)
            finish(device)
            yield [outputs[0]["query"], outputs[0]["key"]]  # a list with a dictionary a pipeline

    return epoch


def dali_dynamic(dataset: Dataset, setting: Setting, *, on_gpu: bool = False) -> Epochs:
    """MoCo v2 in DALI's dynamic mode: operators called one by one from Python, without a graph.

    `on_gpu`: as for `dali_stock`.
    """
    device = row_device("DALI's GPU operators", on_gpu)
    import nvidia.dali.experimental.dynamic as ndd
    from nvidia.dali import types

    place = "gpu" if device.type == "cuda" else "cpu"
    size = setting.batch_size

    def drawn(low: float, high: float, chosen: Any, neutral: float) -> Any:
        """A uniform value for each chosen image, `neutral` for the others."""
        value = ndd.random.uniform(range=(low, high), batch_size=size)
        return value * chosen + neutral * (1 - chosen)

    def view(images: Any) -> Any:
        out = ndd.random_resized_crop(
            images, size=setting.size, random_area=(0.2, 1.0), device=place
        )
        jittered = ndd.random.coin_flip(probability=0.8, batch_size=size)
        coloured = ndd.random.coin_flip(probability=0.8, batch_size=size)
        out = ndd.color_twist(
            out,
            brightness=drawn(0.6, 1.4, jittered, 1),
            contrast=drawn(0.6, 1.4, jittered, 1),
            saturation=drawn(0.6, 1.4, jittered, 1) * coloured,
            hue=drawn(-36.0, 36.0, jittered, 0),
        )
        samples = list(out.tensors)
        blurred = [n for n in range(len(samples)) if random.random() < 0.5]
        if blurred:
            sigmas = [random.uniform(0.1, 2.0) for _ in blurred]
            some = ndd.gaussian_blur(
                ndd.batch([samples[n] for n in blurred]),
                sigma=ndd.batch(np.array(sigmas, np.float32)),
                window_size=BLUR_WINDOW,
            )
            for n, sample in zip(blurred, some.tensors):
                samples[n] = sample
        out = ndd.crop_mirror_normalize(
            ndd.batch(samples),
            mirror=ndd.random.coin_flip(batch_size=size),
            mean=[255 * mean for mean in IMAGENET_MEAN],
            std=[255 * std for std in IMAGENET_STD],
            dtype=types.FLOAT,
        )
        return torch.from_dlpack(ndd.as_tensor(out))

    ndd.set_num_threads(setting.workers)
    reader = ndd.readers.Webdataset(
        paths=[shard.path for shard in dataset.shards], ext=["jpg"], random_shuffle=True
    )

    def epoch(count: int) -> Iterator[Any]:
        batches = max(count // setting.batch_size, 1)
        for (jpegs,) in itertools.islice(reader.next_epoch(batch_size=size), batches):
            images = ndd.decoders.image(jpegs, device=place, output_type=types.RGB)
            views = [view(images), view(images)]
            finish(device)
            yield views

    return epoch


def dali_roi_resize(dataset: Dataset, setting: Setting) -> Epochs:
    """Our crops by DALI's own graph: decode, ROI resize, flip; two views (N, size, size, 3) uint8.

    The whole image is decoded, because DALI's resize reads pixels outside the crop.
    """
    from nvidia.dali import fn, pipeline_def, types

    views = ViewConfig.maskco(setting.size)
    positions = order(dataset.shard_sizes, seed=0, epoch=0, shuffle=True, block=SHARDS_PER_BLOCK)
    batches = max(len(positions) // setting.batch_size, 1)

    def source(iteration: int) -> tuple[Any, ...]:
        """Encoded bytes, then start, end and flip of each view; the epoch's batches in turn."""
        begin = iteration % batches * setting.batch_size
        indices = np.resize(positions[begin : begin + setting.batch_size], setting.batch_size)
        samples = dataset.samples[indices]
        rows = plan(views, 0, 0, samples["sample_id"], samples["height"], samples["width"])
        named = rows.view(views.plan_dtype)[:, 0]["views"]
        crops = named["crop"]  # (N, 2, 4): y, x, height, width
        start = crops[..., :2]
        end = crops[..., :2] + crops[..., 2:]
        flips = named["flip"].astype(np.int32)
        encoded = [np.frombuffer(dataset.read(index), np.uint8) for index in indices]
        return encoded, *(
            np.ascontiguousarray(part[:, v]) for v in range(2) for part in (start, end, flips)
        )

    @pipeline_def(
        batch_size=setting.batch_size,
        num_threads=setting.workers,
        device_id=None,
        prefetch_queue_depth=3,
    )
    def graph() -> tuple[Any, Any]:
        encoded, *inputs = fn.external_source(source, num_outputs=7, batch=True)
        images = fn.decoders.image(
            encoded, device="cpu", output_type=types.RGB, adjust_orientation=False
        )
        made = []
        for v in range(2):
            start, end, flip = inputs[3 * v : 3 * v + 3]
            view = fn.resize(
                images, size=[setting.size] * 2, roi_start=start, roi_end=end, antialias=True
            )
            made.append(fn.flip(view, horizontal=flip))
        return made[0], made[1]

    pipeline = graph()
    pipeline.build()

    def epoch(count: int) -> Iterator[Any]:
        for _ in range(max(count // setting.batch_size, 1)):
            yield [torch.from_dlpack(output.as_tensor()) for output in pipeline.run()]

    return epoch

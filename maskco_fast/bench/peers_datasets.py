"""Libraries with a dataset and a loader of their own, as their users would write them, for the
bench: LitData and Grain, both with torchvision's decoder and v2 transforms."""

import functools
import itertools
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from maskco_fast.bench.peers import Epochs, TwoCrops, decode_tensor, v2_transform
from maskco_fast.bench.setting import Setting
from maskco_fast.kernels.compiler.cache import cache_folder
from maskco_fast.loaders import Dataset


def litdata(dataset: Dataset, setting: Setting) -> Epochs:
    """LitData's StreamingDataset, from chunks of 64 MB that hold the original JPEGs."""
    from litdata import StreamingDataLoader, StreamingDataset

    chunks = _write_chunks(dataset, setting.workers)
    views = functools.partial(_views, TwoCrops(v2_transform(setting.size)))
    images = StreamingDataset(str(chunks), shuffle=True, drop_last=True, transform=views)
    loader = StreamingDataLoader(
        images,
        batch_size=setting.batch_size,
        num_workers=setting.workers,
        drop_last=True,
        persistent_workers=True,
    )
    return lambda count: itertools.islice(loader, count // setting.batch_size)


def _write_chunks(dataset: Dataset, workers: int) -> pathlib.Path:
    """The folder of the images as LitData stores them; written at the first call."""
    from litdata import optimize

    folder = cache_folder("bench") / f"litdata-{dataset.fingerprint}"
    if not folder.exists():
        unfinished = folder.with_name(f"{folder.name}.part")
        optimize(
            fn=functools.partial(_read, dataset),
            inputs=list(range(len(dataset))),
            output_dir=str(unfinished),
            chunk_bytes="64MB",
            num_workers=workers,
            mode="overwrite",
            verbose=False,
        )
        unfinished.rename(folder)
    return folder


def _read(dataset: Dataset, position: int) -> dict[str, bytes]:
    return {"image": dataset.read(position)}


def _views(two_crops: TwoCrops, sample: dict[str, bytes]) -> list[torch.Tensor]:
    return two_crops(decode_tensor(sample["image"]))


class _ViewsAt:
    """The views of the image at a position."""

    def __init__(self, dataset: Dataset, size: int) -> None:
        self._dataset = dataset
        self._two_crops = TwoCrops(v2_transform(size))

    def __call__(self, position: int) -> list[torch.Tensor]:
        return self._two_crops(decode_tensor(self._dataset.read(position)))


def grain(dataset: Dataset, setting: Setting) -> Epochs:
    """Grain's MapDataset in worker processes.

    Its workers start with each iterator, so one iterator serves all passes. The few batches that
    they have ready when a pass begins are in the row's favour.
    """
    from grain import MapDataset, MultiprocessingOptions, ReadOptions

    images = (
        MapDataset.source(range(len(dataset)))
        .shuffle(seed=0)
        .repeat()
        .map(_ViewsAt(dataset, setting.size))
        .to_iter_dataset(ReadOptions(num_threads=1, prefetch_buffer_size=4))
        .batch(setting.batch_size, drop_remainder=True, batch_fn=_stack)
        .mp_prefetch(MultiprocessingOptions(num_workers=setting.workers))
    )
    batches: Iterator[Any] = iter(images)

    def epoch(count: int) -> Iterator[Any]:
        for views in itertools.islice(batches, count // setting.batch_size):
            yield [torch.from_numpy(view) for view in views]

    return epoch


def _stack(samples: Any) -> list[np.ndarray]:
    """A batch of samples' views, as arrays, which Grain hands over in shared memory."""
    return [torch.stack(view).numpy() for view in zip(*samples)]

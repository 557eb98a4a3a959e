"""FFCV's and FFCV-SSL's own pipelines, as their users would write them, from a .beton of the
original JPEGs."""

import pathlib
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from maskco_fast.bench.peers import Epochs
from maskco_fast.bench.setting import Setting
from maskco_fast.kernels.coefficients.record import VERSION as RECORD_VERSION
from maskco_fast.kernels.compiler.cache import cache_folder
from maskco_fast.kernels.errors import MissingPackage
from maskco_fast.loaders import Dataset
from maskco_fast.loaders.shards.beton_encode import BetonOptions, Form
from maskco_fast.loaders.shards.beton_writer import write_beton


def ffcv_stock(dataset: Dataset, setting: Setting) -> Epochs:
    """One view: FFCV's RandomResizedCropRGBImageDecoder and flip (its ImageNet example)."""
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.transforms import RandomHorizontalFlip, ToTensor

    decoder = RandomResizedCropRGBImageDecoder((setting.size, setting.size), scale=(0.2, 1.0))
    return _epochs(dataset, setting, {"image": [decoder, RandomHorizontalFlip(), ToTensor()]})


def ffcv_ssl(dataset: Dataset, setting: Setting) -> Epochs:
    """Two views: a pipeline each over the same field, both decoding (FFCV-SSL's
    examples/test_ffcv_augmentations_ssl.py)."""
    if setting.ffcv_ssl is None:
        raise MissingPackage(
            "the row ffcv_ssl needs a checkout of FFCV-SSL that has been built in place: "
            "pass --ffcv-ssl DIR"
        )
    # Both packages are called ffcv; in this row's process the fork's hides the other.
    sys.path.insert(0, str(setting.ffcv_ssl))
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.transforms import RandomColorJitter, RandomGrayscale, RandomHorizontalFlip, ToTensor

    def view() -> list[Any]:
        return [
            RandomResizedCropRGBImageDecoder((setting.size, setting.size), scale=(0.2, 1.0)),
            RandomHorizontalFlip(),
            RandomColorJitter(
                jitter_prob=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1
            ),
            RandomGrayscale(gray_prob=0.2),
            ToTensor(),
        ]

    pipelines = {"image": view(), "key": view()}
    return _epochs(dataset, setting, pipelines, custom_field_mapper={"key": "image"})


def _epochs(
    dataset: Dataset, setting: Setting, pipelines: dict[str, Any], **options: Any
) -> Epochs:
    """Passes of an FFCV loader over the .beton of these images."""
    from ffcv.loader import Loader, OrderOption

    loader = Loader(
        str(beton_of(dataset)),
        batch_size=setting.batch_size,
        num_workers=setting.workers,
        order=OrderOption.RANDOM,
        drop_last=True,
        pipelines={**pipelines, "label": None, "sample_id": None},
        **options,
    )
    everything = loader.indices

    def epoch(count: int) -> Iterable[Any]:
        # Leaving an epoch early would leak its thread and buffers, so the epoch itself is shorter.
        chosen = np.random.default_rng(loader.next_epoch).permutation(everything)[:count]
        loader.traversal_order.indices = chosen
        return loader

    return epoch


def beton_of(dataset: Dataset, form: Form = "jpeg") -> pathlib.Path:
    """The images as a .beton of this form in the cache folder, written at the first call."""
    kind = "" if form == "jpeg" else f".{form}.{RECORD_VERSION}"
    path = cache_folder("bench") / f"{dataset.fingerprint}{kind}.beton"
    if not path.exists():
        write_beton(dataset, path, BetonOptions(form=form), check=False)
    return path

"""FFCV's and FFCV-SSL's own pipelines, as their users would write them, from a .beton of the
original JPEGs."""

import pathlib
import sys
from typing import TYPE_CHECKING, Any

from maskco_fast.kernels.compiler.cache import cache_folder
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import Dataset
from maskco_fast.loaders.shards.beton_writer import write_beton

if TYPE_CHECKING:
    from maskco_fast.bench.rows import Setting


def ffcv_stock(dataset: Dataset, setting: "Setting") -> Any:
    """One view: FFCV's RandomResizedCropRGBImageDecoder and flip (its ImageNet example)."""
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.transforms import RandomHorizontalFlip, ToTensor

    decoder = RandomResizedCropRGBImageDecoder((setting.size, setting.size), scale=(0.2, 1.0))
    return _loader(dataset, setting, {"image": [decoder, RandomHorizontalFlip(), ToTensor()]})


def ffcv_ssl(dataset: Dataset, setting: "Setting") -> Any:
    """Two views: a pipeline each over the same field, both decoding (FFCV-SSL's examples)."""
    if setting.ffcv_ssl is None:
        raise InvalidInput(
            "the ffcv_ssl row wants the path of an FFCV-SSL checkout built in place: --ffcv-ssl DIR"
        )
    sys.path.insert(
        0, str(setting.ffcv_ssl)
    )  # of this row's own process: the fork's package is called ffcv too
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

    return _loader(
        dataset, setting, {"image": view(), "key": view()}, custom_field_mapper={"key": "image"}
    )


def _loader(dataset: Dataset, setting: "Setting", pipelines: dict[str, Any], **options: Any) -> Any:
    from ffcv.loader import Loader, OrderOption

    return Loader(
        str(_beton(dataset)),
        batch_size=setting.batch_size,
        num_workers=setting.workers,
        order=OrderOption.RANDOM,
        drop_last=True,
        pipelines={**pipelines, "label": None, "sample_id": None},
        **options,
    )


def _beton(dataset: Dataset) -> pathlib.Path:
    """The images as a .beton in the cache folder, written once."""
    path = cache_folder("bench") / f"{dataset.fingerprint}.beton"
    if not path.exists():
        write_beton(dataset, path, check=False)
    return path

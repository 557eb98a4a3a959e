"""Data loaders for self-supervised vision: shards in, augmented views out, in an exact order.

    from maskco_fast.loaders import ViewConfig, make_loader

    with make_loader("cc3m-{0000..0331}.tar", batch_size=256, views=ViewConfig.maskco()) as loader:
        for query, key, masked_box, key_boxes, target in loader:
            ...

Public names are imported on first use, so that small modules (`system.cpus`) load without torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..kernels.views import View, ViewConfig
    from .batch import Batch
    from .config import LoaderConfig
    from .factory import LOADERS, make_loader
    from .jpeg_decoder import decode_jpeg
    from .loader import IteratorSuperseded, Loader
    from .quarantine import Quarantine, TooManyBadSamples
    from .remote.config import RemoteConfig
    from .remote.errors import ReadEnded, RemoteError
    from .shards.dataset import Dataset, EmptyDataset
    from .shards.open_dataset import open_dataset

_HOMES = {
    "LOADERS": ".factory",
    "Batch": ".batch",
    "Dataset": ".shards.dataset",
    "EmptyDataset": ".shards.dataset",
    "IteratorSuperseded": ".loader",
    "Loader": ".loader",
    "LoaderConfig": ".config",
    "Quarantine": ".quarantine",
    "ReadEnded": ".remote.errors",
    "RemoteConfig": ".remote.config",
    "RemoteError": ".remote.errors",
    "TooManyBadSamples": ".quarantine",
    "View": "..kernels.views",
    "ViewConfig": "..kernels.views",
    "decode_jpeg": ".jpeg_decoder",
    "make_loader": ".factory",
    "open_dataset": ".shards.open_dataset",
}
"""Public name to the module that defines it; type checkers read the imports above instead."""

__all__ = [
    "LOADERS",
    "Batch",
    "Dataset",
    "EmptyDataset",
    "IteratorSuperseded",
    "Loader",
    "LoaderConfig",
    "Quarantine",
    "ReadEnded",
    "RemoteConfig",
    "RemoteError",
    "TooManyBadSamples",
    "View",
    "ViewConfig",
    "decode_jpeg",
    "make_loader",
    "open_dataset",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name], __package__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

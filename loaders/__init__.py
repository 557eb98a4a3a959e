"""Data loaders for self-supervised vision: shards in, augmented views out, on the CPU and in exact
order.

from maskco_fast.loaders import ViewConfig, make_loader

with make_loader("cc3m-{0000..0331}.tar", batch_size=256, views=ViewConfig.maskco()) as loader:
    for query, key, masked_box, key_boxes, sample_id in loader:
        ...
"""

from ..kernels.views import View, ViewConfig
from .batch import Batch
from .loader import Loader
from .make_loader import LOADERS, make_loader
from .quarantine import Quarantine, TooManyBadSamples
from .remote.errors import ReadEnded, RemoteError
from .remote.store import RemoteConfig
from .request import LoaderConfig
from .shards.dataset import Dataset, EmptyDataset

__all__ = [
    "LOADERS",
    "Batch",
    "Dataset",
    "EmptyDataset",
    "Loader",
    "LoaderConfig",
    "Quarantine",
    "ReadEnded",
    "RemoteConfig",
    "RemoteError",
    "TooManyBadSamples",
    "View",
    "ViewConfig",
    "make_loader",
]

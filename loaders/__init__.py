"""Data loaders for self-supervised vision: shards in, augmented views out, on the CPU and in exact order.

from maskco_fast.loaders import ViewConfig, make_loader

with make_loader("cc3m-{0000..0331}.tar", batch_size=256, views=ViewConfig.maskco()) as loader:
    for query, key, masked_box, key_boxes, sample_id in loader:
        ...
"""

from ..kernels.views import View, ViewConfig
from .batch import Batch
from .dataset import Dataset, EmptyDataset
from .factory import LOADERS, make_loader
from .faults import ReadEnded, RemoteError
from .loader import Loader
from .quarantine import Quarantine, TooManyBadSamples
from .remote import RemoteConfig
from .request import LoaderConfig

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

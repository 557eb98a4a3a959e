"""`make_loader`: one call for every backend."""

import importlib
import os
from collections.abc import Iterable

import torch

from ..kernels.errors import InvalidInput
from ..kernels.views import ViewConfig
from .config import LoaderConfig
from .loader import Loader
from .remote.config import RemoteConfig
from .shards.dataset import Dataset
from .shards.open_dataset import open_dataset
from .system.progress import Progress, no_progress

LOADERS = {
    "native": "NativeLoader",
    "reference": "ReferenceLoader",
    "dali": "DaliLoader",
    "ffcv": "FfcvLoader",
}
"""Backends by name: each is the class of that name in the module of that name, imported when asked
for."""

Shards = str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | Dataset


def make_loader(
    shards: Shards,
    batch_size: int,
    *,
    views: ViewConfig | None = None,
    backend: str = "auto",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    rank: int | None = None,
    world_size: int | None = None,
    shuffle: bool = True,
    threads: int | None = None,
    prefetch: int = 3,
    decode: str = "exact",
    max_bad_share: float = 0.1,
    index_folder: str | os.PathLike[str] | None = None,
    progress: Progress = no_progress,
    remote: RemoteConfig | None = None,
) -> Loader:
    """A loader of this rank's batches of `batch_size` samples; see `Loader` for its contract and
    `Batch` for its yield.

    `shards`: tar files, folders, URLs, patterns such as 'cc3m-{0000..0331}.tar', or a `Dataset`
    already open. `views`: MaskCo's by default. `backend`: one of `LOADERS`, or "auto", which is the
    native one. `dtype`: of the views; uint8 for levels that are neither normalised nor masked.
    `seed`: with the epoch and the sample it decides everything random. `rank` and `world_size`:
    torch.distributed's or torchrun's unless given, looked up at the first `len()` or `next()`.
    `threads`: the CPUs that this process may use, unless given; `prefetch`: batches in the making
    at a time. `decode`: "exact", or "fast", by which images whose crops allow are decoded at a
    half, a quarter or an eighth, with libjpeg's fast IDCT, and of the others nothing below the
    crops is read. `max_bad_share`: more samples than this share failing to decode end the run.
    `index_folder`: where the shards' indexes are kept (default: the user's cache folder);
    `progress` is called after each shard. `remote`: how shards named by http://, https://, s3:// or
    pipe: are read.

    FileNotFoundError where a pattern matches nothing or a server has no such shard, RemoteError
    where one cannot be had (the iterator raises them too), EmptyDataset where no sample is usable,
    ValueError for options that do not fit.
    """
    config = LoaderConfig(
        batch_size=batch_size,
        views=ViewConfig.maskco() if views is None else views,
        dtype=dtype,
        device=str(device),
        seed=seed,
        rank=rank,
        world_size=world_size,
        shuffle=shuffle,
        threads=threads,
        prefetch=prefetch,
        decode=decode,
    )
    name = "native" if backend == "auto" else backend
    if name not in LOADERS:
        raise InvalidInput(
            f"there is no loader {backend!r}; choose auto or one of {', '.join(LOADERS)}"
        )
    if name == "ffcv" and remote is not None and remote.mode == "stream":
        raise InvalidInput(
            "the ffcv loader wants to know all samples beforehand: choose another for a stream"
        )
    loader_class = getattr(importlib.import_module(f".backends.{name}", __package__), LOADERS[name])
    if not isinstance(shards, Dataset):
        shards = open_dataset(
            shards, index_folder=index_folder, threads=threads, progress=progress, remote=remote
        )
    return loader_class(shards, config, max_bad_share=max_bad_share)

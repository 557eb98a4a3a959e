"""Make a loader by the name of its backend."""

import importlib
import os
from collections.abc import Callable, Iterable, Sequence

import torch

from ..kernels.errors import InvalidInput
from ..kernels.views import ViewConfig
from .adapters.forms import Form
from .backends.compilation import compile_in_background, loader_jobs
from .config import SCAN_INDEX_GB, LoaderConfig
from .loader import Loader
from .order import ShuffleBlock
from .remote.config import RemoteConfig
from .remote.stream import StreamDataset
from .shards.dataset import Dataset
from .shards.open_dataset import open_dataset
from .system.progress import Progress, no_progress

LOADERS = {
    "native": ("native", "NativeLoader"),
    "reference": ("reference", "ReferenceLoader"),
    "dali": ("dali", "DaliLoader"),
    "ffcv": ("ffcv", "FfcvLoader"),
}
"""Backend name to its module in `backends` and its class. A module is imported when its loader is
made, because DALI and FFCV are optional packages."""

VIEWS: dict[str, Callable[[], ViewConfig]] = {
    "maskco": ViewConfig.maskco,
    "moco_v2": ViewConfig.moco_v2,
    "simclr": ViewConfig.simclr,
    "byol": ViewConfig.byol,
    "dino": ViewConfig.dino,
    "dinov2": ViewConfig.dinov2,
    "swav": ViewConfig.swav,
    "npid": ViewConfig.npid,
    "rotation": ViewConfig.rotation,
    "relative_loc": ViewConfig.relative_loc,
    "supervised": ViewConfig.supervised,
    "evaluation": ViewConfig.evaluation,
}
"""The published settings of views, by the names that `make_loader` takes."""

Shards = str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | Dataset


def make_loader(
    shards: Shards,
    batch_size: int,
    *,
    labels: str | None = None,
    classes: Sequence[str] | None = None,
    fields: Iterable[str] | None = None,
    names: bool = False,
    form: str | Form | None = None,
    views: ViewConfig | str | None = None,
    backend: str = "auto",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    rank: int | None = None,
    world_size: int | None = None,
    shuffle: bool = True,
    shuffle_block: ShuffleBlock | None = None,
    drop_last: bool = True,
    threads: int | None = None,
    prefetch: int = 3,
    decode: str = "exact",
    scan_index_gb: float = SCAN_INDEX_GB,
    max_bad_share: float = 0.1,
    index_folder: str | os.PathLike[str] | None = None,
    progress: Progress = no_progress,
    remote: RemoteConfig | None = None,
    loader_process: bool = False,
) -> Loader:
    """Make a loader of this rank's batches; see `Loader` for its contract and `Batch` for a batch.

    - `shards`: tar files, folders, .beton files, URLs, patterns such as 'cc3m-{0000..0331}.tar', or
      an open `Dataset`.
    - `batch_size`: samples per batch on this rank.
    - `labels`, `classes`: where labels are read from, and the class list; see `open_dataset`. An
      open dataset has its own.
    - `fields`: suffixes of other members that batches bring along in `Batch.fields`, such as
      ("txt", "json"); see `open_dataset`. An open dataset has its own.
    - `names`: also bring each sample's shard and key, in `Batch.names`.
    - `form`: deliver what another codebase takes instead of a `Batch`: "lightly", "solo", "moco",
      "mm", "vissl", "vissl_moco", "timm" or "huggingface", or what a function makes of the batch;
      see `adapters.forms`.
    - `views`: crops, colours, boxes and size of the views, or the name of a published setting, such
      as "moco_v2" (default: `ViewConfig.maskco()`).
    - `backend`: one of `LOADERS`, or "auto" for native.
    - `device`: where the batches lie, "cpu" or a CUDA device.
    - `dtype`: of the views. float32, float16 and bfloat16 views are normalised and masked; uint8
      views are levels, neither normalised nor masked.
    - `seed`: determines, with the epoch and the sample, everything random.
    - `rank`, `world_size`: default to torch.distributed's, then torchrun's, then SLURM's; looked up
      at the first `len()` or `next()`.
    - `shuffle`: visit the samples in a new order each epoch, or in the shards' order.
    - `shuffle_block`: shards that are shuffled together, and so read at the same time, or "all"; by
      default "all" on this machine's disks and 16 elsewhere. See `Dataset.default_block`.
    - `drop_last`: drop the samples that do not fill the last global batch. With False each sample
      comes exactly once over all ranks: the last batch may be short, the last ranks may have a
      batch less than the first, and a bad sample is left out instead of replaced.
    - `threads`: decoding threads (default: the CPUs that this process may use; on a device one
      fewer, from 8 CPUs on two, which are left to the thread that launches its work).
    - `prefetch`: batches prepared at once.
    - `decode`: "exact", or "fast": images with large crops are decoded at a half, a quarter or an
      eighth of their size with libjpeg's fast IDCT; other images as with "exact".
    - `scan_index_gb`: most gigabytes that scan indexes may take beside the indexes, 0 for none. The
      native and ffcv loaders write them in the first epoch, and later read only the parts of each
      JPEG that the crops need; the batches are the same.
    - `max_bad_share`: largest share of bad samples tolerated, in (0, 1]; see `Quarantine`.
    - `index_folder`: where the indexes of the shards are stored (default: the cache folder).
    - `progress`: called after each shard is indexed.
    - `remote`: how shards named by http://, https://, s3:// or pipe: are read.
    - `loader_process`: make the batches in a process of their own, for programs whose Python keeps
      the interpreter lock; see `ProcessLoader`. The batches are the same.

    Raises FileNotFoundError where a pattern matches nothing or a server lacks a shard, RemoteError
    where a server fails (the iterator may raise both too), EmptyDataset where no sample is usable,
    MissingPackage where the backend is not installed, InvalidInput (a ValueError) for a bad option
    or label.
    """
    config = LoaderConfig(
        batch_size=batch_size,
        views=_view_config(views),
        dtype=dtype,
        device=str(device),
        seed=seed,
        rank=rank,
        world_size=world_size,
        shuffle=shuffle,
        block=shuffle_block,
        drop_last=drop_last,
        threads=threads,
        prefetch=prefetch,
        decode=decode,
        scan_index_gb=scan_index_gb,
        names=names or form == "lightly",
        form=form,
    )
    name = "native" if backend == "auto" else backend
    if name not in LOADERS:
        raise InvalidInput(
            f"`backend` must be auto or one of {', '.join(LOADERS)}, got {backend!r}"
        )
    streamed = isinstance(shards, StreamDataset) or (remote is not None and remote.mode == "stream")
    if name == "ffcv" and streamed:
        raise InvalidInput(
            "the ffcv loader cannot read a stream, because FFCV needs the list of all samples: "
            "choose another backend, or set remote.mode to 'cache'"
        )
    if streamed and not drop_last:
        raise InvalidInput(
            "`drop_last` must be True for a stream, which does not give each sample exactly once: "
            "set remote.mode to 'cache', or leave drop_last out"
        )
    if name == "native":
        compile_in_background(loader_jobs(config))
    module, class_name = LOADERS[name]
    loader_class = getattr(importlib.import_module(f".backends.{module}", __package__), class_name)
    if not isinstance(shards, Dataset):
        shards = open_dataset(
            shards,
            labels=labels,
            classes=classes,
            fields=fields,
            index_folder=index_folder,
            threads=threads,
            progress=progress,
            remote=remote,
        )
    elif labels is not None or classes is not None or fields is not None:
        raise InvalidInput(
            "`labels`, `classes` and `fields` must be given to `open_dataset`, not with an open "
            f"dataset, whose labels are {shards.labels!r} and whose fields are {shards.fields}"
        )
    if name == "native" and shards.records is not None:
        compile_in_background(("records",))
    if not loader_process:
        return loader_class(shards, config, max_bad_share=max_bad_share)
    if name == "dali" and config.seam:
        raise InvalidInput(
            "`loader_process` must be False for the dali loader on a device, where its graph runs: "
            "leave loader_process out, or choose another backend"
        )
    if shards.opened_with is None:
        raise InvalidInput(
            "`loader_process` must be False for a dataset that `open_dataset` did not open, which "
            "another process cannot open again: leave loader_process out"
        )
    from .process import Opening, ProcessLoader  # memfd and sockets: not on every system

    opening = Opening(
        dataset=shards.opened_with,
        fingerprint=shards.fingerprint,
        loader=loader_class,
        config=config,
        max_bad_share=max_bad_share,
    )
    return ProcessLoader(shards, config, opening)


def _view_config(views: ViewConfig | str | None) -> ViewConfig:
    """The option `views`; a name stands for that setting at its own size."""
    if isinstance(views, ViewConfig):
        return views
    name = "maskco" if views is None else views
    if not isinstance(name, str) or name not in VIEWS:
        raise InvalidInput(
            f"`views` must be a ViewConfig or one of {', '.join(VIEWS)}, got {views!r}"
        )
    return VIEWS[name]()

"""What `knn` and `linear` have in common: options, labelled data sets and their loaders."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch

from maskco_fast.evaluation.labelled import check_pair, open_pair
from maskco_fast.evaluation.weights import Weights, read_weights
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import (
    LOADERS,
    Dataset,
    Loader,
    RemoteConfig,
    ViewConfig,
    make_loader,
)
from maskco_fast.loaders.system.cpus import loader_threads
from maskco_fast.loaders.system.progress import Progress, no_progress
from maskco_fast.networks.config import TrunkName
from maskco_fast.progress import ProgressLines
from maskco_fast.training.devices import (
    DTYPES,
    Precision,
    choose_device,
    choose_precision,
    configure_cuda,
    keep_freed_memory,
)
from maskco_fast.training.distributed import World, join, local_rank

if TYPE_CHECKING:
    BackendName = str
else:
    BackendName = Literal[tuple(LOADERS)]
    """A name in `LOADERS`; `--help` lists them."""

DEFAULT_SIZE = 224
"""Side of the views for weights that do not say theirs, pixels."""


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """Options of every evaluation of a frozen trunk on labelled images."""

    weights: str
    """Run folder (its newest intact checkpoint), checkpoint, exported file, torchvision state dict,
    or "random" for an untrained trunk."""
    network: Literal["query", "key"] = "query"
    """key: the moving average of a run that has one."""
    trunk: TrunkName = "resnet50"
    """Architecture of random weights; files know their own."""
    train_shards: tuple[str, ...] = ()
    """Labelled shards, named as in `train`. None, here and below: the built-in demo set."""
    val_shards: tuple[str, ...] = ()
    """Labelled shards that the accuracy is measured on."""
    labels: str = "cls"
    """Where an image's label is: cls (the `.cls` member), json:FIELD, or folder (folder names)."""
    view_size: int | None = None
    """Side of the views, pixels. None: that of the pre-training run, or 224."""
    recalibrate: int = 0
    """Images over which BatchNorm's running statistics are recomputed, from the training shards
    without augmentation; 0 keeps those of the run."""
    seed: int = 0
    """Seed of random weights, of the order and of the augmentations."""
    loader: BackendName = "native"
    """Loader backend."""
    loader_threads: int | None = None
    """Threads of the loader; None leaves the choice to the loader."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto is CUDA where available."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of the trunk's autocast; see `train`."""
    remote: RemoteConfig = field(default_factory=RemoteConfig)

    def __post_init__(self) -> None:
        if self.view_size is not None and self.view_size < 32:
            raise InvalidInput(f"`view_size` must be at least 32 or None, got {self.view_size}.")
        if self.recalibrate < 0:
            raise InvalidInput(f"`recalibrate` must be at least 0, got {self.recalibrate}.")
        check_pair(self.train_shards, self.val_shards)

    def read_weights(self) -> Weights:
        """The weights that the options name."""
        return read_weights(self.weights, network=self.network, trunk=self.trunk, seed=self.seed)

    def size_for(self, weights: Weights) -> int:
        """The side of the views, pixels."""
        return self.view_size or weights.description.get("view_size") or DEFAULT_SIZE


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The surroundings of one evaluation: where it runs, and its labelled images."""

    options: EvaluationOptions
    world: World
    device: torch.device
    precision: Precision
    train: Dataset
    val: Dataset
    classes: tuple[str, ...]
    """Names of the classes; a label is an index into them."""
    progress: Progress

    def loader(
        self,
        dataset: Dataset,
        views: ViewConfig,
        batch_size: int,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
    ) -> Loader:
        """A loader of this rank's share; `batch_size` images a batch on this rank."""
        options = self.options
        return make_loader(
            dataset,
            batch_size,
            views=views,
            backend=options.loader,
            device=self.device,
            dtype=DTYPES[self.precision],
            seed=options.seed,
            rank=self.world.rank,
            world_size=self.world.size,
            shuffle=shuffle,
            drop_last=drop_last,
            threads=options.loader_threads
            or loader_threads(self.device.type, self.world.local_size),
            remote=options.remote,
        )


@contextlib.contextmanager
def evaluation(options: EvaluationOptions) -> Iterator[Evaluation]:
    """Join the other processes, choose the device and open the data sets."""
    device = choose_device(options.device, local_rank())
    if device.type == "cpu":
        keep_freed_memory()
    configure_cuda(device)
    with join(device) as world:
        progress = ProgressLines() if world.is_rank_zero else no_progress
        with world.local_rank_zero_first():
            train, val, classes = open_pair(
                options.train_shards,
                options.val_shards,
                options.labels,
                threads=options.loader_threads,
                remote=options.remote,
                progress=progress,
                announce=world.is_rank_zero,
            )
        yield Evaluation(
            options=options,
            world=world,
            device=device,
            precision=choose_precision(options.precision, device),
            train=train,
            val=val,
            classes=classes,
            progress=progress,
        )

"""The k-NN monitor: accuracy of the features on labelled images while a run trains.

A measurement runs between two steps, on all ranks, on a copy of the trunk in eval mode. It reads no
random generator and changes nothing of the run, so that the losses are the same without it.
"""

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from maskco_fast.evaluation.features import Features, extract, pooled
from maskco_fast.evaluation.knn import KnnSetting, knn_top1
from maskco_fast.evaluation.labelled import check_pair, open_pair
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import Dataset, Loader, RemoteConfig, ViewConfig, make_loader
from maskco_fast.loaders.system.progress import Progress, no_progress
from maskco_fast.methods.base import Method
from maskco_fast.training.devices import DTYPES, Precision
from maskco_fast.training.distributed import World, average_running_statistics


@dataclass(frozen=True, kw_only=True)
class MonitorConfig:
    """The k-NN accuracy that a run reports while it trains."""

    every: int = 0
    """Steps between two measurements; 0 for none. One costs a forward pass of all images below."""
    train_shards: tuple[str, ...] = ()
    """Labelled shards whose images vote; a few thousand images suffice. None, here and below: the
    built-in demo set."""
    val_shards: tuple[str, ...] = ()
    """Labelled shards whose images are classified."""
    labels: str = "cls"
    """Where an image's label is: cls (the `.cls` member), json:FIELD, or folder (folder names)."""
    k: int = 20
    """Neighbours that vote."""
    temperature: float = 0.07
    """Divides the cosine similarity in a vote's weight."""
    batch_size: int = 128
    """Images a batch on each process."""

    def __post_init__(self) -> None:
        if self.every < 0:
            raise InvalidInput(f"`every` must be at least 0, got {self.every}.")
        if self.batch_size < 1:
            raise InvalidInput(f"`batch_size` must be at least 1, got {self.batch_size}.")
        check_pair(self.train_shards, self.val_shards)
        _ = self.setting  # raises InvalidInput for a bad value

    @property
    def setting(self) -> KnnSetting:
        """Number of neighbours and temperature."""
        return KnnSetting(k=self.k, temperature=self.temperature)


class KnnMonitor:
    """Measures `knn_top1`, in per cent; a `Monitor` of the trainer.

    The images are divided among the ranks. Each measurement reads them anew with the run's loader,
    whose threads have nothing else to do in the meantime, so memory does not grow with their
    number.
    """

    def __init__(
        self,
        config: MonitorConfig,
        *,
        size: int,
        device: torch.device,
        precision: Precision,
        world: World | None = None,
        backend: str = "native",
        threads: int | None = None,
        remote: RemoteConfig | None = None,
        progress: Progress = no_progress,
    ) -> None:
        """Open and index the shards. `size`: side of the views, pixels.

        Raises InvalidInput for shards without labels, and what `open_dataset` raises.
        """
        self.every = config.every
        self._config = config
        self._world = world if world is not None else World()
        self._precision = precision
        self._device = device
        self._trunk: torch.nn.Module | None = None
        with self._world.local_rank_zero_first():
            train, val, self._classes = open_pair(
                config.train_shards,
                config.val_shards,
                config.labels,
                threads=threads,
                remote=remote,
                progress=progress,
                announce=self._world.is_rank_zero,
            )

        def make(dataset: Dataset) -> Loader:
            return make_loader(
                dataset,
                config.batch_size,
                views=ViewConfig.evaluation(size),
                backend=backend,
                device=device,
                dtype=DTYPES[precision],
                rank=self._world.rank,
                world_size=self._world.size,
                shuffle=False,
                drop_last=False,
                threads=threads,
                remote=remote,
            )

        self._loaders = make(train), make(val)

    def measure(self, method: Method, stopped: Callable[[], bool]) -> dict[str, float]:
        """Return `knn_top1` of the query network's trunk; empty if `stopped` on any rank."""
        encode = pooled(self._snapshot(method))
        shares: list[Features] = []
        for loader in self._loaders:
            features = extract(encode, loader, self._precision, world=self._world, stopped=stopped)
            if features is None:
                return {}
            shares.append(features)
        train, val = shares
        (top1,) = knn_top1(
            train,
            val,
            [self._config.setting],
            classes=len(self._classes),
            device=self._device,
            world=self._world,
        )
        return {"knn_top1": top1}

    def _snapshot(self, method: Method) -> torch.nn.Module:
        """A copy of the trunk in eval mode, with the running statistics of all ranks."""
        source = method.query.get_submodule("trunk")
        if self._trunk is None:
            self._trunk = copy.deepcopy(source).eval().requires_grad_(False)
        with torch.no_grad():
            pairs = zip(
                itertools.chain(self._trunk.parameters(), self._trunk.buffers()),
                itertools.chain(source.parameters(), source.buffers()),
            )
            for own, current in pairs:
                own.copy_(current)
        if self._world.size > 1:
            average_running_statistics(self._trunk)
        return self._trunk

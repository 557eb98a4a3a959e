"""VISSL: a registered task that trains on a loader.

Import this module before VISSL builds its task, and set `TRAINER.TASK_NAME` to "maskco_fast_task".
"""

from typing import Any

from classy_vision.tasks import register_task
from vissl.data import build_dataloader, build_dataset
from vissl.trainer.train_task import SelfSupervisionTask

from ..factory import make_loader
from ..loader import Loader


class _TrainingData:
    """What VISSL asks of a dataset, answered by a loader."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader.dataset)

    def num_samples(self) -> int:
        return len(self)

    def get_global_batchsize(self) -> int:
        return self.loader.global_batch_size

    def rebuild_dataloader(self) -> bool:
        return False

    def set_classy_state(self, state: Any) -> None:
        """Nothing: VISSL's count of iterations is the position."""


@register_task("maskco_fast_task")
class LoaderTask(SelfSupervisionTask):
    """VISSL's task with a loader of the shards `DATA.TRAIN.DATA_PATHS` for training.

    `DATA.TRAIN.LOADER` holds more arguments of `make_loader`, such as `views` and `form`. Batch
    size and seed are VISSL's own settings.
    """

    def build_datasets(self, current_train_phase_idx: int = 0) -> tuple[dict[str, Any], Any]:
        """The loader for training, and VISSL's datasets for other splits."""
        datasets: dict[str, Any] = {}
        keys: dict[str, Any] = {}
        for split in self.available_splits:
            settings = self.config.DATA[split]
            if split == "TRAIN":
                datasets["train"] = _TrainingData(self._make_loader(settings))
            else:
                datasets[split.lower()] = build_dataset(
                    cfg=self.config, split=split, current_train_phase_idx=current_train_phase_idx
                )
            keys = {"input": settings.INPUT_KEY_NAMES, "target": settings.TARGET_KEY_NAMES}
        return datasets, keys

    def _make_loader(self, settings: Any) -> Loader:
        options = {"form": "vissl", "seed": self.config.SEED_VALUE, "device": self.device}
        return make_loader(
            list(settings.DATA_PATHS),
            settings.BATCHSIZE_PER_REPLICA,
            **{**options, **settings.get("LOADER", {})},
        )

    def build_dataloaders(
        self, pin_memory: bool, current_train_phase_idx: int = 0
    ) -> dict[str, Any]:
        """The loader for training, and VISSL's loaders for other splits."""
        return {
            split: dataset.loader
            if isinstance(dataset, _TrainingData)
            else build_dataloader(
                dataset=dataset,
                dataset_config=self.config.DATA[split.upper()],
                num_dataloader_workers=self.config.DATA.NUM_DATALOADER_WORKERS,
                pin_memory=pin_memory,
                multi_processing_method=self.config.MULTI_PROCESSING_METHOD,
                device=self.device,
                sampler_seed=self.config.SEED_VALUE,
                split=split,
            )
            for split, dataset in self.datasets.items()
        }

    def set_train_epoch_start_iter(
        self, dataset_or_sampler: Any, epoch: int, start_iter: int, train_phase_idx: int
    ) -> None:
        """Move the loader to iteration `start_iter` of an epoch."""
        super().set_train_epoch_start_iter(dataset_or_sampler, epoch, start_iter, train_phase_idx)
        if isinstance(dataset_or_sampler, Loader) and start_iter:
            loader = dataset_or_sampler
            consumed = start_iter * loader.global_batch_size
            loader.load_state_dict({**loader.state_dict(), "consumed": consumed})

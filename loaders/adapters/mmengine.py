"""mmengine, for mmpretrain and mmselfsup: a training loop over a loader, and a hook.

A configuration imports it by `custom_imports`.
"""

import functools
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, LOOPS
from mmengine.runner import EpochBasedTrainLoop

from ...kernels.errors import InvalidInput
from ..batch import Batch
from ..factory import make_loader
from .forms import mm

KEY = "maskco_fast"
"""Where a checkpoint holds the position."""


@HOOKS.register_module()
class KeepPosition(Hook):
    """Save the loader's position in every checkpoint, and resume there.

    `LoaderTrainLoop` registers it.
    """

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Add the position to the checkpoint."""
        checkpoint[KEY] = runner.train_loop.dataloader.state_dict()

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Resume the loader, unless only weights are loaded."""
        if runner._resume and KEY in checkpoint:
            runner.train_loop.dataloader.load_state_dict(checkpoint[KEY])


@LOOPS.register_module()
class LoaderTrainLoop(EpochBasedTrainLoop):
    """mmengine's epoch-based loop; `train_dataloader` holds the arguments of `make_loader`.

    The model's data preprocessor stays as it is: where it normalises, the loader delivers uint8
    levels, and BGR where it swaps channels. Classifiers of mmpretrain get data samples with labels.
    """

    def __init__(self, runner: Any, dataloader: Any, max_epochs: int, **options: Any) -> None:
        if isinstance(dataloader, dict):
            dataloader = make_loader(**{**_suited_to(runner, dataloader), **dataloader})
        super().__init__(runner, dataloader, max_epochs, **options)
        runner.register_hook(KeepPosition())

    def run(self) -> Any:
        """Train all epochs, or the rest of them."""
        # A checkpoint of an epoch's last step was saved before that epoch's end.
        self._epoch: int = max(self._epoch, self.dataloader.epoch)
        return super().run()

    def run_epoch(self) -> None:
        """Train one epoch, or the rest of it."""
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        done = self._iter - self._epoch * len(self.dataloader)
        for number, batch in enumerate(self.dataloader, done):
            self.run_iter(number, batch)
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1


def _labelled(batch: Batch, *, bgr: bool) -> dict[str, Any]:
    """As `mm`, with mmpretrain's data samples."""
    from mmpretrain.structures import DataSample

    samples = [DataSample().set_gt_label(target) for target in batch.target]
    return {**mm(batch, bgr=bgr), "data_samples": samples}


def _suited_to(runner: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Options of `make_loader` that suit the model's data preprocessor."""
    model = getattr(runner.model, "module", runner.model)
    preprocessor = model.data_preprocessor
    normalises = getattr(preprocessor, "_enable_normalize", False)
    swaps = getattr(preprocessor, "_channel_conversion", getattr(preprocessor, "to_rgb", False))
    if normalises and given.get("dtype", torch.uint8) != torch.uint8:
        raise InvalidInput(
            f"`dtype` must be torch.uint8, got {given['dtype']}: the data preprocessor normalises, "
            "and other views are normalised already; leave dtype out, or give it no mean and std"
        )
    classifies = hasattr(preprocessor, "to_onehot")
    return {
        "form": functools.partial(_labelled if classifies else mm, bgr=swaps),
        "dtype": torch.uint8 if normalises else torch.float32,
    }

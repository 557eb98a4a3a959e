"""Lightning: a callback that keeps the loaders' positions, and a DataModule that does.

For `lightning.pytorch` or `pytorch_lightning`: the one that the program has imported, else the one
that is installed.
"""

import functools
import importlib
import sys
from typing import Any

from ...kernels.errors import MissingPackage
from ..factory import make_loader
from ..loader import Loader

__all__ = ["KeepPosition", "LoaderModule", "make_loader"]

PACKAGES = ("lightning.pytorch", "pytorch_lightning")
KEY = "maskco_fast"
"""Where a checkpoint holds the positions."""


def _import_lightning() -> Any:
    for name in sorted(PACKAGES, key=lambda name: name not in sys.modules):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            missing = error
    raise MissingPackage("Lightning is not installed: pip install lightning") from missing


pl = _import_lightning()


class KeepPosition(pl.Callback):  # type: ignore[misc, name-defined]
    """Save the training loaders' positions in every checkpoint, and resume there.

    Lightning itself ignores them once a module has asked for `estimated_stepping_batches`.
    """

    def __init__(self) -> None:
        self._positions: list[dict[str, Any]] = []
        """Of the checkpoint that training resumes from."""

    def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
        """Add the positions to the checkpoint."""
        checkpoint[KEY] = [loader.state_dict() for loader in _training_loaders(trainer)]

    def on_load_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
        """Hold the positions until the loaders are made."""
        if trainer.state.fn == "fit":
            self._positions = checkpoint.get(KEY, [])

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Resume the loaders."""
        for loader, position in zip(_training_loaders(trainer), self._positions):
            loader.load_state_dict(position)
        self._positions = []


def _training_loaders(trainer: Any) -> list[Loader]:
    """Our loaders among the trainer's, which may be one, a list or a dictionary."""
    loaders = trainer.train_dataloader
    if isinstance(loaders, dict):
        loaders = list(loaders.values())
    elif not isinstance(loaders, list | tuple):
        loaders = [loaders]
    return [loader for loader in loaders if isinstance(loader, Loader)]


class LoaderModule(pl.LightningDataModule):  # type: ignore[misc, name-defined]
    """A DataModule of loaders that saves the training loader's position and resumes there."""

    def __init__(
        self, train: Loader, *, val: Any = None, test: Any = None, predict: Any = None
    ) -> None:
        """`val`, `test`, `predict`: loaders of any kind."""
        super().__init__()
        self.train = train
        loaders = {"train": train, "val": val, "test": test, "predict": predict}
        for stage, loader in loaders.items():
            if loader is not None:  # Lightning takes a defined method for a stage that is wanted
                setattr(self, f"{stage}_dataloader", functools.partial(_given, loader))

    def state_dict(self) -> dict[str, Any]:
        """The training loader's position."""
        return self.train.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume the training loader, where training resumes."""
        if self.trainer is None or self.trainer.state.fn == "fit":
            self.train.load_state_dict(state_dict)


def _given(loader: Any) -> Any:
    return loader

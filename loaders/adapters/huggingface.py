"""transformers: a Trainer over a loader, and a callback that keeps its position."""

from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from ..factory import make_loader
from ..loader import Loader

__all__ = ["KeepPosition", "LoaderTrainer", "make_loader"]


class KeepPosition(TrainerCallback, ExportableState):
    """Save the loader's position in every checkpoint's trainer state, and resume there."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def state(self) -> dict[str, Any]:
        """The position, as `TrainerState` keeps it."""
        return {"args": {}, "attributes": {"position": self.loader.state_dict()}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Resume the loader, where training resumes."""
        saved = state.stateful_callbacks.get(type(self).__name__)
        if state.global_step and saved is not None:
            self.loader.load_state_dict(saved["attributes"]["position"])


class LoaderTrainer(Trainer):
    """A Trainer over `loader`, which resumes at its exact position.

    Only the training data are replaced; batches are what the loader's `form` makes of them.
    """

    def __init__(self, *arguments: Any, loader: Loader, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.loader = loader
        self.args.ignore_data_skip = True  # else the Trainer reads the trained batches again
        self.add_callback(KeepPosition(loader))

    def get_train_dataloader(self) -> Any:
        """The loader; `accelerate` must not prepare it."""
        return self.loader

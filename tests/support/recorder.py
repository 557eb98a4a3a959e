"""Which samples a loader delivers, whatever trains on it."""

from typing import Any

from maskco_fast.loaders import Batch
from maskco_fast.loaders.adapters.forms import Form, find_form


class Recorder:
    """The option `form`: records the samples' numbers, then forms the batch as `form` does."""

    def __init__(self, form: str | Form | None = None) -> None:
        self.seen: list[list[int]] = []
        self._form = find_form(form)

    def __call__(self, batch: Batch) -> Any:
        self.seen.append(batch.index.tolist())
        return batch if self._form is None else self._form(batch)

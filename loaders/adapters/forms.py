"""The batches of other codebases: pure functions from `Batch`, chosen by `make_loader(form=…)`.

Unlabelled samples have the target −1. Views keep their channels-last memory format.
"""

from collections.abc import Callable
from typing import Any

import torch

from ...kernels.errors import InvalidInput
from ..batch import Batch

Form = Callable[[Batch], Any]


def lightly(batch: Batch) -> tuple[list[torch.Tensor], torch.Tensor, list[str]]:
    """(views, target, file names) as of a `LightlyDataset`; a name is "shard/key"."""
    names = [f"{shard}/{key}" for shard, key in batch.names or ()]
    return list(batch.views), batch.target, names


def solo(batch: Batch) -> list[Any]:
    """[index, views, target] as solo-learn's methods take it."""
    return [batch.index, list(batch.views), batch.target]


def moco(batch: Batch) -> tuple[list[torch.Tensor], torch.Tensor]:
    """(views, target) as of an `ImageFolder` with `TwoCropsTransform`."""
    return list(batch.views), batch.target


def mm(batch: Batch, *, bgr: bool = False) -> dict[str, Any]:
    """Inputs for the data preprocessors of mmpretrain and mmselfsup, without data samples.

    The inputs are a tensor for one view, else a list; with `bgr`, their channels are swapped. The
    preprocessor may normalise uint8 views only: others are normalised.
    """
    views = [view.flip(1) if bgr else view for view in batch.views]
    return {"inputs": views[0] if len(views) == 1 else views, "data_samples": None}


def vissl(batch: Batch) -> dict[str, list[Any]]:
    """The output of VISSL's `simclr_collator`: all samples' first views, then their second ones.

    Views of several sizes are a list, as of `multicrop_collator`.
    """
    same = len({view.shape for view in batch.views}) == 1
    return {
        "data": [torch.cat(batch.views) if same else list(batch.views)],
        **_vissl_facts(batch, len(batch.views)),
    }


def vissl_moco(batch: Batch) -> dict[str, list[Any]]:
    """The output of VISSL's `moco_collator`: the second view is for the momentum encoder."""
    return {
        "data": [batch.query],
        "data_momentum": [batch.key],
        **_vissl_facts(batch, 1),
    }


def _vissl_facts(batch: Batch, views: int) -> dict[str, list[Any]]:
    """Labels, validity and numbers of the samples, once for each view."""
    return {
        "label": [batch.target.repeat(views)],
        "data_valid": [torch.ones_like(batch.target).repeat(views)],
        "data_idx": [batch.index.repeat(views)],
    }


def timm(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """(input, target) as of timm's loaders; several views are concatenated as its splits are."""
    if len(batch.views) == 1:
        return batch.query, batch.target
    shapes = {tuple(view.shape[2:]) for view in batch.views}
    if len(shapes) > 1:
        raise InvalidInput(
            f"`form` 'timm' concatenates the views, which must be of one size, got {shapes}"
        )
    return torch.cat(batch.views), batch.target.repeat(len(batch.views))


def huggingface(batch: Batch) -> dict[str, Any]:
    """Arguments of a model of transformers: pixel values, a list if there are several views."""
    views = list(batch.views)
    return {"pixel_values": views[0] if len(views) == 1 else views, "labels": batch.target}


FORMS: dict[str, Form] = {
    form.__name__: form for form in (lightly, solo, moco, mm, vissl, vissl_moco, timm, huggingface)
}
"""The forms by the names that `make_loader` takes."""


def find_form(form: str | Form | None) -> Form | None:
    """The option `form`, as a function; None for the batch itself. Raises InvalidInput."""
    if form is None or callable(form):
        return form
    if form not in FORMS:
        raise InvalidInput(
            f"`form` must be a function of a batch or one of {', '.join(FORMS)}, got {form!r}"
        )
    return FORMS[form]

"""Each form of a batch against the codebase's own description of it."""

import dataclasses
from typing import Any

import pytest
import torch

from maskco_fast.loaders import Batch, ViewConfig, make_loader
from maskco_fast.loaders.adapters.forms import FORMS
from maskco_fast.loaders.process import ProcessLoader

BATCH = Batch(
    views=tuple(torch.rand(3, 3, 8, 8) for _ in range(2)),
    sample_id=torch.arange(3) + 2**60,
    target=torch.tensor([5, -1, 7]),
    index=torch.tensor([30, 10, 20]),
    names=[("a.tar", "x"), ("a.tar", "y/z"), ("b.tar", "x")],
)
ONE_VIEW = Batch(
    views=BATCH.views[:1], sample_id=BATCH.sample_id, target=BATCH.target, index=BATCH.index
)


def test_tuples_and_lists():
    views, target, names = FORMS["lightly"](BATCH)
    assert isinstance(views, list)
    assert views[1] is BATCH.key
    assert target is BATCH.target
    assert names == ["a.tar/x", "a.tar/y/z", "b.tar/x"]
    index, views, target = FORMS["solo"](BATCH)
    assert index is BATCH.index
    assert views == list(BATCH.views)
    assert target is BATCH.target
    views, target = FORMS["moco"](BATCH)
    assert isinstance(views, list)  # MoCo assigns to its elements
    assert target is BATCH.target


def test_openmmlab():
    inputs, samples = FORMS["mm"](BATCH).values()  # by position, as the data preprocessor reads it
    assert inputs == list(BATCH.views)
    assert samples is None
    assert FORMS["mm"](ONE_VIEW)["inputs"] is ONE_VIEW.query
    swapped: Any = FORMS["mm"]
    assert torch.equal(swapped(BATCH, bgr=True)["inputs"][0][:, 0], BATCH.query[:, 2])


def test_vissl():
    batch = FORMS["vissl"](BATCH)
    assert torch.equal(batch["data"][0], torch.cat(BATCH.views))
    assert batch["label"][0].tolist() == [5, -1, 7] * 2
    assert batch["data_idx"][0].tolist() == [30, 10, 20] * 2
    assert batch["data_valid"][0].tolist() == [1] * 6
    crops = dataclasses.replace(BATCH, views=(*BATCH.views, torch.rand(3, 3, 4, 4)))
    batch = FORMS["vissl"](crops)
    assert batch["data"] == [list(crops.views)]  # as `multicrop_collator`
    assert len(batch["label"][0]) == 9
    batch = FORMS["vissl_moco"](BATCH)
    assert batch["data"][0] is BATCH.query
    assert batch["data_momentum"][0] is BATCH.key
    assert batch["label"][0].tolist() == [5, -1, 7]


def test_timm_and_transformers():
    view, target = FORMS["timm"](ONE_VIEW)
    assert view is ONE_VIEW.query
    assert target is ONE_VIEW.target
    view, target = FORMS["timm"](BATCH)
    assert torch.equal(view, torch.cat(BATCH.views))
    assert target.tolist() == [5, -1, 7] * 2
    small = dataclasses.replace(BATCH, views=(BATCH.query, BATCH.key[..., ::2, ::2]))
    with pytest.raises(ValueError, match="must be of one size"):
        FORMS["timm"](small)
    assert FORMS["huggingface"](ONE_VIEW) == {
        "pixel_values": ONE_VIEW.query,
        "labels": ONE_VIEW.target,
    }
    assert FORMS["huggingface"](BATCH)["pixel_values"] == list(BATCH.views)


def test_the_loader_delivers_the_form(shards):
    views = ViewConfig.moco_v2(16)
    with make_loader(shards, 4, views=views, form="lightly", threads=1) as loader:
        _, _, names = next(iter(loader))
        assert [name.startswith(tuple(shards)) for name in names] == [True] * 4
    with make_loader(shards, 4, views=views, form=len, threads=1) as loader:
        assert list(loader) == [4] * 4
        assert loader.epoch == 1
    with make_loader(shards, 4, form=lambda batch: 1 / 0, threads=1, views=views) as loader:
        with pytest.raises(ZeroDivisionError):
            next(iter(loader))
        assert loader.state_dict()["consumed"] == 0  # it was not delivered
    with make_loader(shards, 4, form=lambda batch: 0, views=views, loader_process=True) as loader:
        assert isinstance(loader, ProcessLoader)
        assert loader._opening.config.form is None  # a lambda cannot be sent to the process
    with pytest.raises(ValueError, match="`form` must be a function of a batch or one of lightly,"):
        make_loader(shards, 4, form="lightning")

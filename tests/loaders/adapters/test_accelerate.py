"""accelerate's Accelerator over our loader, which it saves and loads as a registered object."""

import pathlib
from typing import Any

import pytest
import torch

from maskco_fast.loaders import ViewConfig, make_loader
from tests.support.recorder import Recorder

accelerate: Any = pytest.importorskip(
    "accelerate", reason="pip install 'maskco-fast[peers]' brings accelerate"
)


def train(
    shards: list[str], save_to: pathlib.Path | None = None, resume: pathlib.Path | None = None
) -> list[list[int]]:
    """Train two epochs of 4 batches, or the rest of them; save after the third batch."""
    form = Recorder("timm")
    views = ViewConfig.evaluation(16)
    with make_loader(shards, 4, labels="cls", views=views, form=form, threads=1) as loader:
        accelerator = accelerate.Accelerator(cpu=True)
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 4))
        optimizer = torch.optim.SGD(network.parameters(), 0.01)
        assert accelerator.prepare(loader) is loader
        model, optimizer = accelerator.prepare(network, optimizer)
        accelerator.register_for_checkpointing(loader)
        if resume:
            accelerator.load_state(str(resume))
        while loader.epoch < 2:
            for images, targets in loader:
                loss = torch.nn.functional.cross_entropy(model(images), targets)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
                if save_to and len(form.seen) == 3:
                    accelerator.save_state(str(save_to))
    return form.seen


def test_a_registered_loader_resumes_at_its_sample(shards, tmp_path):
    seen = train(shards, save_to=tmp_path / "state")
    assert len(seen) == 8
    assert train(shards, resume=tmp_path / "state") == seen[3:]

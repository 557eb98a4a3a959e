"""lightly's modules and loss over our loader, in a loop of lightly's examples."""

from typing import Any

import pytest
import torch

from maskco_fast.loaders import ViewConfig, make_loader
from tests.support.recorder import Recorder

pytest.importorskip("lightly", reason="pip install 'maskco-fast[bench]' brings lightly")


def train(dataloader: Any, epochs: int) -> tuple[list[float], list[str]]:
    """lightly's SimCLR example; returns losses and the names of the files."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead

    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, 2), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    head = SimCLRProjectionHead(8, 16, 8)
    criterion = NTXentLoss()
    optimizer = torch.optim.SGD([*model.parameters(), *head.parameters()], 0.06)
    losses, files = [], []
    for _ in range(epochs):
        for views, _, filenames in dataloader:
            x0, x1 = views
            loss = criterion(head(model(x0)), head(model(x1)))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
            files.extend(filenames)
    return losses, files


def test_simclr_trains_two_epochs_and_resumes(shards):
    def make(form: Recorder) -> Any:
        views = ViewConfig.simclr(16)
        return make_loader(shards, 4, views=views, form=form, names=True, threads=1)

    form, rest = Recorder("lightly"), Recorder("lightly")
    with make(form) as loader:
        losses, files = train(loader, 2)
        assert len(losses) == 2 * len(loader) == 8
    assert len(set(files)) == 16
    assert all(loss > 0 for loss in losses)
    with make(Recorder()) as loader:
        batches = iter(loader)
        for _ in range(3):
            next(batches)
        state = loader.state_dict()
    with make(rest) as loader:
        loader.load_state_dict(state)
        train(loader, 2)
    assert rest.seen == form.seen[3:]

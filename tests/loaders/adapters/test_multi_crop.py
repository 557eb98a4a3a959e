"""lightly's DINO and SwAV on our multi-crop batches: its heads and losses, two steps each."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from maskco_fast.loaders import ViewConfig, make_loader

pytest.importorskip("lightly", reason="pip install 'maskco-fast[bench]' brings lightly")
from lightly.loss import DINOLoss, SwaVLoss
from lightly.models.modules import DINOProjectionHead, SwaVProjectionHead, SwaVPrototypes
from lightly.models.utils import deactivate_requires_grad, update_momentum

MakeShards = Callable[..., list[str]]
Views = list[torch.Tensor]
STEPS = 2


@pytest.fixture(scope="module")
def trunk() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*list(resnet18().children())[:-1], nn.Flatten())


def lightly_views(shards: list[str], config: ViewConfig) -> Iterator[Views]:
    """The views of `STEPS` batches, in lightly's form."""
    sizes = [size[0] for size in config.layout.sizes]
    with make_loader(shards, 4, views=config, threads=1, form="lightly") as loader:
        assert len(loader) == STEPS
        batches: Any = loader
        for views, _, _ in batches:
            assert [view.shape for view in views] == [(4, 3, size, size) for size in sizes]
            yield views


def step(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    assert loss.isfinite()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def test_dino(make_shards: MakeShards, trunk: nn.Module) -> None:
    student, teacher = (
        nn.Sequential(copy.deepcopy(trunk), DINOProjectionHead(512, 64, 32, 128)) for _ in range(2)
    )
    deactivate_requires_grad(teacher)
    before = [parameter.clone() for parameter in teacher.parameters()]
    criterion = DINOLoss(output_dim=128)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    for views in lightly_views(make_shards(1, 8), ViewConfig.dino(32, 16, 3)):
        update_momentum(student, teacher, m=0.9)
        with torch.no_grad():
            taught = [teacher(view) for view in views[:2]]  # global views only
        loss = criterion(taught, [student(view) for view in views], epoch=0)
        step(optimizer, loss)
    moved = [not torch.equal(*pair) for pair in zip(before, teacher.parameters(), strict=True)]
    assert any(moved)


def test_swav(make_shards: MakeShards, trunk: nn.Module) -> None:
    prototypes = SwaVPrototypes(32, n_prototypes=16)
    model = nn.Sequential(copy.deepcopy(trunk), SwaVProjectionHead(512, 64, 32))
    before = prototypes.heads[0].weight.clone()
    criterion = SwaVLoss()
    optimizer = torch.optim.SGD([*model.parameters(), *prototypes.parameters()], lr=0.1)
    for views in lightly_views(make_shards(1, 8), ViewConfig.swav(32, 16, 3)):
        prototypes.normalize()
        scores = [prototypes(nn.functional.normalize(model(view), dim=1)) for view in views]
        step(optimizer, criterion(scores[:2], scores[2:]))
    assert not torch.equal(before, prototypes.heads[0].weight)

"""timm's model, optimizer, mixup and loss over our loader, in the loop of its training script."""

from typing import Any

import pytest
import torch

from maskco_fast.loaders import ViewConfig, make_loader
from tests.support.recorder import Recorder

pytest.importorskip("timm", reason="pip install 'maskco-fast[dev]' brings timm")


def train(loader: Any, epochs: range) -> None:
    from timm import create_model
    from timm.data import Mixup
    from timm.loss import SoftTargetCrossEntropy
    from timm.optim import create_optimizer_v2

    model = create_model("test_resnet", num_classes=4)
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.05)
    mixup = Mixup(num_classes=4)
    loss_fn = SoftTargetCrossEntropy()
    for epoch in epochs:
        loader.sampler.set_epoch(epoch)
        for input, target in loader:
            images, targets = mixup(input, target)
            loss = loss_fn(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            assert torch.isfinite(loss)


def test_a_classifier_trains_two_epochs_and_resumes(shards):
    def make(form: Recorder) -> Any:
        views = ViewConfig.supervised(32)
        return make_loader(shards, 4, labels="cls", views=views, form=form, threads=1)

    form, rest = Recorder("timm"), Recorder("timm")
    with make(form) as loader:
        train(loader, range(2))
    assert len(form.seen) == 8
    with make(rest) as loader:
        loader.load_state_dict({**loader.state_dict(), "epoch": 0, "consumed": 3 * 4})
        train(loader, range(2))
    assert rest.seen == form.seen[3:]

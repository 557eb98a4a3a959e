"""BYOL: its loss, momentum schedule and steps against the published formulas, and its target."""

import math

import pytest
import torch

from maskco_fast.loaders import Batch
from maskco_fast.methods.byol import byol_mlp, squared_distance, target_momentum
from maskco_fast.networks.batch_norm import SynchronizedBatchNorm
from maskco_fast.training.optimizer import OptimizerConfig, make_optimizer
from maskco_fast.training.recipes import RECIPES
from maskco_fast.training.trainer import Trainer
from tests.support.small_methods import (
    SAMPLES,
    SIDE,
    batches,
    small_config,
    small_method,
    train_step,
)
from tests.support.tiny_run import NoiseLoader


def by_loops(prediction_ND: torch.Tensor, target_ND: torch.Tensor) -> float:
    """Grill et al., eq. 2: |p / |p| - z / |z||², the mean over the images."""
    total = 0.0
    for prediction, target in zip(prediction_ND.tolist(), target_ND.tolist()):
        norms = math.hypot(*prediction), math.hypot(*target)
        total += sum((p / norms[0] - z / norms[1]) ** 2 for p, z in zip(prediction, target))
    return total / len(prediction_ND)


def test_the_loss_is_the_distance_of_unit_vectors():
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
    found = squared_distance(prediction, 3 * target)
    assert found.item() == pytest.approx(by_loops(prediction, target), rel=1e-12)
    assert squared_distance(prediction, prediction).item() == pytest.approx(0, abs=1e-12)
    assert squared_distance(prediction, -prediction).item() == pytest.approx(4)
    with torch.autocast("cpu", torch.bfloat16):
        assert squared_distance(prediction.float(), target.float()).dtype == torch.float32


def test_the_momentum_rises_to_one_by_a_cosine():
    """m = 1 - (1 - base)·(cos(πk/K) + 1) / 2."""
    found = [target_momentum(0.996, k / 4) for k in range(5)]
    corner = 0.004 * (1 + math.sqrt(0.5)) / 2
    assert found == pytest.approx([0.996, 1 - corner, 0.998, 0.996 + corner, 1.0], abs=1e-15)


def test_steps_by_hand():
    """Three steps in float64: both orders of the views, BatchNorm for each view, target k of K."""
    config = small_config("byol")
    method, by_hand = small_method(config, torch.float64), small_method(config, torch.float64)
    optimizer, second = (
        make_optimizer(one.parameters(), config.optimizer) for one in (method, by_hand)
    )
    for number, batch in enumerate(batches(3, torch.float64)):
        predictions = [by_hand.predictor(by_hand.query(view)) for view in batch.views]
        targets = [by_hand.key(view).detach() for view in batch.views]
        cosines = [
            torch.cosine_similarity(predictions[0], targets[1]),
            torch.cosine_similarity(predictions[1], targets[0]),
        ]
        loss = torch.stack([(2 - 2 * cosine).mean() for cosine in cosines]).sum()
        second.zero_grad()
        loss.backward()
        second.step()
        momentum = 1 - 0.1 * (math.cos(math.pi * number / 3) + 1) / 2
        with torch.no_grad():
            for own, new in zip(by_hand.key.parameters(), by_hand.query.parameters()):
                own.copy_(momentum * own + (1 - momentum) * new)
        found = train_step(method, optimizer, batch, progress=number / 3)
        assert found == pytest.approx(loss.item(), rel=1e-9)
        for name, value in method.state_dict().items():
            torch.testing.assert_close(
                value, by_hand.state_dict()[name], rtol=1e-7, atol=1e-9, msg=name
            )
    assert all(parameter.grad is None for parameter in method.key.parameters())


def test_the_trainer_passes_the_share_of_the_run(tmp_path, monkeypatch):
    config = small_config("byol", tmp_path, max_steps=4)
    method = small_method(config)
    seen: list[float] = []
    monkeypatch.setattr(method, "after_step", seen.append)
    Trainer(config, method, NoiseLoader(size=SIDE, batch=SAMPLES)).fit()
    assert seen == [0, 0.25, 0.5, 0.75]


def test_the_spread_shows_collapse():
    method = small_method(small_config("byol"))
    batch = batches(1)[0]
    with torch.no_grad():
        spread = method(batch)["spread"].item()
        assert 0.01 < spread <= 1
        method.key.projection[-1].weight.zero_()
        method.key.projection[-1].bias.fill_(1.0)
        assert method(batch)["spread"].item() == pytest.approx(0, abs=1e-6)


def test_the_order_of_the_views_does_not_matter():
    """Symmetric: within rounding, as each view has a pass of its own."""
    batch = batches(1, torch.float64)[0]
    swapped = Batch(
        views=batch.views[::-1],
        sample_id=batch.sample_id,
        target=batch.target,
        index=batch.index,
    )
    method = small_method(small_config("byol"), torch.float64)
    assert method(batch)["loss"].item() == pytest.approx(method(swapped)["loss"].item(), rel=1e-12)


def test_the_paper_recipe_has_the_publications_layers():
    """2048 → 4096 (BN, ReLU) → 256, and 256 → 4096 (BN, ReLU) → 256; LARS spares biases and BN."""
    config = RECIPES["paper"]("byol")
    assert (config.byol.momentum, config.byol.hidden, config.model.features) == (0.996, 4096, 256)
    with torch.device("meta"):
        for channels in (2048, 256):
            first, norm, relu, last = byol_mlp(channels, 4096, 256)
            assert (first.in_features, first.out_features) == (channels, 4096)
            assert (norm.num_features, last.in_features, last.out_features) == (4096, 4096, 256)
            assert isinstance(norm, SynchronizedBatchNorm)
            assert isinstance(relu, torch.nn.ReLU)
    method = small_method(small_config("byol"))
    optimizer = make_optimizer(method.parameters(), OptimizerConfig(name="lars", weight_decay=0.1))
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    spared = [
        names[id(parameter)]
        for group in optimizer.param_groups
        if group["trust"] is None and group["weight_decay"] == 0
        for parameter in group["params"]
    ]
    wanted = [
        f"{name}.{kind}"
        for name, module in method.named_modules()
        if not name.startswith("key")
        for kind, _ in module.named_parameters(recurse=False)
        if kind == "bias" or isinstance(module, SynchronizedBatchNorm)
    ]
    assert sorted(spared) == sorted(wanted)

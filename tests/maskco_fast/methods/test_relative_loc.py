"""Relative location: patches, pairs, dropout and loss against loops; decay by parameter group."""

import math

import pytest
import torch

from maskco_fast.loaders import Batch
from maskco_fast.methods.counter_random import random_integers
from maskco_fast.methods.relative_loc import RelativeLocConfig, cut_patches
from maskco_fast.training.optimizer import OptimizerConfig, make_optimizer
from maskco_fast.training.recipes import RECIPES
from maskco_fast.training.trainer import Trainer
from tests.support.small_methods import SAMPLES, SIDE, batches, small_config, small_method
from tests.support.tiny_run import NoiseLoader


def test_patches_equal_slices():
    generator = torch.Generator().manual_seed(0)
    view = torch.randn(3, 3, 20, 20, generator=generator)
    corners = torch.randint(0, 20 - 7 + 1, (3, 9, 2), generator=generator)
    found = cut_patches(view.contiguous(memory_format=torch.channels_last), corners, 7)
    assert found.is_contiguous(memory_format=torch.channels_last)
    wanted = [view[n, :, y : y + 7, x : x + 7] for n in range(3) for y, x in corners[n].tolist()]
    assert torch.equal(found, torch.stack(wanted))


def logits_by_loops(method, batch: Batch) -> torch.Tensor:
    """(N, 8, 8): each pair (neighbour, centre) through the layers, with dropout drawn one by one.

    BatchNorm's groups are of 4 images; dropout's number of a row is 8 times the sample's id plus
    the pair.
    """
    assert batch.patch_corners is not None
    side = method.views.patch_size
    corners = batch.patch_corners.tolist()
    patches = [
        batch.query[n, :, y : y + side, x : x + side] for n in range(SAMPLES) for y, x in corners[n]
    ]
    features = method.query(torch.stack(patches)).view(SAMPLES, 9, -1)
    pairs = [
        torch.cat((features[n, neighbour], features[n, 4]))
        for n in range(SAMPLES)
        for neighbour in (0, 1, 2, 3, 5, 6, 7, 8)
    ]
    hidden = method.neck(torch.stack(pairs))
    groups = []
    for group in hidden.split(4 * 8):
        centred = group - group.mean(0)
        normed = centred / (centred.square().mean(0) + method.norm.eps).sqrt()
        groups.append((normed * method.norm.weight + method.norm.bias).clamp(min=0))
    hidden = torch.cat(groups)
    kept = torch.zeros_like(hidden)
    for n, sample in enumerate(batch.sample_id.tolist()):
        for pair in range(8):
            row = sample * 8 + pair
            places = torch.tensor([row * 32 + column for column in range(32)])
            draws = random_integers(method.seed, method.steps, places)
            kept[n * 8 + pair] = (draws >= 2**62) * 2.0  # half of [0, 2^63)
    return method.head(hidden * kept).view(SAMPLES, 8, 8)


@pytest.mark.parametrize("steps", [0, 3])
def test_the_loss_is_the_cross_entropy_of_the_eight_places(steps):
    method = small_method(small_config("relative_loc"), torch.float64)
    method.steps.fill_(steps)
    batch = batches(1, torch.float64)[0]
    scalars = method(batch)
    loss = right = 0.0
    for image in logits_by_loops(method, batch).tolist():
        for label, values in enumerate(image):
            loss += math.log(sum(math.exp(value) for value in values)) - values[label]
            right += values[label] == max(values)
    assert scalars["loss"].item() == pytest.approx(loss / (8 * SAMPLES), rel=1e-9)
    assert scalars["accuracy"].item() == pytest.approx(right / (8 * SAMPLES))


def test_micro_batches_have_the_whole_batchs_gradients():
    """Dropout too: it depends on the sample, and BatchNorm's groups are whole."""
    whole, parts = (small_method(small_config("relative_loc"), torch.float64) for _ in range(2))
    batch = batches(1, torch.float64)[0]
    whole(batch)["loss"].backward()
    for part in batch.split(SAMPLES // 2):
        (parts(part)["loss"] / 2).backward()
    for (name, wanted), found in zip(whole.named_parameters(), parts.parameters()):
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-7, atol=1e-10, msg=name)


def test_dropout_differs_from_step_to_step():
    method = small_method(small_config("relative_loc"))
    batch = batches(1)[0]
    first = method(batch)["loss"]
    assert torch.equal(method(batch)["loss"], first)
    method.after_step(0.0)
    assert not torch.equal(method(batch)["loss"], first)


def test_neck_and_head_have_their_own_weight_decay():
    config = small_config(
        "relative_loc", optimizer=OptimizerConfig(weight_decay=1e-4, head_weight_decay=5e-4)
    )
    trainer = Trainer(config, small_method(config), NoiseLoader(size=SIDE, batch=SAMPLES))
    method = trainer.method
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    decays = {
        names[id(parameter)]: group["weight_decay"]
        for group in trainer.optimizer.param_groups
        for parameter in group["params"]
    }
    assert decays == {name: 1e-4 if name.startswith("query.") else 5e-4 for name in names.values()}
    assert {name.split(".")[0] for name in names.values()} == {"query", "neck", "norm", "head"}


def test_the_paper_recipe_has_the_codebases_layers():
    """Crops of 255 pixels with patches of 64; normal weights of 0.005; BatchNorm's momentum."""
    config = RECIPES["paper"]("relative_loc")
    assert (config.relative_loc.hidden, config.relative_loc.dropout) == (4096, 0.5)
    small = small_config("relative_loc", relative_loc=RelativeLocConfig())
    method = small_method(small)
    assert method.norm.momentum == 0.003
    for layer, bias in ((method.neck, 0.1), (method.head, 0.0)):
        assert layer.weight.std().item() == pytest.approx(0.005, rel=0.03)
        assert (layer.bias == bias).all()
    assert round(config.model.view_size * 255 / 224) == 255
    assert (method.views.size, method.views.patch_size) == (36, 9)


def test_a_batch_without_patches_says_what_to_do():
    method = small_method(small_config("relative_loc"))
    batch = batches(1)[0]
    bare = Batch(
        views=batch.views, sample_id=batch.sample_id, target=batch.target, index=batch.index
    )
    with pytest.raises(ValueError, match="needs batches with patches"):
        method(bare)


def test_groups_without_parameters_are_left_out():
    weight = torch.nn.Parameter(torch.ones(2, 2))
    config = OptimizerConfig(head_weight_decay=5e-4)
    (group,) = make_optimizer([weight], config).param_groups
    assert group["weight_decay"] == 1e-4

"""Features and recalibration: each image once, its label, statistics of clean images."""

import itertools

import pytest
import torch

from maskco_fast.evaluation.features import extract, first_occurrences, pooled
from maskco_fast.evaluation.recalibrate import recalibrate
from maskco_fast.evaluation.weights import frozen_trunk, read_weights
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import ViewConfig, make_loader, open_dataset
from maskco_fast.training.distributed import World

SIZE = 32


@pytest.fixture(scope="module")
def trunk():
    return frozen_trunk(read_weights("random", trunk="resnet18"))


def loader_of(shards, batch_size, **options):
    return make_loader(
        open_dataset(shards, labels="cls"),
        batch_size,
        views=ViewConfig.evaluation(SIZE),
        threads=1,
        **options,
    )


def test_every_image_is_encoded_once_with_its_label(make_shards, trunk):
    shards = make_shards(1, 9, bad=(4,))
    with loader_of(shards, 4, shuffle=False, drop_last=False) as loader:
        found = extract(pooled(trunk), loader, "fp32")
    assert found is not None
    assert found.index.tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    assert found.target.tolist() == [n % 4 for n in found.index.tolist()]
    with loader_of(shards, 1, shuffle=False, drop_last=False) as loader, torch.no_grad():
        alone = torch.cat([trunk(batch.query).mean((2, 3)) for batch in loader])
    torch.testing.assert_close(found.values, alone[: len(found)], rtol=1e-4, atol=1e-5)


def test_a_stop_ends_the_pass(make_shards, trunk):
    answers = iter([False, True, True])
    with loader_of(make_shards(1, 6), 2, shuffle=False, drop_last=False) as loader:
        assert extract(pooled(trunk), loader, "fp32", stopped=lambda: next(answers)) is None


class Ranks(World):
    def gather_objects(self, value):
        return self.control


def test_of_two_ranks_the_lower_one_keeps_a_repeated_image():
    shares = [torch.tensor([4, 0, 2, 2]), torch.tensor([1, 2, 5, 1])]
    kept = []
    for rank, share in enumerate(shares):
        world = Ranks(rank=rank, size=2, control=shares)
        kept.append(share[first_occurrences(share, world)].tolist())
    assert kept == [[0, 2, 4], [1, 5]]


def test_images_without_labels_are_refused(make_shards, trunk):
    views = ViewConfig.evaluation(SIZE)
    dataset = open_dataset(make_shards(1, 3))
    dataset.samples = dataset.samples.copy()  # those of the index are read-only
    dataset.samples["target"] = -1
    with (
        make_loader(dataset, 2, views=views, threads=1, drop_last=False) as loader,
        pytest.raises(InvalidInput, match="3 of 3 images have no label"),
    ):
        extract(pooled(trunk), loader, "fp32")


def test_recalibration_is_the_mean_over_clean_batches(make_shards):
    trunk = frozen_trunk(read_weights("random", trunk="resnet18"))
    for buffer in (trunk.bn1.running_mean, trunk.bn1.num_batches_tracked):
        buffer.fill_(5)  # what a run has left behind
    shards = make_shards(1, 11)
    with loader_of(shards, 4) as loader:
        assert recalibrate(trunk, loader, "fp32", images=9) == 8
    with loader_of(shards, 4) as loader, torch.no_grad():
        outputs = [trunk.conv1(batch.query) for batch in itertools.islice(loader, 2)]
    means = torch.stack([output.mean((0, 2, 3)) for output in outputs])
    variances = torch.stack([output.var((0, 2, 3)) for output in outputs])
    torch.testing.assert_close(trunk.bn1.running_mean, means.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(trunk.bn1.running_var, variances.mean(0), rtol=1e-4, atol=1e-5)
    layers = [module for module in trunk.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert not any(layer.training for layer in layers)
    assert {layer.momentum for layer in layers} == {0.1}
    assert not any(parameter.requires_grad for parameter in trunk.parameters())


def test_recalibration_needs_a_whole_batch(make_shards, trunk):
    with (
        loader_of(make_shards(1, 3), 4) as loader,
        pytest.raises(InvalidInput, match="a batch of 4 images on each process, got 3"),
    ):
        recalibrate(trunk, loader, "fp32", images=100)

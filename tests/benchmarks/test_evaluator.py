"""The check of the evaluation by a network of known accuracy, on a few generated images."""

import pytest
import torch
from torch.nn import functional

from benchmarks.correctness import evaluator
from maskco_fast.kernels.errors import MissingPackage
from maskco_fast.loaders import open_dataset


def test_every_figure_is_measured(make_shards, capsys):
    try:
        evaluator.load_network()
    except MissingPackage as error:
        pytest.skip(str(error))
    train, val = make_shards(2, 24)
    evaluator.main(
        evaluator.Options(train=(train,), val=(val,), imagenet=(), size=64, epochs=3, batch_size=8)
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "24 training and 24 validation images"
    assert [line.partition(":")[0] for line in lines[1:]] == ["k-NN, k 20, T 0.07", "linear probe"]


def test_the_loaders_normalisation_is_undone():
    levels = torch.tensor([0.0, 127, 255]).view(3, 1, 1).expand(3, 2, 2)
    normalised = (levels / 255 - evaluator.MEAN) / evaluator.STD
    expected = (levels - 127) / 128
    torch.testing.assert_close(evaluator.tensorflow_levels(normalised.unsqueeze(0))[0], expected)


def test_the_loader_and_torchvision_on_pillow_agree(make_shards):
    shards, _ = make_shards(2, 24)
    dataset = open_dataset([shards], labels="cls")
    options = evaluator.Options(size=32, batch_size=8)
    weight = torch.randn(12, 3 * 4 * 4, generator=torch.Generator().manual_seed(0))

    def encode(pixels):
        return functional.adaptive_avg_pool2d(pixels, 4).flatten(1) @ weight.T

    ours, images = evaluator.top1(encode, dataset, options)
    assert images == 24
    assert evaluator.torchvision_top1(encode, dataset, options) == pytest.approx(ours, abs=5)

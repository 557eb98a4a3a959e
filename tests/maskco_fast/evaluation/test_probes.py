"""Probes: the pools' geometry, BatchNorm in eval mode against a loop, scikit-learn's optimum."""

import pytest
import torch

from maskco_fast.evaluation.probes import (
    LAYERS,
    PAPER_POOLS,
    LayerProbe,
    Pool,
    Probes,
    hits,
    pool_for,
)

RESNET50 = {layer: shape for layer, shape in zip(LAYERS, PAPER_POOLS)}
"""Channels and side of each map at 224 pixels."""


def layer_probes(probes: Probes) -> dict[str, LayerProbe]:
    """The probes of "multi", by layer."""
    return {layer: probe for layer, probe in probes.items() if isinstance(probe, LayerProbe)}


def test_the_papers_maps_have_the_papers_number_of_values():
    probes = layer_probes(Probes("multi", RESNET50, 3, seed=0))
    assert {layer: probe.linear.in_features for layer, probe in probes.items()} == {
        "conv1": 9216,
        "conv2": 9216,
        "conv3": 8192,
        "conv4": 9216,
        "conv5": 8192,
    }
    assert [probe.pool.side(RESNET50[layer][1]) for layer, probe in probes.items()] == [
        12,
        6,
        4,
        3,
        2,
    ]


@pytest.mark.parametrize("size", [32, 64, 96, 160, 224, 448])
def test_other_maps_are_covered_by_equal_windows(size):
    for channels, stride in ((64, 2), (64, 4), (128, 8), (256, 16), (512, 32), (2048, 32)):
        side = size // stride
        pool = pool_for(channels, side)
        pooled = pool.side(side)
        if (channels, side) not in PAPER_POOLS:
            assert (pooled - 1) * pool.stride + pool.kernel == side  # from edge to edge
            assert pool.kernel >= pool.stride  # no gaps
        expected = {64: 12, 128: 8, 256: 6, 512: 4, 1024: 3, 2048: 2}[channels]
        assert pooled == min(side, expected)
        assert channels * pooled**2 <= 9216


@pytest.mark.parametrize("padding", [0, 1])
def test_a_probe_in_eval_mode_equals_a_loop(monkeypatch, padding):
    """Pool (padding counts as zeros), running statistics, linear layer."""
    pool = Pool(kernel=3, stride=2, padding=padding)
    monkeypatch.setattr("maskco_fast.evaluation.probes.pool_for", lambda *_: pool)
    torch.manual_seed(0)
    probe = LayerProbe(4, 7, 3)
    mean, variance = probe.norm.running_mean, probe.norm.running_var  # updated in place
    assert mean is not None
    assert variance is not None
    for _ in range(3):  # moves the running statistics
        probe(torch.randn(8, 4, 7, 7) * 2 + 1)
    probe.eval()
    map_NCSS = torch.randn(2, 4, 7, 7)
    pooled = pool.side(7)
    padded = torch.zeros(2, 4, 7 + 2 * padding, 7 + 2 * padding)
    padded[:, :, padding : padding + 7, padding : padding + 7] = map_NCSS
    expected = torch.zeros(2, 3)
    for n in range(2):
        values = []
        for channel in range(4):
            for y in range(pooled):
                for x in range(pooled):
                    window = padded[n, channel, 2 * y : 2 * y + 3, 2 * x : 2 * x + 3]
                    centred = window.sum() / 9 - mean[channel]
                    values.append(centred / (variance[channel] + 1e-5).sqrt())
        expected[n] = probe.linear.weight @ torch.stack(values) + probe.linear.bias
    found = probe(map_NCSS.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_weights_are_small_normal_and_drawn_from_the_seed():
    one, same, other = (
        layer_probes(Probes("multi", RESNET50, 10, seed=seed)) for seed in (0, 0, 1)
    )
    for layer in LAYERS:
        weight = one[layer].linear.weight
        assert weight.std().item() == pytest.approx(0.01, rel=0.02)
        assert not one[layer].linear.bias.any()
        assert torch.equal(weight, same[layer].linear.weight)
        assert not torch.equal(weight, other[layer].linear.weight)
        trained = [name for name, p in one[layer].named_parameters() if p.requires_grad]
        assert trained == ["linear.weight", "linear.bias"]


def test_hits_count_the_first_and_the_first_five():
    logits = torch.tensor([[0.0, 9, 1, 2, 3, 4, 5]] * 3)
    assert hits(logits, torch.tensor([1, 3, 0])).tolist() == [
        [True, True],
        [False, True],
        [False, False],
    ]
    two = torch.tensor([[0.0, 1]])  # fewer classes than five
    assert hits(two, torch.tensor([0])).tolist() == [[False, True]]

"""Encoders: parameter counts of the paper, initialisation and momentum copies."""

import pytest
import torch
from torch import nn

from maskco_fast.networks.config import ModelConfig
from maskco_fast.networks.encoders import (
    MovingAverage,
    RegionEncoder,
    initialise,
    momentum_copy,
)


@pytest.fixture(autouse=True)
def _one_thread():
    """Leave the other cores to tests that run at the same time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def parameter_count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def encoder(**fields) -> RegionEncoder:
    mph_blocks = fields.pop("mph_blocks", 3)
    return RegionEncoder(
        ModelConfig(**fields), mph_blocks=mph_blocks, roi_sampling_ratio=-1, roi_aligned=True
    )


def test_parameter_counts_of_the_paper():
    with torch.device("meta"):
        network = encoder()
    # torchvision's ResNet-50 without its classifier.
    assert parameter_count(network.trunk) == 23_508_032
    block = 2048 * 512 + 512 * 512 * 9 + 512 * 2048 + 2 * (512 + 512 + 2048)
    assert parameter_count(network.mph) == 3 * block
    assert parameter_count(network.projection) == 2048 * 2048 + 2048 + 2048 * 128 + 128


@pytest.mark.parametrize("blocks", range(5))
def test_every_row_of_table_4_builds(blocks):
    with torch.device("meta"):
        network = encoder(trunk="resnet18", mph_blocks=blocks)
    assert len(network.mph) == blocks
    assert parameter_count(network.mph) == blocks * (
        512 * 128 + 128 * 128 * 9 + 128 * 512 + 2 * (128 + 128 + 512)
    )


def test_initialisation_is_kaiming_by_fan_in_and_of_the_seed_alone():
    network = encoder(trunk="resnet18")
    initialise(network, torch.Generator().manual_seed(3))
    state = network.state_dict()
    weight = state["trunk.layer3.0.conv1.weight"]  # 256 x 128 x 3 x 3: fan-in 1152, fan-out 2304
    assert weight.std().item() == pytest.approx((2 / 1152) ** 0.5, rel=0.01)
    assert state["projection.0.weight"].std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.01)
    assert not state["projection.0.bias"].any()
    torch.manual_seed(99)
    again = encoder(trunk="resnet18")
    initialise(again, torch.Generator().manual_seed(3))
    assert all(torch.equal(a, b) for a, b in zip(state.values(), again.state_dict().values()))


def test_the_moving_average_moves_parameters_alone():
    query = encoder(trunk="resnet18", mph_blocks=0)
    initialise(query, torch.Generator().manual_seed(0))
    key = momentum_copy(query)
    assert key.training
    assert not any(parameter.requires_grad for parameter in key.parameters())
    before = {name: value.clone() for name, value in key.state_dict().items()}
    with torch.no_grad():
        for parameter in query.parameters():
            parameter.add_(1)
        query.state_dict()["trunk.bn1.running_mean"] += 5
    MovingAverage(key, query).update(0.9)
    parameters = dict(key.named_parameters())
    for name, value in key.state_dict().items():
        if name in parameters:
            torch.testing.assert_close(value, before[name] + 0.1, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(value, before[name]), name


def test_the_moving_average_keeps_its_lists(monkeypatch):
    """Collected at the first update; later ones follow parameters that move or are loaded."""
    query = torch.nn.Linear(2, 3)
    key = momentum_copy(query)
    average = MovingAverage(key, query)
    monkeypatch.setattr(torch.nn.Module, "parameters", lambda self: pytest.fail("collected anew"))
    average.update(0.5)
    query.double(), key.double()
    query.load_state_dict({"weight": torch.ones(3, 2), "bias": torch.zeros(3)})
    key.load_state_dict({"weight": torch.zeros(3, 2), "bias": torch.zeros(3)})
    average.update(0.9)
    torch.testing.assert_close(key.weight.data, torch.full((3, 2), 0.1, dtype=torch.float64))

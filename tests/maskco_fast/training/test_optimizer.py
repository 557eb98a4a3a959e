"""LARS against its formula parameter by parameter, its exclusions, and the warm-up."""

from typing import Any

import pytest
import torch
from torch import nn

from maskco_fast.training.optimizer import (
    LearningRate,
    OptimizerConfig,
    learning_rate,
    make_optimizer,
)

LARS = OptimizerConfig(name="lars", learning_rate=0.3, weight_decay=0.01, trust=0.02)


def test_lars_equals_algorithm_1():
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3), (5,), (2, 3, 3, 3), (6, 2), ()]
    parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    with torch.no_grad():
        parameters[3].zero_()  # a weight of zeros moves by its gradient
    wanted = [parameter.detach().double() for parameter in parameters]
    speeds = [torch.zeros_like(value) for value in wanted]
    optimizer = make_optimizer(parameters, LARS)
    for rate in (0.3, 0.2, 0.1):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for place, parameter in enumerate(parameters):
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = gradient.clone()
            gradient, weight = gradient.double(), wanted[place]
            local, decay = 1.0, 0.0
            if weight.dim() > 1:
                decay = 0.01
                if weight.norm() > 0:
                    local = 0.02 * weight.norm() / (gradient.norm() + decay * weight.norm())
            speeds[place] = 0.9 * speeds[place] + rate * local * (gradient + decay * weight)
            wanted[place] = weight - speeds[place]
        optimizer.step()
    for parameter, value in zip(parameters, wanted):
        torch.testing.assert_close(parameter.detach().double(), value, rtol=1e-5, atol=1e-6)


def test_lars_goes_on_from_its_state():
    def run(stop_at: int | None) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        weight = nn.Parameter(torch.ones(3, 2))
        optimizer = make_optimizer([weight], LARS)
        for step in range(4):
            if step == stop_at:
                state = optimizer.state_dict()
                optimizer = make_optimizer([weight], LARS)
                optimizer.load_state_dict(state)
            weight.grad = torch.randn(3, 2, generator=generator)
            optimizer.step()
        return weight.detach()

    assert torch.equal(run(None), run(2))


def test_parameters_without_gradients_stay():
    frozen, unused = (
        nn.Parameter(torch.ones(2, 2), requires_grad=False),
        nn.Parameter(torch.ones(2, 2)),
    )
    optimizer = make_optimizer([frozen, unused], LARS)
    optimizer.step()
    assert [len(group["params"]) for group in optimizer.param_groups] == [1]
    assert torch.equal(unused, torch.ones(2, 2))


def test_warm_up_is_a_ramp_on_the_cosine():
    config = OptimizerConfig(name="lars", learning_rate=0.3, warmup_steps=10)
    without = OptimizerConfig(name="lars", learning_rate=0.3)
    rates = [
        learning_rate(config, 256, step, 100) / learning_rate(without, 256, step, 100)
        for step in range(20)
    ]
    assert rates == pytest.approx([min(1, (step + 1) / 10) for step in range(20)])


def test_the_step_schedule_divides_by_ten_at_its_epochs():
    """A warm-up of 5 epochs, then tenths at 30 and 50 of 70 (OpenSelfSup)."""
    config = OptimizerConfig(learning_rate=0.2, schedule="step", warmup_steps=5)
    rates = [learning_rate(config, 128, epoch, 70) for epoch in range(70)]
    wanted = [0.02, 0.04, 0.06, 0.08, *[0.1] * 26, *[0.01] * 20, *[0.001] * 20]
    assert rates == pytest.approx(wanted)
    longer = [learning_rate(config, 128, step, 700_000) for step in (299_999, 300_000, 500_000)]
    assert longer == pytest.approx([0.1, 0.01, 0.001])


def test_heads_have_their_own_decay():
    trunk, head = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(3))
    config = OptimizerConfig(learning_rate=1.0, weight_decay=0.1, head_weight_decay=0.5)
    optimizer = make_optimizer([trunk, head], config, heads=[head])
    for parameter in (trunk, head):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert trunk.tolist() == [[pytest.approx(0.9)] * 2] * 2
    assert head.tolist() == [pytest.approx(0.5)] * 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"milestones": (0.5, 0.5)}, r"between 0 and 1 in ascending order, got \(0\.5, 0\.5\)"),
        ({"milestones": (0.5, 1.0)}, "between 0 and 1 in ascending order"),
        ({"drop": 0.0}, r"`drop` must be in \(0, 1\], got 0\.0"),
        ({"head_weight_decay": -1.0}, "`head_weight_decay` must be at least 0 or None, got -1"),
        ({"name": "lars", "head_weight_decay": 0.1}, "must be None for lars, got 0.1"),
    ],
)
def test_a_wrong_setting_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**fields)


@pytest.mark.parametrize("name", ["sgd", "lars"])
def test_a_rate_in_a_tensor_trains_as_a_number(name):
    """As a graph of the whole step needs it; the checkpoint holds a number in both cases."""
    config = OptimizerConfig(name=name, weight_decay=0.01, trust=0.02)
    networks = [nn.Linear(4, 3) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    optimizers = [make_optimizer(network.parameters(), config) for network in networks]
    tensor = torch.zeros(())
    rates = [LearningRate(optimizers[0], None), LearningRate(optimizers[1], tensor)]
    inputs = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    for value in (0.5, 0.25, 0.125):
        for network, optimizer, rate in zip(networks, optimizers, rates):
            rate.set(value)
            optimizer.zero_grad()
            network(inputs).square().sum().backward()
            optimizer.step()
        assert all(group["lr"] is tensor for group in optimizers[1].param_groups)
        assert tensor.item() == value
    for number, in_tensor in zip(networks[0].parameters(), networks[1].parameters()):
        torch.testing.assert_close(in_tensor, number)
    groups = [rate.state_dict()["param_groups"] for rate in rates]
    assert groups[0] == groups[1]
    assert [group["lr"] for group in groups[1]] == [0.125] * len(groups[1])
    optimizers[1].load_state_dict(rates[0].state_dict())  # a checkpoint of a CPU
    rates[1].set(0.0625)
    assert all(group["lr"] is tensor for group in optimizers[1].param_groups)


def test_a_first_step_that_the_scaler_skips_leaves_no_trace():
    """torch allocates SGD's sums in the first step, and would leave them as the memory was."""
    skipped, plain = (nn.Linear(3, 2) for _ in range(2))
    plain.load_state_dict(skipped.state_dict())
    for layer in (skipped, plain):
        optimizer: Any = make_optimizer(layer.parameters(), OptimizerConfig(learning_rate=0.1))
        gradients = [torch.full_like(parameter, 2.0) for parameter in layer.parameters()]
        if layer is skipped:
            for parameter in layer.parameters():
                parameter.grad = torch.full_like(parameter, torch.inf)
            optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(1.0)
            poison = [torch.full_like(parameter, torch.nan) for parameter in layer.parameters()]
            del poison  # its memory is what an allocation would find
            optimizer.step()
            assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), plain.parameters()))
            optimizer.found_inf = torch.tensor(0.0)
        for _ in range(2):
            for parameter, gradient in zip(layer.parameters(), gradients):
                parameter.grad = gradient.clone()
            optimizer.step()
    for one, other in zip(skipped.parameters(), plain.parameters()):
        torch.testing.assert_close(one, other)

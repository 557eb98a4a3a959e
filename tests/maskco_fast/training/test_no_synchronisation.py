"""A training step never waits for the device: it reads no value and copies nothing between devices.

Without a GPU this is tested in two halves. The first runs the trainer's whole step on real CPU
tensors, where reading a value shows as an operation. The second runs our own code (forward pass,
LARS, `after_step`) on fake CUDA tensors, which show copies as well and raise when a value is read.
Torch's backward pass and fused SGD need a driver and are left out.
"""

import warnings

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from maskco_fast.loaders import Batch
from maskco_fast.methods.base import Method
from maskco_fast.methods.registry import METHODS
from maskco_fast.training.config import TrainConfig
from maskco_fast.training.optimizer import (
    LARS,
    LearningRate,
    OptimizerConfig,
    make_optimizer,
)
from maskco_fast.training.recipes import RECIPES
from maskco_fast.training.signals import StopSignal
from maskco_fast.training.trainer import Trainer
from tests.support.small_methods import SAMPLES, SIDE, WITH_MAX_POOL, small_config, small_method
from tests.support.tiny_run import NoiseLoader

READS = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::is_nonzero",
}
"""Operations for whose result, or its shape, the host waits."""


class Watch(TorchDispatchMode):
    """Records the operations that would make the host wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.name().split(".")[0]
        if name in READS:
            self.waits.append(name)
        if name in ("aten::_to_copy", "aten::copy_"):
            source = args[1] if name == "aten::copy_" else args[0]
            if {source.device.type, result.device.type} == {"cpu", "cuda"}:
                self.waits.append(f"{name} from {source.device} to {result.device}")
        return result


def config_of(method: str) -> TrainConfig:
    """The small configuration with the optimiser of the paper's recipe."""
    name = RECIPES["paper"](method).optimizer.name
    return small_config(method, model=WITH_MAX_POOL, optimizer=OptimizerConfig(name=name))


@pytest.mark.parametrize("name", METHODS)
def test_the_trainers_step_reads_no_value(name):
    config = config_of(name)
    trainer = Trainer(config, small_method(config), NoiseLoader(size=SIDE, batch=SAMPLES))
    batches, stop = trainer._batches(), StopSignal(lambda: None)
    for _ in range(2):  # the first makes the optimiser's state
        with Watch() as watch:
            fetched = trainer._fetch(batches, stop)
            assert fetched is not None
            trainer._one_step(fetched)
        assert not watch.waits


def on_cuda(method: Method) -> Method:
    """Move the method to fake CUDA tensors; call it in a FakeTensorMode."""
    for module in method.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                empty = torch.empty(parameter.shape, device="cuda")
                module._parameters[name] = nn.Parameter(
                    empty, requires_grad=parameter.requires_grad
                )
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")
    return method


def empty_batch(method: Method) -> Batch:
    places = torch.empty(SAMPLES, dtype=torch.int64, device="cuda")
    return Batch(
        views=tuple(torch.empty(SAMPLES, 3, SIDE, SIDE, device="cuda") for _ in method.views.views),
        sample_id=places,
        target=places,
        index=places,
        masked_box=torch.empty(SAMPLES, 4, device="cuda"),
        key_boxes=torch.empty(SAMPLES, 17, 4, device="cuda"),
        patch_corners=torch.empty(SAMPLES, 9, 2, dtype=torch.int64, device="cuda"),
    )


@pytest.mark.parametrize("name", METHODS)
def test_nothing_is_read_from_or_sent_to_cuda(name):
    config = config_of(name)
    method = small_method(config)
    with FakeTensorMode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there is no CUDA
        on_cuda(method)
        optimizer = make_optimizer(method.parameters(), config.optimizer)
        rate = LearningRate(optimizer, torch.empty((), device="cuda"))
        batch = empty_batch(method)
        for _ in range(2):
            for parameter in method.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.empty_like(parameter)
            with Watch() as watch:
                assert method(batch)["loss"].device.type == "cuda"
                rate.set(0.5)
                if isinstance(optimizer, LARS):
                    optimizer.step()
                method.after_step(0.5)
            assert not watch.waits


def test_the_watch_sees_what_it_is_for():
    with Watch() as watch:
        torch.ones(3).sum().item()
        torch.ones(3).nonzero()
    assert watch.waits == ["aten::_local_scalar_dense", "aten::nonzero"]
    with FakeTensorMode(), Watch() as watch:
        value = torch.empty(3, device="cuda")
        value.cpu()
        value.copy_(torch.empty(3))
        assert len(watch.waits) == 2
        with pytest.raises(DataDependentOutputException):
            value.sum().item()

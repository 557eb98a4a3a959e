"""Training on a CUDA device against the CPU, by bodies that also run on the CPU."""

import contextlib
import copy
import json
import pathlib
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmarks.gpu import step as gpu_step
from maskco_fast.methods.registry import METHODS
from maskco_fast.networks.batch_norm import GroupBatchNorm2d
from maskco_fast.training import checkpoint
from maskco_fast.training.checkpoint_writer import Snapshot
from maskco_fast.training.devices import configure_cuda
from maskco_fast.training.graphed import WARM
from maskco_fast.training.trainer import Fetched, Trainer
from tests.support.devices import DEVICES, lag, waits_are_errors
from tests.support.small_methods import SAMPLES, SIDE, WITH_MAX_POOL, small_config, small_method
from tests.support.tiny_run import NoiseLoader, tiny_config, tiny_trainer


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """cpu, and cuda with float32 arithmetic; torch's settings are restored."""
    precision = torch.get_float32_matmul_precision()
    with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled):
        configure_cuda(torch.device(request.param, 0))
        yield request.param
    torch.set_float32_matmul_precision(precision)


def make(folder: pathlib.Path, device: str, **config: Any) -> Trainer:
    return tiny_trainer(tiny_config(folder, device=device, **config))


def take_step(trainer: Trainer, batches: Iterator[Any]) -> None:
    trainer._one_step(Fetched(next(batches), epoch=0))


def losses(trainer: Trainer, steps: int = 3) -> list[float]:
    """Of the next steps of a trainer on `NoiseLoader`."""
    batches = iter(trainer.loader)
    found: list[float] = []
    for _ in range(steps):
        take_step(trainer, batches)
        found += [record.line["loss"] for record in trainer._deferred.read()]
    return found


def on_the_cpu(folder: pathlib.Path) -> list[float]:
    return losses(make(folder, "cpu"))


def test_fp32_steps_are_the_cpus(tmp_path: pathlib.Path, device: str) -> None:
    mine, theirs = make(tmp_path, device), make(tmp_path, "cpu")
    assert losses(mine) == pytest.approx(losses(theirs), rel=1e-4)
    for name, value in theirs.method.state_dict().items():
        found = mine.method.state_dict()[name].cpu()
        torch.testing.assert_close(found, value, rtol=1e-3, atol=1e-4, msg=name)


def test_half_precision_trains_alike(tmp_path: pathlib.Path, device: str) -> None:
    """fp16 with its scaler on CUDA, bf16 on both."""
    truth = on_the_cpu(tmp_path)
    for precision in ("bf16", "fp16") if device == "cuda" else ("bf16",):
        trainer = make(tmp_path, device, precision=precision)
        assert trainer.scaler.is_enabled() is (precision == "fp16")
        assert losses(trainer) == pytest.approx(truth, rel=0.05)


def test_a_step_that_overflows_changes_no_weight(tmp_path: pathlib.Path, device: str) -> None:
    trainer = make(tmp_path, device, precision="fp16" if device == "cuda" else "fp32")
    trainer.scaler = torch.amp.GradScaler(device, init_scale=2.0**126)
    before = [parameter.detach().clone() for parameter in trainer.method.query.parameters()]
    losses(trainer, 1)
    assert trainer.scaler.get_scale() == 2.0**125
    after = list(trainer.method.query.parameters())
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    trainer.scaler = torch.amp.GradScaler(device, init_scale=2.0)
    losses(trainer, 1)
    assert not torch.equal(before[0], after[0])


def test_a_stopped_run_resumes(tmp_path: pathlib.Path, device: str) -> None:
    """RoIAlign's gradient on CUDA adds in any order, so the last bits may differ there."""
    whole = tiny_config(tmp_path / "whole", device=device, max_steps=6)
    stopped = tiny_config(tmp_path / "stopped", device=device, max_steps=6)
    assert tiny_trainer(whole).fit() is None
    assert tiny_trainer(stopped, signal_at=5, number=signal.SIGTERM).fit() == "SIGTERM"
    assert checkpoint.checkpoints(stopped.run_dir / "checkpoints")
    assert tiny_trainer(stopped).fit() is None
    lines = [
        [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
        for config in (whole, stopped)
    ]
    assert [line["step"] for line in lines[1]] == list(range(1, 7))
    first, second = ([line["loss"] for line in one] for one in lines)
    assert second == (first if device == "cpu" else pytest.approx(first, rel=1e-4))


def test_a_checkpoint_holds_its_moment_while_the_device_lags(
    tmp_path: pathlib.Path, device: str
) -> None:
    """The host queues three more steps before the copy has begun."""
    trainer = make(tmp_path, device)
    batches = iter(trainer.loader)
    take_step(trainer, batches)
    lag(device)
    take_step(trainer, batches)
    truth = {name: value.clone() for name, value in trainer.method.state_dict().items()}
    snapshot = Snapshot()
    taken = snapshot.take(trainer.state_dict())
    for _ in range(3):
        take_step(trainer, batches)
    snapshot.wait()
    assert taken["steps_done"] == 2
    for name, value in truth.items():
        assert torch.equal(taken["method"][name], value.cpu()), name
    rate = taken["optimizer"]["param_groups"][0]["lr"]
    assert isinstance(rate, float)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_does_not_wait_for_the_device(
    tmp_path: pathlib.Path, device: str, precision: str
) -> None:
    """MaskCo's step with ResNet-18, as `benchmarks.gpu.step` times it."""
    if device == "cpu" and precision == "fp16":
        pytest.skip("fp16 requires CUDA")
    options = gpu_step.Options(
        device=device, trunk="resnet18", batch=8, group=4, size=64 if device == "cuda" else 32
    )
    trainer = gpu_step.make_trainer(options, precision, str(tmp_path))
    fetched = Fetched(next(iter(trainer.loader)), epoch=0)
    for _ in range(2):
        trainer._one_step(fetched)
    with waits_are_errors(device):
        trainer._one_step(fetched)
    assert len(trainer._deferred.read()) == 3


@contextlib.contextmanager
def compiler(device: str) -> Iterator[None]:
    """On the CPU, trace and differentiate, and leave the code to eager operators."""
    torch._dynamo.reset()
    backend = None if device == "cuda" else "aot_eager"
    with torch.compiler.set_stance("default", force_backend=backend):
        yield
    torch._dynamo.reset()


def test_compiled_steps_are_the_eager_ones(tmp_path: pathlib.Path, device: str) -> None:
    eager = on_the_cpu(tmp_path)
    with compiler(device):
        trainer = make(tmp_path, device, compile=True)
        assert losses(trainer) == pytest.approx(eager, rel=1e-3)
        assert trainer.method.query.norm.running_mean.abs().sum() > 0


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"byol"}))
def test_graphed_steps_are_the_eager_ones(
    tmp_path: pathlib.Path, name: str, precision: str
) -> None:
    """From one state, a replay moves all that an eager step moves: weights, queues, banks.

    Over several steps, differences of rounding grow until nothing can be compared.
    """
    configure_cuda(torch.device("cuda", 0))
    settings = {"device": "cuda", "precision": precision, "cuda_graphs": True, "max_steps": 20}
    config = small_config(name, tmp_path, model=WITH_MAX_POOL, **settings)
    loader = NoiseLoader(size=SIDE, batch=SAMPLES)
    trainer = Trainer(config, small_method(config).train(), loader)
    for _ in range(WARM + 2):
        take_step(trainer, trainer._batches())
    before = copy.deepcopy(trainer.state_dict())
    batch = next(trainer._batches()).to("cuda")
    moves = []
    for step in (trainer._train, trainer._train_on):
        trainer.load_state_dict(copy.deepcopy(before))
        seen = {key: value.item() for key, value in step(batch).items()}
        state = trainer.method.state_dict()
        moves.append({key: (state[key] - before["method"][key]).double() for key in state})
        moves[-1]["loss"] = torch.tensor(seen["loss"])
    for key, eager in moves[1].items():
        apart = (moves[0][key] - eager).norm() / eager.norm().clamp(min=1e-4)
        assert apart < (1e-3 if precision == "fp32" else 0.05), key


@pytest.mark.parametrize("group", [2, 3, 6])
def test_batch_norm_of_groups_is_the_cpus(device: str, group: int) -> None:
    generator = torch.Generator().manual_seed(group)
    images, residual, slope = (
        torch.randn(6, 24, 5, 7, generator=generator).contiguous(memory_format=torch.channels_last)
        for _ in range(3)
    )
    found = []
    for place in ("cpu", device):
        norm = GroupBatchNorm2d(24, group_size=group).to(place).train()
        x, y = (value.to(place, copy=True).requires_grad_() for value in (images, residual))
        out = norm(x, y, relu=True)
        (out * slope.to(place)).sum().backward()
        parts = [out, x.grad, y.grad, *(one.grad for one in norm.parameters()), *norm.buffers()]
        found.append([part.detach().cpu() for part in parts if part is not None])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)

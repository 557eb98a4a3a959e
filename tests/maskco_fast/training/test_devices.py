"""The device and the precision of a run."""

import pytest
import torch

from maskco_fast.training.devices import (
    choose_device,
    choose_precision,
    configure_cuda,
    describe_arithmetic,
    has_bf16_instructions,
)


def test_device_and_precision():
    cpu = torch.device("cpu")
    assert choose_device("cpu") == cpu
    assert choose_precision("auto", cpu) == ("bf16" if has_bf16_instructions() else "fp32")
    assert choose_precision("auto", torch.device("cuda")) == "bf16"
    with pytest.raises(ValueError, match="fp16 requires CUDA"):
        choose_precision("fp16", cpu)
    with pytest.raises(ValueError, match="`device` must be auto, cpu, cuda or cuda:N, got 'gpu0'"):
        choose_device("gpu0")


@pytest.fixture
def current_devices(monkeypatch):
    """The devices that are made current; torch's global settings are restored."""
    made: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", made.append)
    products = torch.get_float32_matmul_precision()
    with torch.backends.cudnn.flags():
        yield made
    torch.set_float32_matmul_precision(products)


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("benchmark", [False, True])
def test_cuda_is_configured_explicitly(current_devices, tf32, benchmark):
    device = torch.device("cuda", 1)
    configure_cuda(device, tf32=tf32, cudnn_benchmark=benchmark)
    assert current_devices == [device]
    assert torch.backends.cudnn.allow_tf32 is tf32
    assert torch.backends.cuda.matmul.allow_tf32 is tf32
    assert torch.backends.cudnn.benchmark is benchmark
    text = describe_arithmetic("fp32", device)
    assert text.startswith("fp32 on cuda:1 (float32 with")
    assert ("without TF32" in text) is not tf32
    assert f"cuDNN benchmark {'on' if benchmark else 'off'}" in text


def test_on_a_cpu_nothing_is_configured(current_devices):
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    configure_cuda(torch.device("cpu"), tf32=True, cudnn_benchmark=True)
    assert current_devices == []
    assert (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()) == before
    assert describe_arithmetic("bf16", torch.device("cpu")) == "bf16 on cpu"

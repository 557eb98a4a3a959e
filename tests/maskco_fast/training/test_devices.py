"""The device and the precision of a run."""

import pytest
import torch

from maskco_fast.training.devices import choose_device, choose_precision, has_bf16_instructions


def test_device_and_precision():
    cpu = torch.device("cpu")
    assert choose_device("cpu") == cpu
    assert choose_precision("auto", cpu) == ("bf16" if has_bf16_instructions() else "fp32")
    assert choose_precision("auto", torch.device("cuda")) == "bf16"
    with pytest.raises(ValueError, match="fp16 requires CUDA"):
        choose_precision("fp16", cpu)
    with pytest.raises(ValueError, match="`device` must be auto, cpu, cuda or cuda:N, got 'gpu0'"):
        choose_device("gpu0")

"""The ResNet trunk and its fused blocks against torchvision's."""

import copy
from functools import partial

import pytest
import torch
import torchvision
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from maskco_fast.networks.batch_norm import GroupBatchNorm2d
from maskco_fast.networks.config import ModelConfig
from maskco_fast.networks.resnet import FusedBasicBlock, FusedBottleneck, Trunk

NORM = partial(GroupBatchNorm2d, group_size=4)


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Equal in float32 but for the convolutions' order of summation, which differs by CPU."""
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())


@pytest.fixture(autouse=True)
def _one_thread():
    """Leave the other cores to tests that run at the same time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_trunk_has_torchvisions_names_stride_and_conv5_map():
    trunk = Trunk("resnet18", NORM)
    reference = torchvision.models.resnet18()
    expected = {name for name in reference.state_dict() if not name.startswith("fc.")}
    assert set(trunk.state_dict()) == expected
    reference.load_state_dict(trunk.state_dict(), strict=False)
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    features: dict[str, torch.Tensor] = {}
    reference.layer4.register_forward_hook(
        lambda module, inputs, output: features.update(map=output)
    )
    reference.eval()(images)
    close(trunk.eval()(images), features["map"])
    assert features["map"].shape == (2, 512, 2, 3)
    with torch.device("meta"):
        deep = Trunk("resnet50", NORM)
    assert deep.layer2[0].conv1.stride == (1, 1)
    assert deep.layer2[0].conv2.stride == (2, 2)


def test_the_small_trunk_halves_channels_and_stride():
    """ResNet-10 of half the channels, whose first layer is 3 x 3 without a pool after it."""
    trunk = Trunk("resnet10-small", NORM)
    assert (trunk.channels, trunk.stride) == (256, 16)
    images = torch.randn(4, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    shapes = [tuple(one.shape[1:]) for one in trunk.maps(images)]
    assert shapes == [(32, 32, 48), (32, 32, 48), (64, 16, 24), (128, 8, 12), (256, 4, 6)]
    assert torch.equal(trunk.eval()(images), trunk.maps(images)[-1])
    assert sum(value.numel() for value in trunk.parameters()) == 1_226_400


def test_a_view_is_a_multiple_of_its_trunks_stride():
    assert ModelConfig(trunk="resnet10-small", view_size=48).view_size == 48
    with pytest.raises(ValueError, match="a positive multiple of 32 pixels with resnet18, got 48"):
        ModelConfig(trunk="resnet18", view_size=48)


class Calls(TorchDispatchMode):
    """Records the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("fused", [FusedBasicBlock, FusedBottleneck])
def test_on_a_device_the_strided_convolution_takes_no_slice(fused):
    """Its gradient would be two copies of the map, mostly of zeros."""
    channels = 32 * fused.expansion
    with torch.device("meta"):
        downsample = nn.Sequential(nn.Conv2d(16, channels, 1, 2, bias=False), NORM(channels))
        block = fused(16, 32, 2, downsample, norm_layer=NORM)
        x = torch.empty(8, 16, 6, 10, requires_grad=True)
        with Calls() as calls:
            block(x).sum().backward()
    assert "aten.slice_backward.default" not in calls.names
    assert sum("convolution.default" in name for name in calls.names) == sum(
        isinstance(module, nn.Conv2d) for module in block.modules()
    )


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("fused", [FusedBasicBlock, FusedBottleneck])
def test_fused_blocks_are_torchvisions(fused, stride):
    """Values and gradients in training, with and without a convolution in the residual."""
    plain = fused.__base__
    channels = 32 * plain.expansion if stride == 1 else 48
    downsample = None
    if stride > 1:
        convolution = nn.Conv2d(channels, 32 * plain.expansion, 1, stride, bias=False)
        downsample = nn.Sequential(
            convolution, GroupBatchNorm2d(32 * plain.expansion, group_size=4)
        )
    theirs = plain(channels, 32, stride, downsample, norm_layer=NORM)
    ours = fused(
        channels,
        32,
        stride,
        copy.deepcopy(downsample),
        norm_layer=NORM,
    )
    ours.load_state_dict(theirs.state_dict())
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(8, channels, 6, 10, generator=generator).contiguous(
        memory_format=torch.channels_last
    )
    found = []
    for block in (ours, theirs):
        x = images.clone().requires_grad_(True)
        out = block.to(memory_format=torch.channels_last)(x * 1)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        found.append(
            [out, x.grad, *(parameter.grad for parameter in block.parameters()), *block.buffers()]
        )
    for mine, wanted in zip(*found, strict=True):
        close(mine, wanted)

"""The networks: counts, RoIAlign against torchvision and the separable form, BatchNorm per group,
momentum copies."""

import copy
from functools import partial

import pytest
import torch
import torchvision
from torch import nn

from maskco_fast.loaders import Batch
from maskco_fast.methods.maskco import MaskCoConfig
from maskco_fast.methods.registry import make_method
from maskco_fast.networks.batch_norm import GroupBatchNorm2d
from maskco_fast.networks.config import ModelConfig
from maskco_fast.networks.encoders import RegionEncoder, initialise, momentum_copy, momentum_update
from maskco_fast.networks.resnet import FusedBasicBlock, FusedBottleneck
from maskco_fast.networks.roi_align import region_features
from maskco_fast.training.config import TrainConfig


@pytest.fixture(autouse=True)
def _one_thread():
    """No quarrel over cores with other tests."""
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
    assert (
        parameter_count(network.trunk) == 23_508_032
    )  # torchvision's ResNet-50 without its classifier
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


def test_trunk_has_torchvisions_names_stride_and_conv5_map():
    network = encoder(trunk="resnet18", mph_blocks=0)
    reference = torchvision.models.resnet18()
    expected = {name for name in reference.state_dict() if not name.startswith("fc.")}
    assert set(network.trunk.state_dict()) == expected
    reference.load_state_dict(network.trunk.state_dict(), strict=False)
    images = torch.randn(2, 3, 64, 96)
    features = {}
    reference.layer4.register_forward_hook(
        lambda module, inputs, output: features.update(map=output)
    )
    reference.eval()(images)
    assert torch.equal(network.eval().trunk(images), features["map"])
    assert features["map"].shape == (2, 512, 2, 3)
    with torch.device("meta"):
        deep = encoder(mph_blocks=0)
    assert deep.trunk.layer2[0].conv1.stride == (1, 1)
    assert deep.trunk.layer2[0].conv2.stride == (2, 2)


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
    theirs = plain(
        channels, 32, stride, downsample, norm_layer=partial(GroupBatchNorm2d, group_size=4)
    )
    ours = fused(
        channels,
        32,
        stride,
        copy.deepcopy(downsample),
        norm_layer=partial(GroupBatchNorm2d, group_size=4),
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
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())


def test_initialisation_is_kaiming_by_fan_in_and_of_the_seed_alone():
    network = encoder(trunk="resnet18")
    initialise(network, torch.Generator().manual_seed(3))
    weight = network.trunk.layer3[0].conv1.weight  # 256 x 128 x 3 x 3: fan-in 1152, fan-out 2304
    assert weight.std().item() == pytest.approx((2 / 1152) ** 0.5, rel=0.01)
    assert network.projection[0].weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.01)
    assert not network.projection[0].bias.any()
    torch.manual_seed(99)
    again = encoder(trunk="resnet18")
    initialise(again, torch.Generator().manual_seed(3))
    assert all(
        torch.equal(a, b)
        for a, b in zip(network.state_dict().values(), again.state_dict().values())
    )


def boxes(count: int, per_image: int, size: int, seed: int) -> torch.Tensor:
    """(count, per_image, 4) float32 xyxy inside the image; the first is the whole image, the second
    a corner."""
    generator = torch.Generator().manual_seed(seed)
    ends = torch.rand(count, per_image, 2, 2, generator=generator).sort(dim=2).values * size
    result = ends.flatten(2)
    result[:, 0] = torch.tensor([0, 0, size, size])
    result[:, 1] = torch.tensor([size - 9.5, 0, size, 7.25])
    return result


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [-1, 1, 3])
@pytest.mark.parametrize("cells", [1, 3, 7])
def test_region_features_equal_torchvisions_roi_align(cells, sampling_ratio, aligned):
    generator = torch.Generator().manual_seed(cells)
    feature_map = torch.randn(3, 6, cells, cells, generator=generator).contiguous(
        memory_format=torch.channels_last
    )
    feature_map.requires_grad_(True)
    boxes_NK4 = boxes(3, 17, 32 * cells, seed=cells)
    ours = region_features(feature_map, boxes_NK4, sampling_ratio=sampling_ratio, aligned=aligned)
    theirs = torchvision.ops.roi_align(
        feature_map, list(boxes_NK4), 1, 1 / 32, sampling_ratio, aligned
    )
    theirs = theirs.reshape(ours.shape)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-6)
    weights = torch.randn(ours.shape, generator=generator)
    gradients = [
        torch.autograd.grad((result * weights).sum(), feature_map)[0] for result in (ours, theirs)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=5e-6)


def test_region_features_are_the_separable_form():
    """Wy F Wx^T with the weights of one box worked out by hand: cells of 32 pixels, two samples
    down, one across."""
    feature_map = torch.arange(12.0).reshape(1, 1, 3, 4) ** 2
    box = torch.tensor(
        [[[40.0, 16.0, 72.0, 64.0]]]
    )  # in cells, less the half: x .75..1.75, y 0..1.5, samples ceil
    # Down: 1.5 cells give 2 samples, at .375 and 1.125; across: 1 cell gives 1, at 1.25.
    weight_y = torch.tensor([[0.625, 0.375 + 0.875, 0.125]]) / 2
    weight_x = torch.tensor([[0.0, 0.75, 0.25, 0.0]])
    wanted = weight_y @ feature_map[0, 0] @ weight_x.T
    found = region_features(feature_map, box, sampling_ratio=-1, aligned=True)
    assert found.shape == (1, 1, 1)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)


def test_momentum_update_moves_parameters_alone():
    query = encoder(trunk="resnet18", mph_blocks=0)
    initialise(query, torch.Generator().manual_seed(0))
    key = momentum_copy(query)
    assert key.training
    assert not any(parameter.requires_grad for parameter in key.parameters())
    before = {name: value.clone() for name, value in key.state_dict().items()}
    with torch.no_grad():
        for parameter in query.parameters():
            parameter += 1
        query.trunk.bn1.running_mean += 5
    momentum_update(key, query, 0.9)
    parameters = dict(key.named_parameters())
    for name, value in key.state_dict().items():
        if name in parameters:
            torch.testing.assert_close(value, before[name] + 0.1, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(value, before[name]), name


def maskco_batch(count: int, size: int, config: MaskCoConfig, seed: int = 0) -> Batch:
    """A batch of noise with the configured number of boxes."""
    generator = torch.Generator().manual_seed(seed)
    per_image = config.views(size).boxes
    views = tuple(torch.randn(count, 3, size, size, generator=generator) for _ in range(2))
    return Batch(
        views=tuple(view.contiguous(memory_format=torch.channels_last) for view in views),
        sample_id=torch.arange(count),
        target=torch.full((count,), -1),
        index=torch.arange(count),
        masked_box=boxes(count, 2, size, seed)[:, 0],
        key_boxes=boxes(count, per_image, size, seed + 1),
    )


def test_gradient_reaches_the_query_network_alone():
    model = ModelConfig(trunk="resnet18", view_size=32, group_size=4)
    method = make_method("maskco", MaskCoConfig(), model, seed=0)
    scalars = method(maskco_batch(4, 32, MaskCoConfig()))
    scalars["loss"].backward()
    assert not scalars["accuracy"].requires_grad
    for name, parameter in method.named_parameters():
        if name.startswith("query."):
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
        else:
            assert parameter.grad is None, name


def test_every_row_of_tables_5_and_6_is_a_configuration():
    model = ModelConfig(trunk="resnet18", view_size=32, group_size=2)
    configs = {
        (negatives, mask): MaskCoConfig(negatives=negatives, mask=mask, mph_blocks=0)
        for negatives in ("inter", "intra", "both")
        for mask in (True, False)
    }
    # All configurations have the same weights.
    method = make_method("maskco", configs["inter", True], model, seed=0)
    found = {}
    for (negatives, mask), config in configs.items():
        assert config.views(32).mask == mask
        method.config = config
        found[negatives, mask] = method(maskco_batch(2, 32, config))["loss"].item()
    assert found["inter", True] != found["intra", True]
    assert found["both", True] > max(found["inter", True], found["intra", True])  # more candidates


def test_making_a_method_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    make_method("maskco", MaskCoConfig(), ModelConfig(trunk="resnet18", view_size=32), seed=0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainConfig(method="byol_v9"), "`method` must be one of .*, got 'byol_v9'"),
        (lambda: TrainConfig(batch_size=48), "multiple of the group size, 32, .*, got 48"),
        (lambda: ModelConfig(view_size=100), "multiple of 32 pixels, got 100"),
        (lambda: MaskCoConfig(temperature=0), "`temperature` must be greater than 0, got 0"),
        (lambda: MaskCoConfig(boxes=1), "`boxes` must be at least 2 .*, got 1"),
    ],
)
def test_a_wrong_setting_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_chance_loss_counts_candidates():
    method = make_method("maskco", MaskCoConfig(), ModelConfig(trunk="resnet18"), seed=0)
    assert method.chance_loss(64) == pytest.approx(6.2086, abs=1e-4)

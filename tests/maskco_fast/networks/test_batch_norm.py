"""BatchNorm per group against separate BatchNorms; the fused kernels against torch's operators."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.optim.swa_utils import update_bn

from maskco_fast.networks import batch_norm
from maskco_fast.networks.batch_norm import GroupBatchNorm2d, SynchronizedBatchNorm

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-7}
"""Relative to the largest value: another order of sums in float32; one rounding to bfloat16."""


def test_group_batch_norm_equals_separate_ones():
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(12, 6, 5, 4, generator=generator).contiguous(
        memory_format=torch.channels_last
    )
    images = images * torch.linspace(0.5, 3, 12)[:, None, None, None]  # unlike groups
    ours = GroupBatchNorm2d(6, group_size=4)
    separate = [nn.BatchNorm2d(6) for _ in range(3)]
    x, y = images.clone().requires_grad_(True), images.clone().requires_grad_(True)
    for _ in range(2):
        out = ours(x)
        expected = torch.cat([norm(part) for norm, part in zip(separate, y.split(4))])
    torch.testing.assert_close(out, expected)
    assert out.is_contiguous(memory_format=torch.channels_last)
    weights = torch.randn(out.shape, generator=generator)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(ours.weight.grad, sum(norm.weight.grad for norm in separate))
    found = ours.state_dict()
    for name in ("running_mean", "running_var"):
        wanted = torch.stack([norm.state_dict()[name] for norm in separate]).mean(0)
        torch.testing.assert_close(found[name], wanted)
    assert found["num_batches_tracked"].item() == 2


def test_group_batch_norm_is_plain_for_one_group_and_in_eval_mode():
    images = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(6))
    for group_size in (8, 32):
        ours, plain = GroupBatchNorm2d(3, group_size=group_size), nn.BatchNorm2d(3)
        assert torch.equal(ours(images), plain(images))
        assert torch.equal(ours.state_dict()["running_var"], plain.state_dict()["running_var"])
    # 8 images do not divide into groups of 3, which matters in training only.
    ours = GroupBatchNorm2d(3, group_size=3).eval()
    assert torch.equal(ours(images), nn.BatchNorm2d(3).eval()(images))
    with pytest.raises(ValueError, match="groups of 3"):
        ours.train()(images)


def test_group_batch_norm_under_autocast_keeps_bfloat16_and_float32_statistics():
    images = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(7)).bfloat16()
    ours = GroupBatchNorm2d(3, group_size=4)
    with torch.autocast("cpu", torch.bfloat16):
        out = ours(images)
    assert out.dtype == torch.bfloat16
    assert ours.state_dict()["running_mean"].dtype == torch.float32
    expected = torch.cat([nn.BatchNorm2d(3)(part.float()) for part in images.split(4)])
    torch.testing.assert_close(out.float(), expected, rtol=2**-7, atol=2**-7)


@pytest.fixture(autouse=True)
def _threads():
    """Restore torch's number of threads, which tests may set."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def images_like(dtype: torch.dtype, *shape: int, seed: int, offset: float = 0.0) -> torch.Tensor:
    """Channels-last, normally distributed about `offset`, with a scale that grows by image."""
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + offset
    values = values * torch.linspace(0.5, 2, shape[0])[:, None, None, None]
    return values.to(dtype).contiguous(memory_format=torch.channels_last)


def one_by_one(
    norm: GroupBatchNorm2d, x: torch.Tensor, residual: torch.Tensor | None, relu: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The slow reference in the dtype of `norm`: output, and running statistics after a step."""
    outputs, means, variances = [], [], []
    for group in x.split(min(norm.group_size, len(x))):
        mean = norm.state_dict()["running_mean"].clone()
        variance = norm.state_dict()["running_var"].clone()
        output = functional.batch_norm(
            group,
            mean,
            variance,
            norm.weight,
            norm.bias,
            training=True,
            momentum=norm.momentum or 0.0,
            eps=norm.eps,
        )
        outputs.append(output)
        means.append(mean)
        variances.append(variance)
    output = torch.cat(outputs)
    if residual is not None:
        output = output + residual
    if relu:
        output = functional.relu(output)
    return output, torch.stack(means).mean(0), torch.stack(variances).mean(0)


def grad(tensor: torch.Tensor) -> torch.Tensor:
    assert tensor.grad is not None
    return tensor.grad


def close(found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> None:
    """Assert a difference within `TOLERANCE` of the largest wanted value."""
    apart = (found.double() - wanted.double()).abs().max()
    assert apart <= TOLERANCE[dtype] * wanted.abs().max(), apart


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize(
    ("shape", "group_size"),
    [
        ((6, 16, 1, 1), 6),
        ((4, 48, 3, 5), 4),
        ((6, 32, 7, 7), 2),
        ((2, 64, 33, 31), 32),
        ((3, 2048, 2, 1), 3),
    ],
    ids=str,
)
def test_fused_values_gradients_and_statistics_are_torchs(
    shape, group_size, with_residual, relu, dtype
):
    norm = GroupBatchNorm2d(shape[1], group_size=group_size)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-0.5, 1.5, shape[1]))
        norm.bias.copy_(torch.linspace(-1, 1, shape[1]))
    x = images_like(dtype, *shape, seed=1, offset=3).requires_grad_(True)
    residual = images_like(dtype, *shape, seed=2).requires_grad_(True) if with_residual else None
    gradient = images_like(dtype, *shape, seed=3)
    wide_x = x.detach().double().requires_grad_(True)
    wide_residual = None
    if residual is not None:
        wide_residual = residual.detach().double().requires_grad_(True)
    reference = GroupBatchNorm2d(shape[1], group_size=group_size).double()
    reference.load_state_dict(norm.state_dict())
    wanted, mean, variance = one_by_one(reference, wide_x, wide_residual, relu)
    wanted.backward(gradient.double())

    assert batch_norm._fits(x, residual)
    found = norm(x, residual, relu=relu)
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    found.backward(gradient)
    close(found, wanted, dtype)
    close(grad(x), grad(wide_x), dtype)
    close(grad(norm.weight), grad(reference.weight), torch.float32)
    close(grad(norm.bias), grad(reference.bias), torch.float32)
    if residual is not None and wide_residual is not None:
        close(grad(residual), grad(wide_residual), dtype)
    state = norm.state_dict()
    close(state["running_mean"], mean, torch.float32)
    close(state["running_var"], variance, torch.float32)
    assert state["num_batches_tracked"].item() == 1


def test_every_row_is_worked_on_whatever_the_number_of_threads(monkeypatch):
    """Parts of odd lengths, of fewer rows than a strip and of none together write everything."""
    monkeypatch.setattr(batch_norm, "WORTH_A_THREAD", 1)
    x = images_like(torch.bfloat16, 3, 16, 7, 3, seed=1)
    gradient = images_like(torch.bfloat16, 3, 16, 7, 3, seed=2)
    found = []
    for threads in (1, 2, 5, 80):
        torch.set_num_threads(threads)
        norm, leaf = GroupBatchNorm2d(16, group_size=3), x.clone().requires_grad_(True)
        out = norm(leaf, relu=True)
        out.backward(gradient)
        found.append((out.detach(), leaf.grad, norm.weight.grad, norm.running_var))
    for other in found[1:]:
        for one, first in zip(other, found[0]):
            torch.testing.assert_close(one, first)


def test_a_mean_far_from_zero_does_not_drown_the_variance():
    x = images_like(torch.float32, 8, 16, 9, 9, seed=1) + 1000
    norm = GroupBatchNorm2d(16, group_size=8)
    wanted = one_by_one(GroupBatchNorm2d(16, group_size=8).double(), x.double(), None, False)[0]
    # A float32 near 1000 has a precision of 6e-5; the deviation is near 1.
    assert (norm(x) - wanted).abs().max() < 1e-3


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_hidden(dtype, bad):
    x = images_like(dtype, 2, 16, 3, 3, seed=1)
    x[1, 5, 2, 2] = bad
    out = GroupBatchNorm2d(16, group_size=2)(x, relu=True)
    assert out[:, 5].isnan().any()
    assert out[:, :5].isfinite().all()


def test_one_value_a_channel_is_refused_as_by_torch():
    with pytest.raises(ValueError, match="more than 1 value"):
        GroupBatchNorm2d(16, group_size=1)(torch.zeros(2, 16, 1, 1))


def test_the_kernels_are_left_where_they_do_not_fit():
    fits = torch.zeros(2, 16, 3, 3).contiguous(memory_format=torch.channels_last)
    assert batch_norm._fits(fits, fits)
    assert not batch_norm._fits(torch.zeros(2, 16, 3, 3), None)
    assert not batch_norm._fits(fits, torch.zeros(2, 16, 3, 3))
    assert not batch_norm._fits(fits, fits.bfloat16())
    assert not batch_norm._fits(fits.double(), None)
    assert not batch_norm._fits(fits[:, :8].contiguous(memory_format=torch.channels_last), None)
    assert not batch_norm._fits(fits.to("meta"), None)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert not batch_norm._fits(mode.from_tensor(fits), None)


@pytest.mark.parametrize("options", [{"affine": False}, {"track_running_stats": False}])
def test_unusual_settings_are_left_to_torch(options):
    x = images_like(torch.float32, 4, 16, 3, 3, seed=1)
    found = GroupBatchNorm2d(16, group_size=4, **options)(x)
    assert torch.equal(found, nn.BatchNorm2d(16, **options)(x))
    lowered = GroupBatchNorm2d(16, group_size=4).bfloat16()(x.bfloat16(), relu=True)
    close(lowered, functional.relu(nn.BatchNorm2d(16)(x)), torch.bfloat16)


@pytest.mark.parametrize("channels", [16, 6], ids=["kernels", "torch"])
def test_update_bn_averages_over_the_batches_of_a_data_set(channels):
    """By torch's own BatchNorm2d, which sees each group as a batch; then by a short last batch."""
    batches = [images_like(torch.float32, 8, channels, 3, 5, seed=seed) for seed in range(3)]
    ours = GroupBatchNorm2d(channels, group_size=4)
    torchs = nn.BatchNorm2d(channels)
    for norm in (ours, torchs):
        norm(batches[0] + 7)  # what a run has left behind
    update_bn(batches, ours)
    update_bn([group for batch in batches for group in batch.split(4)], torchs)
    assert ours.momentum == 0.1
    found, averaged = ours.state_dict(), torchs.state_dict()
    for name in ("running_mean", "running_var"):
        close(found[name], averaged[name], torch.float32)
    assert found["num_batches_tracked"].item() == 3

    # Groups of 4 and of 2 images, which count by their images; the batch counts as a fourth.
    last = images_like(torch.float32, 6, channels, 3, 5, seed=9)
    ours.momentum = None
    residual = torch.ones_like(last)
    output = ours.train()(last, residual, relu=True)
    alone = [nn.BatchNorm2d(channels, momentum=1.0) for _ in range(2)]
    outputs = [norm(group) for norm, group in zip(alone, last.split(4))]
    close(output, functional.relu(torch.cat(outputs) + residual), torch.float32)
    found = ours.state_dict()
    for name in ("running_mean", "running_var"):
        whole, short = (norm.state_dict()[name] for norm in alone)
        wanted = 3 / 4 * averaged[name] + 1 / 4 * (4 * whole + 2 * short) / 6
        close(found[name], wanted, torch.float32)
    assert found["num_batches_tracked"].item() == 4


def fork_gradient(fork, stride: int) -> torch.Tensor:
    """The gradient of a tensor that is used whole and with a stride."""
    x = images_like(torch.float32, 2, 16, 6, 4, seed=4).requires_grad_(True)
    on, residual = fork(x, stride)
    (on.square().sum() + (3 * residual).exp().sum()).backward()
    return grad(x)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_meet_again_where_a_blocks_input_forks(stride):
    wanted = fork_gradient(lambda x, stride: (x, x[:, :, ::stride, ::stride]), stride)
    torch.testing.assert_close(fork_gradient(batch_norm.fork, stride), wanted)


@pytest.mark.parametrize(
    "make", [lambda: GroupBatchNorm2d(6, group_size=2), lambda: SynchronizedBatchNorm(6)]
)
@pytest.mark.parametrize("training", [True, False])
def test_residual_and_relu_without_the_kernels(make, training):
    norm, x, residual = make().train(training), torch.randn(4, 6, 3, 3), torch.randn(4, 6, 3, 3)
    alone = make().train(training)
    wanted = functional.relu(alone(x) + residual)
    torch.testing.assert_close(norm(x, residual, relu=True), wanted)

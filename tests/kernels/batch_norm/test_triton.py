"""BatchNorm by Triton, under its interpreter and on a CUDA device, against float64.

Every case runs the module, as a network does: output, gradients and running statistics.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from maskco_fast.kernels.batch_norm import reference
from maskco_fast.kernels.batch_norm import triton as operators
from maskco_fast.networks.batch_norm import GroupBatchNorm2d, _Fork

UNIT = {torch.float32: 0, torch.float16: 2**-10, torch.bfloat16: 2**-7}
"""Rounding of a value, relative to itself: a whole unit, since the interpreter rounds towards zero.
"""
SUMS = 1e-5
"""Rounding of float32 sums in another order, relative to the largest value, or to 1, the incoming
gradient's scale."""
Found = dict[str, torch.Tensor]


def made(shape: tuple[int, ...], dtype: torch.dtype, seed: int, offset: float = 0) -> torch.Tensor:
    """Channels-last, normally distributed about `offset`, with a scale that grows by image."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + offset
    values = values * torch.linspace(0.5, 2, shape[0])[:, None, None, None]
    return values.to(dtype).contiguous(memory_format=torch.channels_last)


def module(channels: int, group_size: int, **options: Any) -> GroupBatchNorm2d:
    """A BatchNorm with scales and shifts of both signs, and one of each that is 0."""
    norm = GroupBatchNorm2d(channels, group_size=group_size, **options)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-0.5, 1.5, channels))
        norm.bias.copy_(torch.linspace(-1, 1, channels))
        norm.weight[0] = norm.bias[0] = 0
    return norm


def use_interpreter() -> None:
    """In the child: let the operators take CPU tensors, as if on one multiprocessor."""
    operators.usable = lambda device: True  # type: ignore[assignment]
    operators._multiprocessors = lambda device: 1  # type: ignore[assignment]


def step(
    device: str,
    x: torch.Tensor,
    residual: torch.Tensor | None,
    relu: bool,
    group_size: int,
    options: dict[str, Any],
) -> Found:
    """A module's step on `device`: output, gradients and statistics."""
    if device == "cpu":
        use_interpreter()
    norm = module(x.shape[1], group_size, **options).to(device)
    x = x.to(device).requires_grad_(True)
    residual = None if residual is None else residual.to(device).requires_grad_(True)
    assert operators.fits(x, residual)
    output = norm(x, residual, relu=relu)
    assert output.dtype == x.dtype
    assert output.is_contiguous(memory_format=torch.channels_last)
    output.backward(made(tuple(x.shape), x.dtype, seed=3).to(device))
    found = {"output": output.detach(), "x": x.grad, "weight": norm.weight.grad}
    found |= {"bias": norm.bias.grad, **dict(norm.named_buffers())}
    if residual is not None:
        found["residual"] = residual.grad
    return {name: tensor.cpu() for name, tensor in found.items() if tensor is not None}


def expected(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    relu: bool,
    group_size: int,
    momentum: float = 0.1,
) -> Found:
    """The same by the reference in float64."""
    norm = module(x.shape[1], group_size).double()
    gradient = made(tuple(x.shape), x.dtype, seed=3).double()
    x = x.double().requires_grad_(True)
    residual = None if residual is None else residual.double().requires_grad_(True)
    length = min(group_size, len(x))
    output, mean, variance = reference.batch_norm(
        x, norm.weight, norm.bias, length=length, eps=norm.eps, residual=residual, relu=relu
    )
    output.backward(gradient)
    found = {"output": output.detach(), "x": x.grad, "weight": norm.weight.grad}
    found["bias"] = norm.bias.grad
    running = dict(norm.named_buffers())
    found["running_mean"], found["running_var"] = reference.moved_statistics(
        running["running_mean"],
        running["running_var"],
        mean.detach(),
        variance.detach(),
        rows=length * x.shape[2] * x.shape[3],
        momentum=momentum,
    )
    found["num_batches_tracked"] = torch.tensor(1)
    if residual is not None:
        found["residual"] = residual.grad
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def compare(found: Found, wanted: Found, dtype: torch.dtype) -> None:
    """Assert that each element differs by at most its own rounding and that of the sums."""
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        own = dtype if name in ("output", "x", "residual") else torch.float32
        value = wanted[name].double()
        allowed = UNIT[own] * value.abs() + SUMS * max(1.0, float(value.abs().max()))
        apart = (tensor.double() - value).abs()
        assert (apart <= allowed).all(), (name, (apart / allowed).max())


CASES = [
    # dtype, shape, group size, residual, ReLU
    (torch.float32, (6, 16, 3, 5), 2, True, True),  # several groups, less than a tile
    (torch.bfloat16, (4, 64, 7, 7), 2, False, True),
    (torch.float16, (4, 10, 5, 3), 4, False, False),  # channels without vectors
    (torch.float32, (3, 48, 3, 7), 1, True, False),  # channels that do not divide a tile
    (torch.float16, (2, 300, 3, 1), 1, True, True),  # two tiles, of which the second is short
    (torch.bfloat16, (3, 32, 27, 7), 3, True, True),  # several chunks, of which the last is short
    (torch.float32, (2, 16, 1, 1), 2, False, True),  # two rows
    (torch.float32, (1, 1, 1, 700), 1, False, True),  # one channel
]


@pytest.mark.parametrize(("dtype", "shape", "group_size", "with_residual", "relu"), CASES, ids=str)
def test_values_gradients_and_statistics(run, dtype, shape, group_size, with_residual, relu):
    x = made(shape, dtype, seed=1, offset=3)
    residual = made(shape, dtype, seed=2) if with_residual else None
    found = run(step, x, residual, relu, group_size, {})
    compare(found, expected(x, residual, relu, group_size), dtype)


def step_that_joins_in_parts(*arguments: Any) -> Found:
    """`step` with programs that join the partial results of at most four chunks at once."""
    before = operators.MAX_CHUNKS
    operators.MAX_CHUNKS = 4
    try:
        return step(*arguments)
    finally:
        operators.MAX_CHUNKS = before


def test_more_groups_than_are_joined_at_once(run):
    x = made((12, 16, 3, 1), torch.float32, seed=1)
    found = run(step_that_joins_in_parts, x, None, True, 2, {})
    compare(found, expected(x, None, True, 2), torch.float32)


def fork_gradient(device: str, x: torch.Tensor, stride: int) -> torch.Tensor:
    """The gradient of a tensor that is used whole and with a stride."""
    if device == "cpu":
        use_interpreter()
    x = x.to(device).requires_grad_(True)
    whole, residual = _Fork.apply(x, stride)
    assert torch.equal(residual, x[:, :, ::stride, ::stride])
    assert residual.is_contiguous(memory_format=torch.channels_last)
    (whole.square().sum() + (3 * residual).square().sum()).backward()
    assert x.grad is not None
    assert x.grad.is_contiguous(memory_format=torch.channels_last)
    return x.grad.cpu()


@pytest.mark.parametrize(
    ("dtype", "shape", "stride"),
    [
        (torch.bfloat16, (3, 64, 8, 6), 2),
        (torch.float32, (2, 10, 7, 5), 2),
        (torch.float16, (2, 16, 5, 9), 3),
        (torch.float32, (2, 16, 3, 3), 1),
    ],
)
def test_gradients_of_a_fork_are_summed(run, dtype, shape, stride):
    x = made(shape, dtype, seed=1)
    found = run(fork_gradient, x, stride)
    wanted = 2 * x.double()
    wanted[:, :, ::stride, ::stride] += 18 * x.double()[:, :, ::stride, ::stride]
    # Three roundings: of each gradient and of their sum.
    allowed = 3 * max(UNIT[dtype], 2**-23) * wanted.abs()
    assert ((found.double() - wanted).abs() <= allowed).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_agrees_with_numba(run, dtype):
    """The two kernels of one seam, with a momentum of another value."""
    x, residual = made((4, 32, 5, 3), dtype, 1), made((4, 32, 5, 3), dtype, 2)
    found = run(step, x, residual, True, 2, {"momentum": 0.3})
    norm = module(32, 2, momentum=0.3)
    leaf, other = x.clone().requires_grad_(True), residual.clone().requires_grad_(True)
    output = norm(leaf, other, relu=True)
    output.backward(made((4, 32, 5, 3), dtype, seed=3))
    wanted = {"output": output.detach(), "x": leaf.grad, "residual": other.grad}
    wanted |= {"weight": norm.weight.grad, "bias": norm.bias.grad, **dict(norm.named_buffers())}
    compare(found, wanted, dtype)  # type: ignore[arg-type]


def test_without_a_momentum_the_first_batch_sets_the_statistics(run):
    x = made((4, 32, 5, 3), torch.float32, 1)
    found = run(step, x, None, False, 2, {"momentum": None})
    compare(found, expected(x, None, False, 2, momentum=1.0), torch.float32)


def test_a_mean_far_from_zero_does_not_drown_the_variance(run):
    """Nor does a first row that lies far from all others: the padded corner of a first image."""
    x = made((8, 16, 9, 9), torch.float32, seed=1) + 1000
    x[0, :, 0, 0] = 0
    found = run(step, x, None, False, 8, {})
    wanted = expected(x, None, False, 8)
    # A float32 near 1000 has a precision of 6e-5; the deviation is near 39.
    assert (found["output"] - wanted["output"]).abs().max() < 1e-4
    torch.testing.assert_close(
        found["running_var"].double(), wanted["running_var"], rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [(0, 5, 0, 0), (1, 5, 8, 6)], ids=["first row", "last row"])
def test_what_is_not_finite_is_not_hidden(run, bad, place):
    x = made((2, 16, 9, 7), torch.float32, seed=1)
    x[place] = bad
    found = run(step, x, None, True, 2, {})
    for name in ("output", "x"):
        assert found[name][:, 5].isnan().any()
        assert found[name][:, :5].isfinite().all()
    assert not found["running_var"][5].isfinite()


def check_operators(device: str) -> tuple[int, list[str]]:
    """The operators' schemas, fake tensors and autograd; nodes and values under torch.compile."""
    if device == "cpu":
        use_interpreter()
    x, residual = (made((4, 16, 2, 3), torch.float32, seed).to(device) for seed in (1, 2))
    x.requires_grad_(True)
    residual.requires_grad_(True)
    norm = module(16, 2).to(device)
    buffers = (norm.running_mean, norm.running_var, norm.num_batches_tracked)
    # torch.library.opcheck's own comparison of static with dynamic shapes traces the network.
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    statistics = (x.detach(), *buffers, 2, 0.1, 1e-5)
    torch.library.opcheck(operators.statistics, statistics, test_utils=checks)
    known = operators.statistics(*statistics)
    arguments = (x, residual, norm.weight, norm.bias, *known, True)
    torch.library.opcheck(operators.normalise, arguments, test_utils=checks)
    names: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        names.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    gradient = made((4, 16, 2, 3), torch.float32, 3).to(device)
    for compiles in (True, False):
        norm = module(16, 2).to(device)
        call: Any = torch.compile(norm, backend=backend, fullgraph=True) if compiles else norm
        x.grad = None
        call(x, residual, relu=True).backward(gradient)
        assert x.grad is not None
        assert norm.running_var is not None
        names.append(str(x.grad.double().sum().item()))
        names.append(str(norm.running_var.double().sum().item()))
    assert norm.num_batches_tracked is not None
    return int(norm.num_batches_tracked), names


def test_operators_are_torchs(run):
    """A layer is two nodes to torch.compile, besides the detached input; results are equal."""
    count, names = run(check_operators)
    assert count == 1
    nodes = [name for name in names if "statistics" in name or "normalise" in name]
    assert len(nodes) == 2
    assert names[-4:-2] == names[-2:]


def test_tensors_that_do_not_fit():
    operators_usable = operators.usable
    x = made((2, 16, 3, 3), torch.float32, 1)
    assert not operators.fits(x, None)  # a CPU tensor
    try:
        operators.usable = lambda device: True  # type: ignore[assignment]
        assert operators.fits(x, x)
        assert not operators.fits(x.contiguous(), None)
        assert not operators.fits(x, x.contiguous())
        assert not operators.fits(x, x.bfloat16())
        assert not operators.fits(x.double(), None)
    finally:
        operators.usable = operators_usable


def test_a_plan_covers_every_row_whatever_the_shape():
    """Programs cover the rows once, join what they can hold, and do not grow with the groups."""
    for groups, rows, channels, itemsize, multiprocessors in [
        (8, 401408, 64, 2, 132),
        (1, 3211264, 64, 2, 132),
        (8, 1568, 2048, 2, 132),
        (128, 49, 512, 4, 108),
        (5, 1, 10, 4, 1),
        (1, 2, 1, 2, 148),
        (3, 999, 320, 2, 20),
    ]:
        problem = operators.Problem(groups, rows, channels, itemsize, multiprocessors)
        for kernel in operators.SHAPES:
            plan = problem.plan(kernel)
            assert (plan.chunks - 1) * plan.chunk < rows <= plan.chunks * plan.chunk
            assert plan.chunk % plan.tile.rows == 0
            assert plan.tiles * plan.tile.channels >= channels
            assert plan.tile.rows % operators.SHAPES[kernel].deep == 0
            if kernel in ("moments", "gradient_sums"):  # whose results are joined
                joined = operators.join_shape(groups, plan.chunks)
                assert joined[1] >= plan.chunks
                assert joined[0] * joined[1] <= operators.MAX_CHUNKS

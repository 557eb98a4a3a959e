"""BatchNorm of groups on CUDA by Triton kernels, as operators of torch.

`statistics` and `normalise`, one after the other, are the twin of `numba.normalise`. All groups are
in one launch. Passes over device memory, in tensors of the input's size:

- `statistics` (launches `moments`, `statistics`): reads the input.
- `normalise` (one launch): reads input and residual, writes the output.
- its backward (`gradient_sums`, `gradient_means`, `input_gradient`): reads gradient and input
  twice, writes the input's gradient. With residual and ReLU, the first pass also reads the output
  and writes the residual's gradient, which the second reads in place of the gradient.

`fork_gradient` adds the gradient of a strided residual to that of the block's input in one launch.

The second kernel of a pair joins the partial results of the first one's programs, a few hundred
kilobytes at most. ReLU's mask is recomputed from the input, or read from the output where a
residual was added.

An operator reads no value back, allocates through torch and chooses its launches from shapes and
the device alone, so that a CUDA graph can capture it. For torch.compile it is one node;
`batch_norm` calls the same launches directly where nothing is compiled. Importing this module
registers the operators under this package's own name; Triton is imported at the first call.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from ..augment.triton import on, unusable

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
THREADS = 32
"""Threads of a warp."""
VECTOR = 16
"""Bytes that a thread reads or writes at a time."""
MAX_CHUNKS = 512
"""Most parts of a group whose results one program joins: 32 registers a thread."""
JOINED = 16
"""Channels of a program that joins partial results."""
LOOP = 8
"""Most tiles of a program that normalises: its scales and means are read once for all."""
REDUCE_A_MULTIPROCESSOR = 3
"""Programs that reduce, for each multiprocessor: as many as run at once, so that none waits."""
NO_MASK, MASK_BY_INPUT, MASK_BY_OUTPUT = range(3)
"""How ReLU masks gradients: as in the Numba kernels."""

_NAMESPACE = (__package__ or "batch_norm").replace(".", "_")


@dataclass(frozen=True)
class Shape:
    """The work of one program: fixed, since measuring it at run time would synchronise."""

    warps: int
    deep: int
    """Vectors of a tile a thread: loads in flight, for each tensor."""


SHAPES = {
    "moments": Shape(8, 4),
    "normalise": Shape(4, 4),
    "gradient_sums": Shape(8, 2),
    "input_gradient": Shape(4, 4),
    "fork_gradient": Shape(4, 4),
}


@dataclass(frozen=True)
class Tile:
    """A tile of rows and channels, as the kernels' compile-time arguments."""

    rows: int
    channels: int
    even: bool
    """Whether the tiles divide the channels."""


def tile(kernel: str, channels: int, itemsize: int) -> Tile:
    """The tile of a kernel for C channels of `itemsize` bytes.

    A warp reads and writes 512 adjacent bytes wherever the channels are 256 or a tile has all.
    """
    width = next((width for width in (256, 128, 64) if channels % width == 0), 0)
    if not width:
        width = min(256, 1 << (channels - 1).bit_length())
    shape = SHAPES[kernel]
    elements = shape.warps * THREADS * shape.deep * VECTOR // itemsize
    return Tile(max(shape.deep, elements // width), width, channels % width == 0)


def options_of(kernel: str, even: bool = True) -> dict[str, Any]:
    """Compiler options of a kernel, for tiles that divide the channels or not."""
    options = {"num_warps": SHAPES[kernel].warps if kernel in SHAPES else 8}
    if kernel == "gradient_sums":
        options["maxnreg"] = 80 if even else 128  # three programs fit a multiprocessor, or two
    return options


@dataclass(frozen=True)
class Problem:
    """A tensor as the kernels see it: groups of rows of channels."""

    groups: int
    rows: int
    channels: int
    itemsize: int
    multiprocessors: int

    @classmethod
    def of(cls, x: torch.Tensor, groups: int) -> "Problem":
        """The problem of a tensor (N, C, H, W) of G groups."""
        rows = x.numel() // x.shape[1] // groups
        return cls(groups, rows, x.shape[1], x.element_size(), _multiprocessors(x.device))

    @functools.lru_cache(maxsize=4096)  # noqa: B019 a problem is a value: equal ones share a plan
    def plan(self, kernel: str) -> "Plan":
        """How the kernel's programs share the tensor."""
        of = tile(kernel, self.channels, self.itemsize)
        tiles = math.ceil(self.channels / of.channels)
        row_tiles = math.ceil(self.rows / of.rows)
        columns = self.groups * tiles
        if kernel in ("moments", "gradient_sums"):
            programs = self.multiprocessors * REDUCE_A_MULTIPROCESSOR
            chunks = min(MAX_CHUNKS, max(1, programs // columns))
        else:
            programs = 4 * self.multiprocessors * REDUCE_A_MULTIPROCESSOR
            chunks = max(math.ceil(row_tiles / LOOP), math.ceil(programs / columns))
        chunk = math.ceil(row_tiles / min(chunks, row_tiles)) * of.rows
        return Plan(of, tiles, chunk, math.ceil(self.rows / chunk))


@dataclass(frozen=True)
class Plan:
    """How a kernel's programs share a tensor."""

    tile: Tile
    tiles: int
    """Tiles of channels."""
    chunk: int
    """Rows of a program."""
    chunks: int
    """Programs a group and tile of channels."""


def join_shape(groups: int, chunks: int) -> tuple[int, int]:
    """Groups and chunks (powers of two) that a program joining partial results holds at once."""
    padded = 1 << (chunks - 1).bit_length()
    return min(1 << (groups - 1).bit_length(), max(1, MAX_CHUNKS // padded)), padded


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a device; 2 for the interpreter, which has none."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def usable(device: torch.device) -> bool:
    """Whether the kernels run on this device."""
    return unusable(device) is None


def fits(input: torch.Tensor, residual: torch.Tensor | None) -> bool:
    """Whether the operators support the tensors.

    They must be bfloat16, float16 or float32, of one dtype, channels-last, and on a CUDA device
    that Triton compiles for.
    """
    tensors = [tensor for tensor in (input, residual) if tensor is not None]
    return (
        _usable(input.device)
        and input.dtype in DTYPES
        and all(tensor.dtype == input.dtype for tensor in tensors)
        and all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in tensors)
    )


@torch.compiler.assume_constant_result
def _usable(device: torch.device) -> bool:
    return usable(device)


def _statistics(
    x: torch.Tensor,
    running_mean_C: torch.Tensor,
    running_var_C: torch.Tensor,
    batches: torch.Tensor | None,
    groups: int,
    momentum: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each group's mean and inverse deviation, (G, C) float32, of channels-last `x` (N, C, H, W).

    The inverse deviation is 1/√(biased variance + eps). The running statistics (C,) move to the
    mean of the groups' individual updates, and `batches`, an int64 scalar, by 1. There is no
    gradient: `normalise` accounts for it. A group must have at least 2 rows.
    """
    from . import triton_kernels as kernels

    problem = Problem.of(x, groups)
    plan = problem.plan("moments")
    partials = x.new_empty(2, groups, plan.chunks, problem.channels, dtype=torch.float32)
    mean_GC = x.new_empty(groups, problem.channels, dtype=torch.float32)
    inverse_GC = torch.empty_like(mean_GC)
    join_groups, join_chunks = join_shape(groups, plan.chunks)
    with on(x):
        kernels.moments[(groups * plan.chunks * plan.tiles,)](
            x, partials, groups, problem.rows, problem.channels,
            plan.chunk, plan.chunks, plan.tiles,
            TILE_ROWS=plan.tile.rows, TILE_CHANNELS=plan.tile.channels, EVEN=plan.tile.even,
            DEEP=SHAPES["moments"].deep, **options_of("moments"),
        )  # fmt: skip
        kernels.statistics[(math.ceil(problem.channels / JOINED),)](
            partials, mean_GC, inverse_GC, running_mean_C, running_var_C,
            partials if batches is None else batches,
            momentum, eps, groups, problem.rows, problem.channels, plan.chunk, plan.chunks,
            GROUPS=join_groups, CHUNKS=join_chunks, CHANNELS=JOINED, COUNTED=batches is not None,
            **options_of("statistics"),
        )  # fmt: skip
    return mean_GC, inverse_GC


statistics = torch.library.custom_op(
    f"{_NAMESPACE}::statistics",
    _statistics,
    mutates_args=("running_mean_C", "running_var_C", "batches"),
)


@statistics.register_fake
def _(x, running_mean_C, running_var_C, batches, groups, momentum, eps):  # type: ignore[no-untyped-def]
    shape = (groups, x.shape[1])
    return x.new_empty(shape, dtype=torch.float32), x.new_empty(shape, dtype=torch.float32)


def _normalise(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight_C: torch.Tensor,
    bias_C: torch.Tensor,
    mean_GC: torch.Tensor,
    inverse_GC: torch.Tensor,
    relu: bool,
) -> torch.Tensor:
    """Normalise channels-last `x` (N, C, H, W) by `statistics`, add `residual`, ReLU if `relu`.

    `weight_C`, `bias_C` (C,) float32; `residual` like `x`. Its gradient is that of BatchNorm in
    training: the statistics are those of `x`, and have no gradient themselves.
    """
    from . import triton_kernels as kernels

    problem = Problem.of(x, len(mean_GC))
    plan = problem.plan("normalise")
    out = torch.empty_like(x)
    with on(x):
        kernels.normalise[(problem.groups * plan.chunks * plan.tiles,)](
            x, x if residual is None else residual, weight_C, bias_C, mean_GC, inverse_GC, out,
            problem.rows, problem.channels, plan.chunk, plan.chunks, plan.tiles,
            HAS_RESIDUAL=residual is not None, RELU=relu,
            TILE_ROWS=plan.tile.rows, TILE_CHANNELS=plan.tile.channels, EVEN=plan.tile.even,
            **options_of("normalise"),
        )  # fmt: skip
    return out


normalise = torch.library.custom_op(f"{_NAMESPACE}::normalise", _normalise, mutates_args=())


@normalise.register_fake
def _(x, residual, weight_C, bias_C, mean_GC, inverse_GC, relu):  # type: ignore[no-untyped-def]
    return torch.empty_like(x)


def _gradients(
    gradient: torch.Tensor,
    x: torch.Tensor,
    output: torch.Tensor | None,
    weight_C: torch.Tensor,
    bias_C: torch.Tensor,
    mean_GC: torch.Tensor,
    inverse_GC: torch.Tensor,
    relu: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Backward of `normalise`: gradients of input, weight, bias and, with `output`, residual.

    `gradient`, `x` and `output` are channels-last, of one shape and dtype. `output` is the
    forward's where both a residual was added and ReLU applied. Otherwise the last tensor is empty:
    the residual's gradient is then `gradient`.
    """
    from . import triton_kernels as kernels

    mask = NO_MASK if not relu else MASK_BY_INPUT if output is None else MASK_BY_OUTPUT
    groups, channels = mean_GC.shape
    problem = Problem.of(x, groups)
    plan = problem.plan("gradient_sums")
    partials = x.new_empty(2, groups, plan.chunks, channels, dtype=torch.float32)
    shift_and_slope = x.new_empty(2, groups, channels, dtype=torch.float32)
    of_weight, of_bias = torch.empty_like(weight_C), torch.empty_like(bias_C)
    masked = x.new_empty(0) if output is None else torch.empty_like(x)
    out = torch.empty_like(x)
    join_groups, join_chunks = join_shape(groups, plan.chunks)
    known = (weight_C, bias_C, mean_GC, inverse_GC)
    with on(x):
        kernels.gradient_sums[(groups * plan.chunks * plan.tiles,)](
            gradient, x, x if output is None else output, x if output is None else masked,
            *known, partials, groups, problem.rows, channels, plan.chunk, plan.chunks, plan.tiles,
            MASK=mask,
            TILE_ROWS=plan.tile.rows, TILE_CHANNELS=plan.tile.channels, EVEN=plan.tile.even,
            DEEP=SHAPES["gradient_sums"].deep, **options_of("gradient_sums", plan.tile.even),
        )  # fmt: skip
        kernels.gradient_means[(math.ceil(channels / JOINED),)](
            partials, inverse_GC, *shift_and_slope, of_weight, of_bias,
            groups, problem.rows, channels, plan.chunks,
            GROUPS=join_groups, CHUNKS=join_chunks, CHANNELS=JOINED,
            **options_of("gradient_means"),
        )  # fmt: skip
        plan = problem.plan("input_gradient")
        kernels.input_gradient[(groups * plan.chunks * plan.tiles,)](
            gradient if output is None else masked, x, *known, *shift_and_slope, out,
            problem.rows, channels, plan.chunk, plan.chunks, plan.tiles,
            MASK=NO_MASK if mask == MASK_BY_OUTPUT else mask,
            TILE_ROWS=plan.tile.rows, TILE_CHANNELS=plan.tile.channels, EVEN=plan.tile.even,
            **options_of("input_gradient"),
        )  # fmt: skip
    return out, of_weight, of_bias, masked


gradients = torch.library.custom_op(f"{_NAMESPACE}::gradients", _gradients, mutates_args=())


@gradients.register_fake
def _(gradient, x, output, weight_C, bias_C, mean_GC, inverse_GC, relu):  # type: ignore[no-untyped-def]
    masked = x.new_empty(0) if output is None else torch.empty_like(x)
    return torch.empty_like(x), torch.empty_like(weight_C), torch.empty_like(bias_C), masked


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    """Save what the backward of `normalise` needs."""
    x, residual, weight_C, bias_C, mean_GC, inverse_GC, relu = inputs
    ctx.relu = relu
    ctx.has_residual = residual is not None
    kept = output if relu and residual is not None else None
    ctx.save_for_backward(x, kept, weight_C, bias_C, mean_GC, inverse_GC)


def _differentiate(
    call: Callable[..., Any], ctx: Any, gradient: torch.Tensor
) -> tuple[torch.Tensor | None, ...]:
    """The gradients of input, residual, weight and bias, of which `call` computes three."""
    x, kept, *known = ctx.saved_tensors
    gradient = gradient.to(x.dtype).contiguous(memory_format=torch.channels_last)
    of_input, of_weight, of_bias, masked = call(gradient, x, kept, *known, ctx.relu)
    of_residual = None
    if ctx.has_residual:
        of_residual = gradient if kept is None else masked
    return of_input, of_residual, of_weight, of_bias


def _backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """The gradients of the arguments of `normalise`."""
    return (*_differentiate(gradients, ctx, gradient), None, None, None)


normalise.register_autograd(_backward, setup_context=_keep)


def _fork_gradient(
    gradient: torch.Tensor, residual_gradient: torch.Tensor, stride: int
) -> torch.Tensor:
    """See `fork_gradient`."""
    from . import triton_kernels as kernels

    problem = Problem.of(gradient, 1)
    plan = problem.plan("fork_gradient")
    out = torch.empty_like(gradient)
    with on(gradient):
        kernels.fork_gradient[(plan.chunks * plan.tiles,)](
            gradient, residual_gradient, out, problem.rows, problem.channels,
            plan.chunk, plan.chunks, plan.tiles, *gradient.shape[2:],
            STRIDE=stride,
            TILE_ROWS=plan.tile.rows, TILE_CHANNELS=plan.tile.channels, EVEN=plan.tile.even,
            **options_of("fork_gradient"),
        )  # fmt: skip
    return out


fork_operator = torch.library.custom_op(
    f"{_NAMESPACE}::fork_gradient", _fork_gradient, mutates_args=()
)


@fork_operator.register_fake
def _(gradient, residual_gradient, stride):  # type: ignore[no-untyped-def]
    return torch.empty_like(gradient)


class _Fused(torch.autograd.Function):
    """Both operators without torch's dispatcher, which costs more than their launches."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        weight_C: torch.Tensor,
        bias_C: torch.Tensor,
        running: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None],
        settings: tuple[int, float, float],
        relu: bool,
    ) -> torch.Tensor:
        mean_GC, inverse_GC = _statistics(x, *running, *settings)
        arguments = (x, residual, weight_C, bias_C, mean_GC, inverse_GC, relu)
        output = _normalise(*arguments)
        _keep(ctx, arguments, output)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (*_differentiate(_gradients, ctx, gradient), None, None, None)


def batch_norm(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight_C: torch.Tensor,
    bias_C: torch.Tensor,
    running: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None],
    *,
    groups: int,
    momentum: float,
    eps: float,
    relu: bool,
) -> torch.Tensor:
    """Normalise channels-last `x` (N, C, H, W) by groups, add `residual`, ReLU if `relu`.

    `running`: mean and variance (C,) and the count of batches, which `statistics` moves. Nodes of a
    compiled graph, else launched without torch's dispatcher.
    """
    if visible():
        known = statistics(x.detach(), *running, groups, momentum, eps)
        return normalise(x, residual, weight_C, bias_C, *known, relu)
    return _Fused.apply(x, residual, weight_C, bias_C, running, (groups, momentum, eps), relu)


def fork_gradient(
    gradient: torch.Tensor, residual_gradient: torch.Tensor, stride: int
) -> torch.Tensor:
    """Add the gradients of `x` (N, C, H, W) and of `x[:, :, ::stride, ::stride]`.

    Both are channels-last, of one dtype.
    """
    call = fork_operator if visible() else _fork_gradient
    return call(gradient, residual_gradient, stride)


def visible() -> bool:
    """Whether torch must see the operators: in a graph that it compiles."""
    return torch.compiler.is_compiling()

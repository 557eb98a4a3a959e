"""BatchNorm per group or over all processes, followed by a residual sum and ReLU where a block asks
for them.

On CPUs the three are computed together by `kernels/batch_norm.py`; everywhere else, and for shapes
that those kernels do not take, by torch's own operators, which are the reference.

Shapes: N images or vectors, C channels, G groups, R rows (the group's images times their pixels).
"""

import ctypes
import functools
import pathlib
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import nn
from torch.autograd.function import once_differentiable
from torch.distributed.nn.functional import all_reduce
from torch.nn import functional
from torch.nn.modules._functions import SyncBatchNorm as SyncBatchNormFunction
from torch.nn.modules.batchnorm import _BatchNorm

from maskco_fast.kernels import batch_norm as kernels
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.methods.region_contrast import group_length
from maskco_fast.networks.collectives import rank_and_size

WORTH_A_THREAD = 1 << 16
"""Elements below which handing a part to another thread takes longer than computing it."""


class GroupBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm whose statistics are of `group_size` images, as on one GPU of the paper, whatever
    the batch.

    Groups are runs of consecutive images; a batch of no more than `group_size` is one group. In
    training each group is normalised by its own mean and variance. The running statistics move once
    a step, to the mean over the groups of what each group's own update would have made of them
    (MoCo's SplitBatchNorm): the expectation of one GPU's running statistics, with less noise. In
    eval mode it is ordinary BatchNorm. Parameters and buffers are `nn.BatchNorm2d`'s, so weights go
    in and out of torchvision's networks unchanged.

    In torch's operators slices along N keep the channels-last layout, so each group runs torch's
    own fused kernel, under autocast too; the price of more than one group is one copy to join the
    outputs.
    """

    def __init__(self, channels: int, *, group_size: int, **options: Any) -> None:
        super().__init__(channels, **options)
        self.group_size = group_size

    def forward(
        self, input: torch.Tensor, residual: torch.Tensor | None = None, *, relu: bool = False
    ) -> torch.Tensor:
        """(N, C, H, W) to the same, dtype and layout kept; `residual`, of that shape, is added;
        then ReLU, if asked.

        ValueError where N does not divide into groups.
        """
        if not self.training:
            return _finish(super().forward(input), residual, relu)
        length = group_length(len(input), self.group_size)
        if (
            length * input.shape[2] * input.shape[3] > 1
            and self._is_usual()
            and _fits(input, residual)
        ):
            return self._fused(input, residual, relu, length)
        if length == len(input):
            return _finish(super().forward(input), residual, relu)
        if self.momentum is None or self.running_mean is None or self.running_var is None:
            raise InvalidInput("GroupBatchNorm2d keeps running statistics by a momentum; give one")
        groups = input.split(length)
        means = self.running_mean.repeat(len(groups), 1)
        variances = self.running_var.repeat(len(groups), 1)
        normalised = [
            functional.batch_norm(
                group, mean, variance, self.weight, self.bias, True, self.momentum, self.eps
            )
            for group, mean, variance in zip(groups, means.unbind(), variances.unbind())
        ]
        with torch.no_grad():
            self.running_mean.copy_(means.mean(0))
            self.running_var.copy_(variances.mean(0))
            self._count_batch()
        return _finish(torch.cat(normalised), residual, relu)

    def _is_usual(self) -> bool:
        """Whether it scales in float32 and keeps running statistics by a momentum, as a ResNet's
        do."""
        usual = self.affine and self.momentum is not None and self.running_mean is not None
        return usual and self.weight.dtype == torch.float32

    def _fused(
        self, input: torch.Tensor, residual: torch.Tensor | None, relu: bool, length: int
    ) -> torch.Tensor:
        output, mean_GC, variance_GC = _Fused.apply(
            input, self.weight, self.bias, residual, relu, self.eps, length
        )
        with torch.no_grad():
            rows = length * input.shape[2] * input.shape[3]
            self.running_mean.lerp_(mean_GC.mean(0), self.momentum)  # type: ignore[union-attr, arg-type]
            unbiased_C = variance_GC.mean(0) * (rows / (rows - 1))
            self.running_var.lerp_(unbiased_C, self.momentum)  # type: ignore[union-attr, arg-type]
            self._count_batch()
        return output

    def _count_batch(self) -> None:
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


class SynchronizedBatchNorm(_BatchNorm):
    """BatchNorm with the statistics of all processes' images, for any number of dimensions and on
    CPUs too.

    On other devices it calls the kernels of torch's `SyncBatchNorm`, which refuses CPUs, as does
    `DistributedDataParallel` for a module that holds one. Every process holds equally many images.
    """

    def _check_input_dim(self, input: torch.Tensor) -> None:
        """Any."""

    def forward(
        self, input: torch.Tensor, residual: torch.Tensor | None = None, *, relu: bool = False
    ) -> torch.Tensor:
        """(N, C, …) to the same, dtype and layout kept; `residual`, of that shape, is added; then
        ReLU, if asked.

        ValueError in training without a momentum.
        """
        return _finish(self._normalise(input), residual, relu)

    def _normalise(self, input: torch.Tensor) -> torch.Tensor:
        _, size = rank_and_size()
        if not self.training or size == 1:
            return super().forward(input)
        if self.momentum is None or self.running_mean is None or self.running_var is None:
            raise InvalidInput(
                "SynchronizedBatchNorm keeps running statistics by a momentum; give one"
            )
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        if input.device.type != "cpu":
            statistics = self.running_mean, self.running_var, self.eps, self.momentum
            group = torch.distributed.group.WORLD
            return SyncBatchNormFunction.apply(
                input, self.weight, self.bias, *statistics, group, size
            )
        dimensions, shape = [0, *range(2, input.dim())], [1, -1, *[1] * (input.dim() - 2)]
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        mean_C = all_reduce(values.mean(dimensions)) / size
        centred = values - mean_C.view(shape)
        variance_C = all_reduce(centred.square().mean(dimensions)) / size
        with torch.no_grad():
            count = size * input.numel() // input.shape[1]
            self.running_mean.lerp_(mean_C, self.momentum)
            self.running_var.lerp_(variance_C * count / (count - 1), self.momentum)
        scale_C = self.weight * (variance_C + self.eps).rsqrt()
        return (centred * scale_C.view(shape) + self.bias.view(shape)).to(input.dtype)


def _finish(normalised: torch.Tensor, residual: torch.Tensor | None, relu: bool) -> torch.Tensor:
    """The residual sum and ReLU by torch's operators, in place."""
    if residual is not None:
        normalised += residual
    return functional.relu(normalised, inplace=True) if relu else normalised


def _fits(input: torch.Tensor, residual: torch.Tensor | None) -> bool:
    """Whether the kernels take these: CPU, float32 or bfloat16, channels-last, channels by the
    vector."""
    tensors = [one for one in (input, residual) if one is not None]
    return (
        input.device.type == "cpu"
        and input.dtype in (torch.float32, torch.bfloat16)
        and input.shape[1] % kernels.LANES == 0
        and all(one.dtype == input.dtype for one in tensors)
        and all(one.is_contiguous(memory_format=torch.channels_last) for one in tensors)
        and all(
            type(one) is torch.Tensor for one in tensors
        )  # not one without memory, as torch counts operations with
        and not torch.compiler.is_compiling()  # which fuses by itself
    )


class _Fused(torch.autograd.Function):
    """(output, means (G, C), biased variances (G, C)) of the groups of `length` images."""

    @staticmethod
    def forward(
        ctx: Any,
        input: torch.Tensor,
        weight_C: torch.Tensor,
        bias_C: torch.Tensor,
        residual: torch.Tensor | None,
        relu: bool,
        eps: float,
        length: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        output = torch.empty_like(input)
        channels, groups = input.shape[1], len(input) // length
        mean_GC, variance_GC = torch.empty(2, groups, channels, dtype=torch.float32)
        x = _flat(input)
        added = x[:0] if residual is None else _flat(residual)
        known = x, weight_C.numpy(), bias_C.numpy(), np.float32(eps)
        statistics = mean_GC.numpy().ravel(), variance_GC.numpy().ravel()
        kernels.normalise(*_threads(x), *known, added, relu, *statistics, _flat(output))
        ctx.relu, ctx.eps, ctx.adds = relu, eps, residual is not None
        # ReLU's mask follows from the input, unless a residual came in between.
        kept = output if relu and residual is not None else None
        ctx.save_for_backward(input, weight_C, bias_C, mean_GC, variance_GC, kept)
        ctx.mark_non_differentiable(mean_GC, variance_GC)
        return output, mean_GC, variance_GC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        input, weight_C, bias_C, mean_GC, variance_GC, kept = ctx.saved_tensors
        gradient = gradient.to(input.dtype).contiguous(memory_format=torch.channels_last)
        x, dy = _flat(input), _flat(gradient)
        mask, output = kernels.NO_MASK, x[:0]
        if ctx.relu and kept is None:
            mask = kernels.MASK_BY_INPUT
        elif ctx.relu:
            mask, output = kernels.MASK_BY_OUTPUT, _flat(kept)
        input_gradient = torch.empty_like(input)
        residual_gradient = gradient if kept is None else torch.empty_like(input)
        of_weight, of_bias = torch.zeros(2, len(weight_C), dtype=torch.float32)
        known = x, weight_C.numpy(), bias_C.numpy(), np.float32(ctx.eps)
        statistics = mean_GC.numpy().ravel(), variance_GC.numpy().ravel()
        written = (
            _flat(residual_gradient),
            of_weight.numpy(),
            of_bias.numpy(),
            _flat(input_gradient),
        )
        kernels.gradients(*_threads(x), dy, *known, *statistics, mask, output, *written)
        return (
            input_gradient,
            of_weight,
            of_bias,
            residual_gradient if ctx.adds else None,
            None,
            None,
            None,
        )


def fork(x: torch.Tensor, stride: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A block's input twice: for its convolutions, and for its residual, of which every `stride`-th
    pixel is wanted.

    The same as `x, x[:, :, ::stride, ::stride]`, whose gradients torch adds in more passes, over
    zeros among others.
    """
    if torch.is_grad_enabled() and _fits(x, None):
        return _Fork.apply(x, stride)
    return x, x[:, :, ::stride, ::stride]


class _Fork(torch.autograd.Function):
    """`fork`, whose gradients are added in one pass."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, stride: int) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.stride = stride
        return x.view_as(x), x[:, :, ::stride, ::stride]

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, gradient: torch.Tensor, of_residual: torch.Tensor
    ) -> tuple[torch.Tensor, None]:
        if ctx.stride > 1:
            total = gradient.clone(memory_format=torch.channels_last)
            total[:, :, :: ctx.stride, :: ctx.stride] += of_residual
            return total, None
        gradient, of_residual = (
            one.contiguous(memory_format=torch.channels_last) for one in (gradient, of_residual)
        )
        total = torch.empty_like(gradient)
        flat = _flat(gradient)
        kernels.add(*_threads(flat), flat, _flat(of_residual), _flat(total))
        return total, None


def _flat(tensor_NCHW: torch.Tensor) -> np.ndarray:
    """A channels-last tensor's memory as `kernels/batch_norm.py` takes it."""
    flat = tensor_NCHW.detach().permute(0, 2, 3, 1).view(-1)
    return (flat.view(torch.uint16) if flat.dtype == torch.bfloat16 else flat).numpy()


def _threads(x: np.ndarray) -> tuple[int, int]:
    """Where torch's threads are had, and the number of them to share an array: `parallel.in_parts`'
    first arguments."""
    entry = _openmp()
    return entry, min(torch.get_num_threads(), len(x) // WORTH_A_THREAD + 1) if entry else 1


@functools.cache
def _openmp() -> int:
    """The address of GOMP_parallel in the OpenMP runtime that torch computes with; 0 where there is
    none."""
    try:
        library = ctypes.CDLL(str(pathlib.Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value or 0
    except (OSError, AttributeError):
        return 0

"""BatchNorm modules: statistics per group or over all processes, fused with residual sum and ReLU.

This is the torch half; the arithmetic is in `kernels/batch_norm/`: Numba on CPUs, Triton on CUDA.
Other devices, and tensors that those kernels do not support, use torch's operators.

Shapes: N images or vectors, C channels, G groups, R rows (a group's images times their pixels).
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

from maskco_fast.kernels.batch_norm import numba as kernels
from maskco_fast.kernels.batch_norm import triton as operators
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.networks.collectives import rank_and_size
from maskco_fast.networks.config import group_length

WORTH_A_THREAD = 1 << 16
"""Minimum elements per thread: below this, starting another thread takes longer than computing."""


class GroupBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm with the statistics of `group_size` images, as on one of the paper's GPUs.

    Groups are runs of consecutive images; a batch of at most `group_size` images is one group. In
    training each group is normalised by its own mean and variance. The running statistics move once
    per step, to the mean of the groups' individual updates (MoCo's SplitBatchNorm): the expectation
    of one GPU's running statistics, with less noise. In eval mode it is ordinary BatchNorm.
    Parameters and buffers are `nn.BatchNorm2d`'s, so weights fit torchvision's networks.

    With `momentum` None the running statistics are the mean over all batches since their reset, as
    `torch.optim.swa_utils.update_bn` requires. A pass over a data set ends with a batch of any
    size, so a last group may then be shorter; it counts by its images.

    Without the kernels, each group runs torch's fused operator, under autocast too: slices along N
    keep the channels-last layout. More than one group costs one copy to join the outputs.
    """

    def __init__(self, channels: int, *, group_size: int, **options: Any) -> None:
        super().__init__(channels, **options)
        self.group_size = group_size

    def forward(
        self, input: torch.Tensor, residual: torch.Tensor | None = None, *, relu: bool = False
    ) -> torch.Tensor:
        """Normalise (N, C, H, W), add `residual` of the same shape, then apply ReLU if `relu`.

        Dtype and layout are kept. InvalidInput where N does not divide into groups, unless
        `momentum` is None.
        """
        if not self.training:
            return _finish(super().forward(input), residual, relu)
        if self.momentum is None:
            length = min(len(input), self.group_size)
        else:
            length = group_length(len(input), self.group_size)
        rows = length * input.shape[2] * input.shape[3]
        # With a single row the variance is undefined: torch's operator raises its error.
        if rows > 1 and len(input) % length == 0 and self._is_usual():
            if operators.fits(input, residual):
                return self._on_cuda(input, residual, relu, length)
            if _fits(input, residual):
                return self._fused(input, residual, relu, length)
        if length == len(input):
            return _finish(super().forward(input), residual, relu)
        if self.running_mean is None or self.running_var is None:
            raise InvalidInput(
                "GroupBatchNorm2d with several groups needs running statistics, got none: "
                "leave `track_running_stats` at its default."
            )
        # Each group updates its own copy of the running statistics; their mean is kept.
        groups = input.split(length)
        factor = averaging_factor(self)
        means = self.running_mean.repeat(len(groups), 1)
        variances = self.running_var.repeat(len(groups), 1)
        normalised = [
            functional.batch_norm(
                group, mean, variance, self.weight, self.bias, True, factor, self.eps
            )
            for group, mean, variance in zip(groups, means.unbind(), variances.unbind())
        ]
        last = len(groups[-1])
        with torch.no_grad():
            for running, own in ((self.running_mean, means), (self.running_var, variances)):
                if last == length:
                    running.copy_(own.mean(0))
                else:  # it counts by its images
                    rest = own[:-1].sum(0) * (length / len(input))
                    running.copy_(rest + own[-1] * (last / len(input)))
            self._count_batch()
        return _finish(torch.cat(normalised), residual, relu)

    def _is_usual(self) -> bool:
        """Whether scale and running statistics are a ResNet's, as the kernels require."""
        usual = self.affine and self.running_mean is not None
        return usual and self.weight.dtype == torch.float32

    def _on_cuda(
        self, input: torch.Tensor, residual: torch.Tensor | None, relu: bool, length: int
    ) -> torch.Tensor:
        """Run the CUDA kernels on groups of `length` images and update the running statistics."""
        assert self.running_mean is not None
        assert self.running_var is not None
        return operators.batch_norm(
            input,
            residual,
            self.weight,
            self.bias,
            (self.running_mean, self.running_var, self.num_batches_tracked),
            groups=len(input) // length,
            momentum=averaging_factor(self),
            eps=self.eps,
            relu=relu,
        )

    def _fused(
        self, input: torch.Tensor, residual: torch.Tensor | None, relu: bool, length: int
    ) -> torch.Tensor:
        """Run the CPU kernels on groups of `length` images and update the running statistics."""
        output, mean_GC, variance_GC = _Fused.apply(
            input, self.weight, self.bias, residual, relu, self.eps, length
        )
        rows = length * input.shape[2] * input.shape[3]
        factor = averaging_factor(self)
        with torch.no_grad():
            self.running_mean.lerp_(mean_GC.mean(0), factor)  # type: ignore[union-attr]
            # As in torch, the running variance is unbiased, while the batch's is not.
            unbiased_C = variance_GC.mean(0) * (rows / (rows - 1))
            self.running_var.lerp_(unbiased_C, factor)  # type: ignore[union-attr]
            self._count_batch()
        return output

    def _count_batch(self) -> None:
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


def averaging_factor(norm: _BatchNorm) -> float:
    """The weight of the next batch in the running statistics: `momentum`, or 1/k at batch k.

    The latter, with `momentum` None, makes them the mean over the batches, as in torch.
    """
    if norm.momentum is not None:
        return norm.momentum
    assert norm.num_batches_tracked is not None
    return 1 / (int(norm.num_batches_tracked) + 1)


class SynchronizedBatchNorm(_BatchNorm):
    """BatchNorm with the statistics of all processes' images, on CPUs too.

    torch's `SyncBatchNorm` rejects CPU tensors, and `DistributedDataParallel` rejects a CPU module
    that contains one. On other devices this class calls the same kernels as `SyncBatchNorm`. Inputs
    have any number of dimensions, and the processes any number of images and pixels.
    """

    def _check_input_dim(self, input: torch.Tensor) -> None:
        """Accept any number of dimensions."""

    def forward(
        self, input: torch.Tensor, residual: torch.Tensor | None = None, *, relu: bool = False
    ) -> torch.Tensor:
        """Normalise (N, C, …), add `residual` of the same shape, then apply ReLU if `relu`.

        Dtype and layout are kept. InvalidInput in training on several processes without running
        statistics.
        """
        return _finish(self._normalise(input), residual, relu)

    def _normalise(self, input: torch.Tensor) -> torch.Tensor:
        _, size = rank_and_size()
        if not self.training or size == 1:
            return super().forward(input)
        if self.running_mean is None or self.running_var is None:
            raise InvalidInput(
                "SynchronizedBatchNorm needs running statistics, got none: "
                "leave `track_running_stats` at its default."
            )
        factor = averaging_factor(self)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        if input.device.type != "cpu":
            return SyncBatchNormFunction.apply(
                input,
                self.weight,
                self.bias,
                self.running_mean,
                self.running_var,
                self.eps,
                factor,
                torch.distributed.group.WORLD,
                size,
            )
        dimensions = [0, *range(2, input.dim())]  # all but the channels
        shape = [1, -1, *[1] * (input.dim() - 2)]
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        with torch.no_grad():
            own = torch.tensor(input.numel() // input.shape[1], dtype=torch.float64)
            count = all_reduce(own)
            share = own / count  # of this process in all values
        mean_C = all_reduce(values.mean(dimensions) * share)
        centred = values - mean_C.view(shape)
        variance_C = all_reduce(centred.square().mean(dimensions) * share)
        with torch.no_grad():
            self.running_mean.lerp_(mean_C, factor)
            self.running_var.lerp_(variance_C * count / (count - 1), factor)
        scale_C = self.weight * (variance_C + self.eps).rsqrt()
        return (centred * scale_C.view(shape) + self.bias.view(shape)).to(input.dtype)


def _finish(normalised: torch.Tensor, residual: torch.Tensor | None, relu: bool) -> torch.Tensor:
    """Add the residual and apply ReLU with torch's operators, in place."""
    if residual is not None:
        normalised += residual
    return functional.relu(normalised, inplace=True) if relu else normalised


def _fits(input: torch.Tensor, residual: torch.Tensor | None) -> bool:
    """Whether the CPU kernels support the tensors.

    They must be float32 or bfloat16, of one dtype, channels-last, with a multiple of `LANES`
    channels.
    """
    tensors = [tensor for tensor in (input, residual) if tensor is not None]
    return (
        input.device.type == "cpu"
        and input.dtype in (torch.float32, torch.bfloat16)
        and input.shape[1] % kernels.LANES == 0
        and all(tensor.dtype == input.dtype for tensor in tensors)
        and all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in tensors)
        # Subclasses such as FakeTensor have no memory to compute on.
        and all(type(tensor) is torch.Tensor for tensor in tensors)
        # torch.compile cannot trace the kernels, and fuses the operators itself.
        and not torch.compiler.is_compiling()
    )


class _Fused(torch.autograd.Function):
    """BatchNorm, residual sum and ReLU of groups of `length` images, by the CPU kernels.

    Returns (output, means (G, C), biased variances (G, C)); the statistics have no gradient.
    """

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
        channels = input.shape[1]
        groups = len(input) // length
        mean_GC, variance_GC = torch.empty(2, groups, channels, dtype=torch.float32)
        x = _flat(input)
        kernels.normalise(
            *_threads(x),
            x,
            weight_C.numpy(),
            bias_C.numpy(),
            np.float32(eps),
            x[:0] if residual is None else _flat(residual),
            relu,
            mean_GC.numpy().ravel(),
            variance_GC.numpy().ravel(),
            _flat(output),
        )
        ctx.relu = relu
        ctx.eps = eps
        ctx.has_residual = residual is not None
        # The backward pass recomputes ReLU's mask from the input, unless a residual was added.
        kept = output if relu and residual is not None else None
        ctx.save_for_backward(input, weight_C, bias_C, mean_GC, variance_GC, kept)
        ctx.mark_non_differentiable(mean_GC, variance_GC)
        return output, mean_GC, variance_GC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        input, weight_C, bias_C, mean_GC, variance_GC, kept = ctx.saved_tensors
        gradient = gradient.to(input.dtype).contiguous(memory_format=torch.channels_last)
        x = _flat(input)
        mask = kernels.NO_MASK
        output = x[:0]
        if ctx.relu and kept is None:
            mask = kernels.MASK_BY_INPUT
        elif ctx.relu:
            mask = kernels.MASK_BY_OUTPUT
            output = _flat(kept)
        input_gradient = torch.empty_like(input)
        # Without a mask by the output, the residual's gradient is the incoming one.
        residual_gradient = gradient if kept is None else torch.empty_like(input)
        weight_gradient_C, bias_gradient_C = torch.zeros(2, len(weight_C), dtype=torch.float32)
        kernels.gradients(
            *_threads(x),
            _flat(gradient),
            x,
            weight_C.numpy(),
            bias_C.numpy(),
            np.float32(ctx.eps),
            mean_GC.numpy().ravel(),
            variance_GC.numpy().ravel(),
            mask,
            output,
            _flat(residual_gradient),
            weight_gradient_C.numpy(),
            bias_gradient_C.numpy(),
            _flat(input_gradient),
        )
        return (
            input_gradient,
            weight_gradient_C,
            bias_gradient_C,
            residual_gradient if ctx.has_residual else None,
            None,
            None,
            None,
        )


def fork(x: torch.Tensor, stride: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a block's input (N, C, H, W) and the residual: every `stride`-th of its pixels.

    Equals `x, x[:, :, ::stride, ::stride]`. torch adds the gradients of those two in more passes,
    one of them over a tensor of mostly zeros; here it is one pass. On CUDA only where the stride is
    above 1: torch's sum of two whole gradients is one pass there.
    """
    if sums_forks(x) and (stride > 1 or x.device.type == "cpu"):
        return _Fork.apply(x, stride)
    return x, x[:, :, ::stride, ::stride]


def sums_forks(x: torch.Tensor) -> bool:
    """Whether `fork` sums the gradients of this tensor by a kernel."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False  # Inductor fuses the sum itself
    return operators.fits(x, None) or _fits(x, None)


class _Fork(torch.autograd.Function):
    """`fork` with the sum of both gradients in one pass."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, stride: int) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.stride = stride
        residual = x[:, :, ::stride, ::stride]
        if operators.fits(x, None):
            # Copied once: a convolution would copy it in the forward pass and in the backward.
            residual = residual.contiguous(memory_format=torch.channels_last)
        return x.view_as(x), residual

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, gradient: torch.Tensor, residual_gradient: torch.Tensor
    ) -> tuple[torch.Tensor, None]:
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        residual_gradient = residual_gradient.contiguous(memory_format=torch.channels_last)
        if operators.fits(gradient, None):
            return operators.fork_gradient(gradient, residual_gradient, ctx.stride), None
        if ctx.stride > 1:
            total = gradient.clone()
            total[:, :, :: ctx.stride, :: ctx.stride] += residual_gradient
            return total, None
        total = torch.empty_like(gradient)
        flat = _flat(gradient)
        kernels.add(*_threads(flat), flat, _flat(residual_gradient), _flat(total))
        return total, None


def _flat(tensor_NCHW: torch.Tensor) -> np.ndarray:
    """View a channels-last tensor's memory as the flat array that the kernels take.

    float32 stays; bfloat16 becomes its uint16 bits.
    """
    flat = tensor_NCHW.detach().permute(0, 2, 3, 1).view(-1)
    return (flat.view(torch.uint16) if flat.dtype == torch.bfloat16 else flat).numpy()


def _threads(x: np.ndarray) -> tuple[int, int]:
    """Return the kernels' first arguments: address of GOMP_parallel, number of threads for `x`."""
    entry = _openmp()
    if not entry:
        return 0, 1
    return entry, min(torch.get_num_threads(), len(x) // WORTH_A_THREAD + 1)


@functools.cache
def _openmp() -> int:
    """Return the address of GOMP_parallel in torch's OpenMP runtime, or 0 if it has none.

    Sharing torch's thread pool avoids a second pool that would compete for the cores.
    """
    try:
        library = ctypes.CDLL(str(pathlib.Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value or 0
    except (OSError, AttributeError):
        return 0

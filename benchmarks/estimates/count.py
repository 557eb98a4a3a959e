"""Launches, bytes and graph nodes of a training step, with BatchNorm by torch and by Triton.

    python -m benchmarks.estimates.count

Without a GPU: the step runs on meta tensors, which have shapes only. Each operator of torch counts
with the bytes of its inputs and outputs, and with the launches and passes that it takes on CUDA
(`LAUNCHES`, `PASSES`). Graph nodes are those of `benchmarks.estimates.graph`.
"""

import contextlib
import dataclasses
import math
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from unittest import mock

import torch
import tyro
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from benchmarks.estimates import graph
from benchmarks.gpu.step import Options as StepOptions
from benchmarks.gpu.step import noise
from maskco_fast.kernels.batch_norm import triton as operators
from maskco_fast.methods.base import Method
from maskco_fast.methods.registry import make_method
from maskco_fast.networks.config import ModelConfig
from maskco_fast.training.recipes import RECIPES

Implementation = Literal["torch", "triton"]
IMPLEMENTATIONS: tuple[Implementation, ...] = ("torch", "triton")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Count a training step of MaskCo in bf16."""

    trunk: Literal["resnet18", "resnet50"] = "resnet50"
    """The network."""
    batch: int = 256
    """Images a step."""
    group: int = 32
    """Images that share BatchNorm."""
    size: int = 224
    """Side of the views, pixels."""
    nodes: bool = True
    """Also count the nodes of the compiled graph, with two 32-pixel images a group: minutes."""


FREE = re.compile(
    "_?(unsafe_)?view|t|detach|alias|as_strided|lift_fresh|promote_types|(new_)?empty(_like|_strided)?"
    "|reshape|permute|transpose|slice|select|expand|(un)?squeeze|split(_with_sizes)?|unbind|unfold"
)
"""Operators without a launch: views of a tensor, and memory that is not written."""
LAUNCHES = {
    "native_batch_norm": 4,  # mean and variance in two, inverse deviation and running ones, output
    "native_batch_norm_backward": 3,  # sums in two, the input's gradient
    "convolution_backward": 2,  # gradients of input and weights
    "slice_backward": 2,  # zeros, then a copy
    "statistics": 2,
    "gradients": 3,
}
"""Launches of an operator on CUDA, where not 1."""
PASSES = {
    "native_batch_norm": 3,
    "native_batch_norm_backward": 5,
    "gradients": 5,
    "gradients of a residual": 7,
}
"""Input-sized tensors read or written by operators that read some of them twice."""
PARTS = {
    "convolutions and products": "convolution convolution_backward mm addmm bmm",
    "BatchNorm, sums, ReLU": "native_batch_norm native_batch_norm_backward cat relu relu_ add_ add "
    "threshold_backward slice_backward repeat statistics normalise gradients fork_gradient",
    "optimiser, moving average": "_fused_sgd_ _foreach_lerp_",
}
"""Part of the step to its operators; any other is in "the rest"."""
PART_OF = {name: part for part, names in PARTS.items() for name in names.split()}


@dataclass
class Counts:
    """What the operators of a step need."""

    launches: Counter[str] = field(default_factory=Counter)
    """Part of the step to launches."""
    bytes: Counter[str] = field(default_factory=Counter)
    """Part of the step to bytes read and written."""
    operators: Counter[str] = field(default_factory=Counter)
    """Calls of each operator."""


class Record(TorchDispatchMode):
    """Counts operators as they are called."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name.startswith("convolution"):  # on CUDA it keeps the layout
            result = tree_map_only(torch.Tensor, _channels_last, result)
        if not FREE.fullmatch(name):
            part = PART_OF.get(name, "the rest")
            self.counts.operators[name] += 1
            launches = LAUNCHES.get(name, 1)
            if name == "_foreach_lerp_":
                launches = _foreach_launches(args[0], 2)
            self.counts.launches[part] += launches
            self.counts.bytes[part] += _bytes(name, args, kwargs, result)
        return result


def _bytes(name: str, args: Any, kwargs: Any, result: Any) -> int:
    """Bytes that an operator reads and writes."""
    if name == "gradients" and args[2] is not None:
        name = "gradients of a residual"  # it also reads the output, and writes a gradient
    if name in PASSES:
        return PASSES[name] * args[0].nbytes
    if name == "convolution_backward":
        *_, (of_input, of_weight, _) = args
        return (of_input + of_weight) * _nbytes(args[:3])  # each reads two and writes the third
    if name in ("copy_", "fill_", "zero_"):
        return _nbytes((args, kwargs))  # the source is read, the target written
    return _nbytes((args, kwargs)) + _nbytes(args[0] if name.endswith("_") else result)


def _nbytes(values: Any) -> int:
    """Bytes of the tensors in nested tuples, lists and dictionaries."""
    return sum(leaf.nbytes for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor))


def _channels_last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


class Autocast(TorchFunctionMode):
    """Casts as autocast does in this network: meta tensors have no autocast of their own."""

    def __init__(self) -> None:
        super().__init__()
        self._cast: dict[int, torch.Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.conv2d, functional.conv2d, functional.linear):
            args = [self._lowered(arg) for arg in args]
        return func(*args, **(kwargs or {}))

    def _lowered(self, arg: Any) -> Any:
        if not isinstance(arg, torch.Tensor) or arg.dtype != torch.float32:
            return arg
        if not arg.is_leaf or not arg.requires_grad:
            return arg.to(torch.bfloat16)
        if id(arg) not in self._cast:  # a weight is cast once a step
            self._cast[id(arg)] = arg.to(torch.bfloat16)
        return self._cast[id(arg)]


class NoKernels:
    """Stands in for the kernels' module: launches nothing."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *args, **kwargs: None


@contextlib.contextmanager
def batch_norm_by(implementation: Implementation) -> Iterator[None]:
    """Let the network run on tensors without a device, with one of the two implementations."""
    package = operators.__name__.rpartition(".")[0]
    no_kernels: Any = NoKernels()
    usable = mock.Mock(return_value=implementation == "triton")
    no_autocast = mock.Mock(side_effect=lambda *_, **__: contextlib.nullcontext())
    with (
        mock.patch.object(operators, "usable", usable),
        mock.patch.object(operators, "visible", return_value=True),
        mock.patch.object(sys.modules[package], "triton_kernels", no_kernels, create=True),
        mock.patch("torch.autocast", no_autocast),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def make_method_on_meta(options: Options) -> Method:
    """MaskCo with the paper's settings, without memory."""
    config = RECIPES["paper"]("maskco")
    model = ModelConfig(trunk=options.trunk, view_size=options.size, group_size=options.group)
    method = make_method("maskco", config.method_config, model, seed=0)
    return method.to(device="meta", memory_format=torch.channels_last).train()  # type: ignore[call-overload]


def _foreach_launches(tensors: Sequence[torch.Tensor], lists: int) -> int:
    """Launches of an operator on `lists` lists of tensors: torch's limits of tensors and blocks."""
    most = {2: 64, 3: 48}[lists]
    blocks = sum(math.ceil(tensor.numel() / 65536) for tensor in tensors)
    return math.ceil(len(tensors) / most) + blocks // 320


def count_step(options: Options, implementation: Implementation) -> Counts:
    """Count one step: forward, backward, optimiser and moving average."""
    method = make_method_on_meta(options)
    shapes = StepOptions(device="meta", batch=options.batch, size=options.size)
    batch = noise(shapes, torch.bfloat16)
    with batch_norm_by(implementation), Record() as record:
        with Autocast():
            loss = method(batch)["loss"]
        loss.backward()
        method.after_step(0.5)
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    # Fused SGD, which refuses meta tensors: reads parameter, gradient and momentum, writes two.
    part = PART_OF["_fused_sgd_"]
    record.counts.launches[part] += _foreach_launches(trained, 3)
    record.counts.bytes[part] += 5 * sum(parameter.nbytes for parameter in trained)
    missing = [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]
    if missing:
        raise RuntimeError(f"The backward pass did not reach {missing}.")
    return record.counts


def count_nodes(options: Options, implementation: Implementation) -> int:
    """Count the nodes of the compiled step."""
    groups = max(1, options.batch // options.group)
    method, batch = graph.problem(graph.Options(trunk=options.trunk, groups=groups))
    with batch_norm_by(implementation):
        return graph.count(method, batch).nodes


def main(options: Options) -> int:
    """Print the table."""
    counts = [count_step(options, implementation) for implementation in IMPLEMENTATIONS]
    print(f"{dataclasses.asdict(options)}\n")
    print("| part | launches, torch | launches, Triton | GB, torch | GB, Triton |")
    print("|---|---|---|---|---|")
    for part in [*PARTS, "the rest"]:
        cells = [f"{one.launches[part]:,}" for one in counts]
        cells += [f"{one.bytes[part] / 1e9:.1f}" for one in counts]
        print(f"| {part} | " + " | ".join(cells) + " |")
    cells = [f"{one.launches.total():,}" for one in counts]
    cells += [f"{one.bytes.total() / 1e9:.1f}" for one in counts]
    print("| all | " + " | ".join(cells) + " |")
    if options.nodes:
        nodes = [count_nodes(options, implementation) for implementation in IMPLEMENTATIONS]
        print(f"\nnodes of the compiled step: {nodes[0]:,} with torch, {nodes[1]:,} with Triton")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))

"""The size of a compiled step: the operators that torch.compile hands to its backend.

    python -m benchmarks.estimates.graph

Compilation time and the number of launches grow with it. Groups count, sizes do not: the step is
traced on the CPU with small images. Nothing is compiled, so no compiler is needed.
"""

import collections
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch._dynamo
import tyro
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

from benchmarks.gpu.step import Options as StepOptions
from benchmarks.gpu.step import noise
from maskco_fast.loaders import Batch
from maskco_fast.methods.base import Method
from maskco_fast.methods.registry import make_method
from maskco_fast.networks.config import ModelConfig
from maskco_fast.training.recipes import RECIPES


@dataclass(frozen=True, kw_only=True)
class Options:
    """Count the operators of a compiled step."""

    method: str = "maskco"
    """The method, with the paper's settings."""
    trunk: Literal["resnet18", "resnet50"] = "resnet50"
    """The network."""
    groups: int = 8
    """BatchNorm groups of a step (the paper's recipe: 256 images in groups of 32)."""
    size: int = 32
    """Side of the views, pixels."""


@dataclass
class Counts:
    """Operators of the forward and backward graphs; views and constants count too."""

    forward: collections.Counter[str] = field(default_factory=collections.Counter)
    backward: collections.Counter[str] = field(default_factory=collections.Counter)
    graphs: int = 0
    """Forward graphs; more than one means that the method breaks the graph."""

    @property
    def nodes(self) -> int:
        """Operators in all."""
        return self.forward.total() + self.backward.total()


def count(method: Method, batch: Batch) -> Counts:
    """Trace one step of the method, forward and backward."""
    counts = Counts()

    def into(counter: collections.Counter[str], graphs: int) -> Callable[..., Any]:
        def compiler(module: torch.fx.GraphModule, _: Any) -> Any:
            counts.graphs += graphs
            nodes = (node for node in module.graph.nodes if node.op == "call_function")
            counter.update(str(node.target) for node in nodes)
            return make_boxed_func(module.forward)

        return compiler

    backend = aot_autograd(
        fw_compiler=into(counts.forward, 1), bw_compiler=into(counts.backward, 0)
    )
    torch._dynamo.reset()
    torch.compile(method, backend=backend)(batch)["loss"].backward()
    torch._dynamo.reset()
    return counts


def problem(options: Options) -> tuple[Method, Batch]:
    """The method and a batch with two images a group."""
    config = RECIPES["paper"](options.method)
    model = ModelConfig(trunk=options.trunk, view_size=options.size, group_size=2)
    method = make_method(options.method, config.method_config, model, seed=0)
    method.prepare(64)
    shapes = StepOptions(device="cpu", batch=2 * options.groups, size=options.size)
    method = method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return method.train(), noise(shapes, torch.float32)


def main(options: Options) -> int:
    """Print the counts."""
    counts = count(*problem(options))
    print(
        f"{options.method}, {options.trunk}, {options.groups} groups: {counts.nodes} nodes "
        f"({counts.forward.total()} forward, {counts.backward.total()} backward) in "
        f"{counts.graphs} graphs"
    )
    for name, number in (counts.forward + counts.backward).most_common(20):
        print(f"{number:8} {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))

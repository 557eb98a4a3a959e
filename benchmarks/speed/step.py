"""Time of a MaskCo training step on a CPU by stage: ours beside the same model written plainly.

    python -m benchmarks.speed.step [--trunk resnet50] [--size 224] [--batch-size 32] [--compiled]

Plain: float32, NCHW, torchvision's RoIAlign over lists of boxes, an optimiser and a moving average
that loop over the parameters. Ours: `Trainer`'s step in a process set up as `train` does:
channels-last, autocast, fused BatchNorm, RoIAlign as a matrix product, fused updates, freed memory
kept. Both start from the same weights and see the same batch. Nothing is timed unless the plain
model's loss equals ours in float32, and ours in the timed precision is near it. Each side has a
process of its own; a round is a step of each, after one that is not counted. Stages are medians
over the rounds, taken at module boundaries.

The floor is the step's multiplications at the speed of a large matrix product in the step's
precision on these threads.
"""

import contextlib
import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import torch
import torchvision
import tyro
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from maskco_fast.bench.harness import RowProcess, Spread, machine, ratio_by_round, run_rounds
from maskco_fast.errors import say
from maskco_fast.loaders import Batch, Quarantine
from maskco_fast.methods.base import Method
from maskco_fast.methods.maskco import MaskCo
from maskco_fast.methods.registry import make_method
from maskco_fast.networks.config import ModelConfig
from maskco_fast.training.config import TrainConfig
from maskco_fast.training.devices import (
    DTYPES,
    Precision,
    autocast,
    choose_precision,
    keep_freed_memory,
)
from maskco_fast.training.trainer import Fetched, Trainer

STAGES = (
    "query forward",
    "key forward",
    "RoIAlign",
    "heads",
    "loss",
    "backward",
    "optimizer",
    "EMA",
    "other",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Time the training step."""

    trunk: Literal["resnet18", "resnet50"] = "resnet50"
    size: int = 224
    """Side of a view, pixels."""
    batch_size: int = 32
    """Images a step, in one group: the paper's batch a GPU."""
    rounds: int = 5
    """Steps timed of each side."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of our side, as `train --precision`."""
    plain_keeps_memory: bool = False
    """Let the plain side's process keep freed memory too, which a plain program does not."""
    product_side: int = 3072
    """Side of the matrix product that the floor is taken from."""
    compiled: bool = False
    """Add a third side, ours through torch.compile (minutes to compile)."""


class Clock:
    """Seconds by stage: each mark adds the time since the last one to a stage."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Set every stage to zero."""
        self.seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self._last = time.perf_counter()

    def mark(self, stage: str) -> None:
        """Add the time since the last mark to `stage`."""
        now = time.perf_counter()
        self.seconds[stage] += now - self._last
        self._last = now

    def watch(self, network: Any, forward: str) -> None:
        """Mark the stages of a region encoder's forward pass: `forward` up to the feature map,
        RoIAlign, the head."""
        network.register_forward_pre_hook(lambda *_: self.mark("other"))
        network.mph.register_forward_hook(lambda *_: self.mark(forward))
        network.projection.register_forward_pre_hook(lambda *_: self.mark("RoIAlign"))
        network.projection.register_forward_hook(lambda *_: self.mark("heads"))


class OneBatch:
    """A loader whose epochs are one batch, always the same."""

    epoch = 0

    def __init__(self, batch: Batch) -> None:
        self.quarantine = Quarantine()
        self.batch = batch

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Batch]:
        yield self.batch

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Nothing to load: every epoch is the same."""

    def interrupt(self) -> None:
        """Nothing to interrupt: it never waits."""


class Ours:
    """`Trainer`'s own step, with marks at the boundaries of its stages."""

    def __init__(self, config: TrainConfig, batch: Batch) -> None:
        self.clock = Clock()
        self.batch = batch
        self.trainer = Trainer(config, initial_method(config), OneBatch(batch))
        self.method = self.trainer.method
        assert isinstance(self.method, MaskCo)
        if not config.compile:  # compiled code has no module boundaries
            self.clock.watch(self.method.query, "query forward")
            self.clock.watch(self.method.key, "key forward")
        self.method.register_forward_hook(lambda *_: self.clock.mark("loss"))
        self.trainer.optimizer.register_step_pre_hook(lambda *_: self.clock.mark("backward"))
        self.trainer.optimizer.register_step_post_hook(lambda *_: self.clock.mark("optimizer"))
        after_step = self.method.after_step

        def marked_after_step(progress: float) -> None:
            after_step(progress)
            self.clock.mark("EMA")

        self.method.after_step = marked_after_step  # type: ignore[method-assign]
        self._batches = self.trainer._batches()

    def loss(self) -> float:
        """The batch's loss with the current weights."""
        with (
            torch.no_grad(),
            autocast(self.trainer.device, self.trainer.precision),
        ):
            return self.method(self.batch)["loss"].item()

    def step(self) -> dict[str, float]:
        """Make one step and return the seconds of its stages."""
        self.clock.start()
        self.trainer._one_step(Fetched(next(self._batches), epoch=0))
        self.clock.mark("other")
        return self.clock.seconds


class PlainEncoder(nn.Module):
    """The same layers with torch's own BatchNorm and torchvision's RoIAlign."""

    def __init__(self, trunk: str, features: int, mph_blocks: int) -> None:
        super().__init__()
        network = getattr(torchvision.models, trunk)()
        channels = network.fc.in_features
        self.trunk = nn.Sequential(*list(network.children())[:-2])
        block = torchvision.models.resnet.Bottleneck
        self.mph = nn.Sequential(*[block(channels, channels // 4) for _ in range(mph_blocks)])
        self.projection = nn.Sequential(
            nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, features)
        )

    def forward(self, images: torch.Tensor, boxes: list[torch.Tensor]) -> torch.Tensor:
        """(total boxes, D) features."""
        regions = torchvision.ops.roi_align(
            self.mph(self.trunk(images)), boxes, 1, 1 / 32, -1, True
        )
        return self.projection(regions.flatten(1))


class Plain:
    """MaskCo's step (paper, Algorithm 1) in plain PyTorch."""

    def __init__(self, config: TrainConfig, ours: Method, batch: Batch) -> None:
        assert isinstance(ours, MaskCo)
        self.clock = Clock()
        self.config = config
        self.batch = batch._map(lambda tensor: tensor.contiguous())
        self.query, self.key = (
            PlainEncoder(
                config.model.trunk, config.model.features, config.maskco.mph_blocks
            ).train()
            for _ in range(2)
        )
        for mine, theirs in ((self.query, ours.query), (self.key, ours.key)):
            for parameter, value in zip(mine.parameters(), theirs.parameters(), strict=True):
                parameter.data = value.detach().clone(memory_format=torch.contiguous_format)
        self.clock.watch(self.query, "query forward")
        self.clock.watch(self.key, "key forward")
        self.optimizer = torch.optim.SGD(
            self.query.parameters(),
            lr=config.optimizer.learning_rate * config.batch_size / 256,
            momentum=config.optimizer.momentum,
            weight_decay=config.optimizer.weight_decay,
            foreach=False,
        )

    def _loss(self) -> torch.Tensor:
        batch = self.batch
        count = len(batch)
        assert batch.masked_box is not None
        assert batch.key_boxes is not None
        queries = functional.normalize(
            self.query(batch.query, list(batch.masked_box.unsqueeze(1))), dim=1
        )
        with torch.no_grad():
            keys = self.key(batch.key, list(batch.key_boxes)).view(
                count, batch.key_boxes.shape[1], -1
            )
            keys = functional.normalize(keys, dim=2)
        logits = []
        for image in range(count):
            others = torch.cat([keys[other, 1:] for other in range(count) if other != image])
            logits.append(
                torch.cat([keys[image, :1], others])
                @ queries[image]
                / self.config.maskco.temperature
            )
        return functional.cross_entropy(torch.stack(logits), torch.zeros(count, dtype=torch.int64))

    def loss(self) -> float:
        """The batch's loss with the current weights."""
        with torch.no_grad():
            return self._loss().item()

    def step(self) -> dict[str, float]:
        """Make one step and return the seconds of its stages."""
        self.clock.start()
        loss = self._loss()
        self.clock.mark("loss")
        self.optimizer.zero_grad()
        loss.backward()
        self.clock.mark("backward")
        self.optimizer.step()
        self.clock.mark("optimizer")
        for key, query in zip(self.key.parameters(), self.query.parameters()):
            key.data = key.data * self.config.maskco.momentum + query.data * (
                1 - self.config.maskco.momentum
            )
        self.clock.mark("EMA")
        loss.item()
        self.clock.mark("other")
        return self.clock.seconds


def initial_method(config: TrainConfig) -> Method:
    """The method of the configuration with its initial weights, the same for every side."""
    return make_method(config.method, config.method_config, config.model, seed=config.seed)


def random_batch(options: Options, dtype: torch.dtype) -> Batch:
    """A batch of noise, channels-last as the loaders yield it, with boxes of MaskCo's sizes."""
    generator = torch.Generator().manual_seed(0)
    count, size = options.batch_size, options.size
    views = [torch.randn(count, 3, size, size, generator=generator) for _ in range(2)]
    sides = (32 + 96 * torch.rand(count, 18, 2, generator=generator)) * size / 224
    corners = torch.rand(count, 18, 2, generator=generator) * (size - sides)
    boxes = torch.cat((corners, corners + sides), 2)
    return Batch(
        views=tuple(view.to(dtype).contiguous(memory_format=torch.channels_last) for view in views),
        sample_id=torch.arange(count),
        target=torch.full((count,), -1),
        index=torch.arange(count),
        masked_box=boxes[:, 0].contiguous(),
        key_boxes=boxes[:, 1:].contiguous(),
    )


def check(name: str, loss: float, expected: float, tolerance: float) -> None:
    """Raise SystemExit where a side computes another loss: its speed would mean nothing."""
    if abs(loss - expected) > tolerance * expected:
        raise SystemExit(
            f"{name}: the loss is {loss:.6f}, the plain model's is {expected:.6f}; "
            "they must agree before anything is timed"
        )
    say(
        f"loss of {name}: {loss:.5f}, of the plain model: {expected:.5f}; "
        f"at most {tolerance:.2%} apart"
    )


def floor(step: Callable[[], object], dtype: torch.dtype, side: int) -> tuple[float, float]:
    """The step's floating-point operations, and the operations a second of a matrix product of
    `side` rows and columns."""
    with FlopCounterMode(display=False) as counter:
        step()
    a, b = torch.randn(side, side).to(dtype), torch.randn(side, side).to(dtype)
    times = []
    for _ in range(6):
        began = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - began)
    return counter.get_total_flops(), 2 * side**3 / min(times)


class Side:
    """One side of the comparison, in its own process."""

    def __init__(self, name: str, options: Options, precision: Precision) -> None:
        if name != "plain" or options.plain_keeps_memory:
            keep_freed_memory()
        self._folder = tempfile.TemporaryDirectory()
        config = TrainConfig(
            run_dir=pathlib.Path(self._folder.name),
            batch_size=options.batch_size,
            device="cpu",
            precision=precision,
            compile=name == "compiled",
            tensorboard=False,
            model=ModelConfig(
                trunk=options.trunk, view_size=options.size, group_size=options.batch_size
            ),
        )
        self._dtype = DTYPES[precision]
        self._product_side = options.product_side
        batch = random_batch(options, self._dtype)
        self._step: Ours | Plain = (
            Plain(config, initial_method(config), batch) if name == "plain" else Ours(config, batch)
        )

    def loss(self) -> float:
        """The batch's loss with the current weights."""
        return self._step.loss()

    def step(self) -> dict[str, float]:
        """Seconds of a step's stages."""
        return self._step.step()

    def floor(self) -> tuple[float, float]:
        """See `floor`."""
        return floor(self._step.step, self._dtype, self._product_side)

    def close(self) -> None:
        """Remove the run folder."""
        self._folder.cleanup()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures:
    """What was measured."""

    precision: str
    threads: int
    rounds: dict[str, list[dict[str, float]]]
    """Seconds by stage of each round, by side."""
    operations: float
    """Floating-point operations of our step."""
    product_per_s: float
    """Operations a second of a large matrix product."""

    def totals(self, side: str) -> list[float]:
        """Seconds of the whole step, by round."""
        return [sum(stages.values()) for stages in self.rounds[side]]

    def stage(self, side: str, stage: str) -> float:
        """Median seconds of a stage."""
        return Spread.of(stages[stage] for stages in self.rounds[side]).median


def measure(options: Options) -> Figures:
    """Check that the sides compute one loss, and time them."""
    precision = choose_precision(options.precision, torch.device("cpu"))

    def open_side(name: str, precision: Precision) -> RowProcess:
        return RowProcess(name, partial(Side, name, options, precision))

    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(open_side("plain", "fp32"))
        expected = plain.ask("loss")
        if precision != "fp32":
            with open_side("ours", "fp32") as exact:
                check("ours in fp32", exact.ask("loss"), expected, 1e-4)
        ours = stack.enter_context(open_side("ours", precision))
        tolerance = 1e-4 if precision == "fp32" else 0.01
        check(f"ours in {precision}", ours.ask("loss"), expected, tolerance)
        sides = [plain, ours]
        if options.compiled:
            sides.append(stack.enter_context(open_side("compiled", precision)))
        operations, product_per_s = ours.ask("floor")
        rounds = run_rounds(
            sides,
            options.rounds + 1,
            lambda side: side.ask("step"),
            lambda number, _: say(f"step {number} of {options.rounds + 1}"),
        )
        for side in sides:
            if side.error is not None:
                raise side.error
    return Figures(
        precision=precision,
        threads=torch.get_num_threads(),
        rounds={name: steps[1:] for name, steps in rounds.items()},  # the first warms up
        operations=operations,
        product_per_s=product_per_s,
    )


def main(options: Options) -> None:
    """Check, time, print."""
    figures = measure(options)
    report(options, figures)
    ours = Spread.of(figures.totals("ours")).median
    least = figures.operations / figures.product_per_s
    print(
        f"\nours: {figures.operations / 1e9:.0f} GFLOP a step at "
        f"{figures.operations / ours / 1e12:.2f} TFLOP/s; a matrix product reaches "
        f"{figures.product_per_s / 1e12:.2f}, so the floor is {least:.2f} s, {least / ours:.0%} "
        "of the step"
    )


def report(options: Options, figures: Figures) -> None:
    """Print the table of stages, and each side against the plain one."""
    names = list(figures.rounds)
    totals = {name: figures.totals(name) for name in names}
    steps = {name: Spread.of(seconds).median for name, seconds in totals.items()}
    print(
        f"\n{machine()}\nMaskCo, {options.trunk} at {options.size} pixels, {options.batch_size} "
        f"images a step, {figures.threads} threads, {options.rounds} interleaved rounds; "
        f"ours in {figures.precision}\n"
    )
    print(
        f"{'seconds':16}" + "".join(f"{name:>10}{'share':>8}" for name in names) + f"{'ratio':>9}"
    )
    for stage in STAGES:
        seconds = {name: figures.stage(name, stage) for name in names}
        shares = "".join(
            f"{seconds[name]:10.3f}{seconds[name] / steps[name]:8.1%}" for name in names
        )
        print(f"{stage:16}{shares}{seconds['plain'] / max(seconds['ours'], 1e-9):9.1f}")
    print(f"{'step':16}" + "".join(f"{steps[name]:10.3f}{'':8}" for name in names))
    for name in names:
        speed = Spread.of(options.batch_size / seconds for seconds in totals[name])
        ratio = ratio_by_round(totals["plain"], totals[name])
        print(f"{name}: {speed.text(2)} images/s, {ratio.text(1)} times the plain model's")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

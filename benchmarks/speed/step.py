"""What a MaskCo training step costs on this CPU, ours beside the same model written plainly, and
where the time goes.

    python benchmarks/step.py [--trunk resnet50] [--size 224] [--batch-size 32] [--rounds 5] [--compiled]

Plain: float32, NCHW, torchvision's RoIAlign over lists of boxes, an optimiser and a moving average
that loop over the parameters in Python. Ours: `Trainer`'s own step in a process set up as `train`
does: channels-last, autocast, fused BatchNorm, RoIAlign as a product, fused updates, freed memory
kept. Both start from the same weights and see the same batches; before anything is timed, the plain
model's loss has to equal ours in float32, and ours in the timed precision to be near it. Each side
has a process of its own; in each round, one after the other makes one step. One step of each ahead
is not timed. Stages are medians over the rounds, taken at module boundaries.

The floor: the step's multiplications at the speed of a large matrix product in the step's precision
on these threads.
"""

import dataclasses
import multiprocessing
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Literal

import torch
import torchvision
import tyro
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from maskco_fast.bench.harness import machine
from maskco_fast.loaders import Batch, Quarantine
from maskco_fast.methods.base import Method
from maskco_fast.methods.maskco import MaskCo
from maskco_fast.methods.registry import make_method
from maskco_fast.networks.config import ModelConfig
from maskco_fast.training.config import TrainConfig
from maskco_fast.training.devices import DTYPES, choose_precision, keep_freed_memory
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
    """Images a step, in one group; the paper's, of each GPU."""
    rounds: int = 5
    """Steps timed of either side."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of our side; as in training."""
    plain_keeps_memory: bool = False
    """Let the plain side's process keep freed memory too, which a program that is written plainly
    would not."""
    compiled: bool = False
    """A third side: ours through torch.compile (minutes to compile)."""


class Clock:
    """Adds up the seconds since the last mark under the name of what they were spent on."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Forget the past."""
        self.seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self._last = time.perf_counter()

    def mark(self, stage: str) -> None:
        """What happened since the last mark was `stage`."""
        now = time.perf_counter()
        self.seconds[stage] += now - self._last
        self._last = now

    def watch(self, network: nn.Module, forward: str) -> None:
        """Mark the stages of a region encoder's forward pass: `forward` up to its map, RoIAlign,
        the head."""
        network.register_forward_pre_hook(lambda *_: self.mark("other"))
        network.mph.register_forward_hook(lambda *_: self.mark(forward))
        network.projection.register_forward_pre_hook(lambda *_: self.mark("RoIAlign"))
        network.projection.register_forward_hook(lambda *_: self.mark("heads"))


class Same:
    """A loader that yields one batch for ever."""

    epoch = 0

    def __init__(self, batch: Batch) -> None:
        self.quarantine = Quarantine()
        self.batch = batch

    def __len__(self) -> int:
        return 1

    def __iter__(self):
        yield self.batch

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        """There is none."""


class Ours:
    """`Trainer`'s own step, with marks where it passes from one stage to the next."""

    def __init__(self, config: TrainConfig, batch: Batch) -> None:
        self.clock = Clock()
        self.trainer = Trainer(
            config,
            make_method(config.method, config.method_config, config.model, seed=config.seed),
            Same(batch),
        )
        self.method = self.trainer.method
        assert isinstance(self.method, MaskCo)
        if not config.compile:  # compiled code has no boundaries
            self.clock.watch(self.method.query, "query forward")
            self.clock.watch(self.method.key, "key forward")
        self.method.register_forward_hook(lambda *_: self.clock.mark("loss"))
        self.trainer.optimizer.register_step_pre_hook(lambda *_: self.clock.mark("backward"))
        self.trainer.optimizer.register_step_post_hook(lambda *_: self.clock.mark("optimizer"))
        after_step = self.method.after_step
        self.method.after_step = lambda: (after_step(), self.clock.mark("EMA"))  # type: ignore[method-assign]
        self._batches = self.trainer._batches()

    def loss(self) -> float:
        """Of the batch, as it stands."""
        with (
            torch.no_grad(),
            torch.autocast("cpu", DTYPES[self.trainer.precision], self.trainer.precision != "fp32"),
        ):
            return self.method(self.trainer.loader.batch)["loss"].item()

    def step(self) -> dict[str, float]:
        """One step; the seconds of its stages."""
        self.clock.start()
        self.trainer._one_step(Fetched(next(self._batches), epoch=0, waited=0.0))
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
    """MaskCo's step (paper, Algorithm 1) as one would first write it."""

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
        batch, count = self.batch, len(self.batch)
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
        """Of the batch, as it stands."""
        with torch.no_grad():
            return self._loss().item()

    def step(self) -> dict[str, float]:
        """One step; the seconds of its stages."""
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


def random_batch(options: Options, dtype: torch.dtype) -> Batch:
    """Noise, channels-last as the loaders give it, with boxes of MaskCo's sizes."""
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


def check(name: str, loss: float, wanted: float, tolerance: float) -> None:
    """SystemExit where a side computes something else: its speed would mean nothing."""
    if abs(loss - wanted) > tolerance * wanted:
        raise SystemExit(
            f"{name}: the loss is {loss:.6f} where the plain model's is {wanted:.6f}; nothing is timed"
        )
    print(
        f"loss of {name}: {loss:.5f}, of the plain model {wanted:.5f}; at most {tolerance:.2%} apart"
    )


def floor(step: Callable[[], object], dtype: torch.dtype) -> tuple[float, float]:
    """The step's floating-point operations, and those a second of a large matrix product."""
    with FlopCounterMode(display=False) as counter:
        step()
    side = 3072
    a, b = torch.randn(side, side).to(dtype), torch.randn(side, side).to(dtype)
    times = []
    for _ in range(6):
        began = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - began)
    return counter.get_total_flops(), 2 * side**3 / min(times)


def serve(name: str, options: Options, precision: str, connection: Connection) -> None:
    """One side in this process: `loss`, `step` and `floor`, as the parent asks for them."""
    if name != "plain" or options.plain_keeps_memory:
        keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            run_dir=pathlib.Path(folder),
            batch_size=options.batch_size,
            device="cpu",
            precision=precision,
            compile=name == "compiled",
            tensorboard=False,
            model=ModelConfig(
                trunk=options.trunk, view_size=options.size, group_size=options.batch_size
            ),
        )
        batch = random_batch(options, DTYPES[precision])
        side: Ours | Plain = (
            Plain(
                config,
                make_method(config.method, config.method_config, config.model, seed=config.seed),
                batch,
            )
            if name == "plain"
            else Ours(config, batch)
        )
        answers: dict[str, Callable[[], Any]] = {
            "loss": side.loss,
            "step": side.step,
            "floor": lambda: floor(side.step, DTYPES[precision]),
        }
        while (asked := connection.recv()) in answers:
            connection.send(answers[asked]())


class Side:
    """A process that serves one side of the comparison."""

    def __init__(self, name: str, options: Options, precision: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        context.Process(target=serve, args=(name, options, precision, theirs), daemon=True).start()

    def ask(self, what: str) -> Any:
        """Its answer; EOFError where the process has failed, which has said why."""
        self._connection.send(what)
        return self._connection.recv()

    def end(self) -> None:
        """Let the process end."""
        self._connection.send("end")


def main(options: Options) -> None:
    """Check, time, print."""
    precision = choose_precision(options.precision, torch.device("cpu"))
    plain, exact = Side("plain", options, "fp32"), Side("ours", options, "fp32")
    wanted = plain.ask("loss")
    check("ours in fp32", exact.ask("loss"), wanted, 1e-4)
    exact.end()
    sides = {"plain": plain, "ours": Side("ours", options, precision)}
    check(f"ours in {precision}", sides["ours"].ask("loss"), wanted, 0.01)
    if options.compiled:
        sides["compiled"] = Side("compiled", options, precision)
    operations, speed = sides["ours"].ask("floor")
    rounds = [
        {name: side.ask("step") for name, side in sides.items()} for _ in range(options.rounds + 1)
    ][1:]
    for side in sides.values():
        side.end()
    report(options, precision, rounds)
    ours = statistics.median(sum(one["ours"].values()) for one in rounds)
    least = operations / speed
    print(
        f"\nours: {operations / 1e9:.0f} GFLOP a step at {operations / ours / 1e12:.2f} TFLOP/s; a product of matrices "
        f"makes {speed / 1e12:.2f}, so the floor is {least:.2f} s, {least / ours:.0%} of the step"
    )


def report(options: Options, precision: str, rounds: list[dict[str, dict[str, float]]]) -> None:
    """The table of stages, and each side against the plain one."""
    print(
        f"\n{machine()}\nMaskCo, {options.trunk} at {options.size} pixels, {options.batch_size} images a step, "
        f"{torch.get_num_threads()} threads, {len(rounds)} interleaved rounds; ours in {precision}\n"
    )
    names = list(rounds[0])
    print(
        f"{'seconds':16}" + "".join(f"{name:>10}{'share':>8}" for name in names) + f"{'ratio':>9}"
    )
    totals = {name: [sum(one[name].values()) for one in rounds] for name in names}
    for stage in STAGES:
        middle = {name: statistics.median(one[name][stage] for one in rounds) for name in names}
        shares = "".join(
            f"{value:10.3f}{value / statistics.median(totals[name]):8.1%}"
            for name, value in middle.items()
        )
        print(f"{stage:16}{shares}{middle['plain'] / max(middle['ours'], 1e-9):9.1f}")
    print(
        f"{'step':16}" + "".join(f"{statistics.median(totals[name]):10.3f}{'':8}" for name in names)
    )
    for name in names:
        ratios = [a / b for a, b in zip(totals["plain"], totals[name])]
        print(
            f"{name}: {options.batch_size / statistics.median(totals[name]):.2f} images/s "
            f"({options.batch_size / max(totals[name]):.2f} to {options.batch_size / min(totals[name]):.2f}), "
            f"{statistics.median(ratios):.1f} times the plain model ({min(ratios):.1f} to {max(ratios):.1f})"
        )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

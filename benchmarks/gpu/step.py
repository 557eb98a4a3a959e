"""MaskCo's training step on a GPU, variant by variant, and where its time goes.

    python -m benchmarks.gpu.step --variants eager one-group fp16 --json step.json
    python -m benchmarks.gpu.step --shards 'in1k-{0000..0015}.tar' --json train.json

Every variant is `Trainer`'s own step on one batch again and again. Times are between events on the
stream; the busy share and the kernels come from the profiler. With shards the native loader feeds
the step. `--device cpu` runs all of it without a GPU.
"""

import contextlib
import dataclasses
import itertools
import json
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal
from unittest import mock

import torch
import tyro

from benchmarks.gpu.lines import Lines
from benchmarks.gpu.timeline import profile, synchronize
from benchmarks.speed.step import OneBatch
from maskco_fast.bench.harness import machine
from maskco_fast.kernels.batch_norm import triton as batch_norm
from maskco_fast.loaders import Batch, Loader, make_loader
from maskco_fast.methods.registry import make_method
from maskco_fast.networks.config import ModelConfig
from maskco_fast.training.config import TrainConfig
from maskco_fast.training.devices import DTYPES, choose_device, configure_cuda, describe_arithmetic
from maskco_fast.training.meter import make_clock
from maskco_fast.training.signals import StopSignal
from maskco_fast.training.trainer import BatchSource, Fetched, Trainer

WARM_BATCHES = 4
"""Batches before a loader is timed, most of which are prepared at once."""

Variant = Literal[
    "eager",
    "torch-batch-norm",
    "one-group",
    "no-benchmark",
    "fp16",
    "fp32",
    "tf32",
    "compile",
    "cuda-graphs",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Time the training step."""

    variants: tuple[Variant, ...] = ("eager", "torch-batch-norm", "one-group", "fp16")
    """torch-batch-norm: torch's operators, group by group, in place of the Triton kernels.
    one-group: a batch is one BatchNorm group, which shows what groups cost. no-benchmark: cuDNN
    chooses its algorithms without timing them. cuda-graphs: the whole step is one. All in bf16 but
    fp16, fp32 and tf32."""
    batch: int = 256
    """Images a step."""
    size: int = 224
    """Side of the views, pixels."""
    group: int = 32
    """Images that share BatchNorm."""
    trunk: Literal["resnet18", "resnet50"] = "resnet50"
    """The network."""
    steps: int = 10
    """Steps timed, each by itself, after `warm` others."""
    warm: int = 4
    """Steps before the timed ones."""
    seconds_a_variant: float = 60.0
    """A variant that has not warmed up by then is timed as it is."""
    device: str = "cuda"
    """cuda, or cpu for a dry run."""
    shards: str | None = None
    """With these, the loader feeds `train_steps` steps of the first variant alone."""
    train_steps: int = 60
    """Steps fed by the loader, after 5 others."""
    loader_seconds: float = 5.0
    """For the loader alone."""
    loader: str = "native"
    """Loader backend."""
    threads: int | None = None
    """Threads of the loader; None leaves the choice to it."""
    loader_process: bool = False
    """Make the batches in a process of their own."""
    force_backend: str | None = None
    """Backend of torch.compile in place of Inductor. aot_eager compiles nothing: for a dry run."""
    profile: pathlib.Path | None = None
    """Where the kernels of the first variant are listed."""
    trace: pathlib.Path | None = None
    """Where its trace is written, gzipped, for chrome://tracing."""
    json: pathlib.Path | None = None
    """Where the results are written, after each one."""


def make_trainer(
    options: Options, variant: str, folder: str, loader: BatchSource | None = None
) -> Trainer:
    """A run that writes nothing; on one batch of noise without a loader."""
    precision = variant if variant in ("fp16", "fp32") else "bf16"
    config = TrainConfig(
        run_dir=pathlib.Path(folder),
        batch_size=options.batch,
        device=options.device,
        precision="fp32" if variant == "tf32" else precision,  # type: ignore[arg-type]
        tf32=variant == "tf32",
        cudnn_benchmark=variant != "no-benchmark",
        compile=variant == "compile",
        cuda_graphs=variant == "cuda-graphs",
        tensorboard=False,
        max_steps=10**6,
        log_every=10**6,
        model=ModelConfig(
            trunk=options.trunk,
            view_size=options.size,
            group_size=options.batch if variant == "one-group" else options.group,
        ),
    )
    device = choose_device(options.device)
    configure_cuda(device, tf32=config.tf32, cudnn_benchmark=config.cudnn_benchmark)
    method = make_method(config.method, config.method_config, config.model, seed=config.seed)
    if loader is None:
        loader = OneBatch(noise(options, DTYPES[config.precision]))
    return Trainer(config, method, loader)


def noise(options: Options, dtype: torch.dtype) -> Batch:
    """A batch on the device, channels-last, with boxes of MaskCo's sizes."""
    count, size, device = options.batch, options.size, options.device
    views = [
        torch.randn(count, size, size, 3, device=device).to(dtype).movedim(-1, 1) for _ in range(2)
    ]
    sides = (32 + 96 * torch.rand(count, 18, 2, device=device)) * size / 224
    corners = torch.rand(count, 18, 2, device=device) * (size - sides)
    boxes = torch.cat((corners, corners + sides), 2)
    number = torch.arange(count, device=device)
    return Batch(
        views=tuple(views),
        sample_id=number,
        target=torch.full_like(number, -1),
        index=number,
        masked_box=boxes[:, 0].contiguous(),
        key_boxes=boxes[:, 1:].contiguous(),
    )


def milliseconds(step: Callable[[], object], options: Options) -> list[float]:
    """Of each of `steps` steps that follow each other without a wait."""
    clock = make_clock(torch.device(options.device))
    marks = [clock.mark()]
    for _ in range(options.steps):
        step()
        marks.append(clock.mark())
    synchronize(options.device)
    return [1000 * clock.seconds(a, b) for a, b in itertools.pairwise(marks)]


def measure(options: Options, variant: str) -> dict[str, Any]:
    """One variant: milliseconds, launches, busy share, the host's share, memory."""
    on_cuda = options.device.startswith("cuda")
    if on_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    by_torch = variant == "torch-batch-norm"
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(batch_norm, "usable", return_value=False)
        if by_torch
        else contextlib.nullcontext(),
    ):
        trainer = make_trainer(options, variant, folder)
        batch = next(iter(trainer.loader))

        def step() -> None:
            trainer._one_step(Fetched(batch, epoch=0))
            trainer._deferred.forget()

        began = time.perf_counter()
        for _ in range(options.warm):
            step()
            synchronize(options.device)
            if time.perf_counter() - began > options.seconds_a_variant:
                break
        warmed = time.perf_counter() - began
        times = milliseconds(step, options)
        began = time.perf_counter()
        for _ in range(3):
            step()
        host = (time.perf_counter() - began) / 3  # of queueing, while the device lags behind
        synchronize(options.device)
        median = statistics.median(times)
        result: dict[str, Any] = {
            "milliseconds": median,
            "spread": (min(times), max(times)),
            "images_per_s": 1000 * options.batch / median,
            "host_milliseconds": 1000 * host,
            "warm_up_seconds": warmed,
            "arithmetic": describe_arithmetic(trainer.precision, trainer.device),
        }
        if on_cuda:
            result["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        first = variant == options.variants[0]
        found = profile(step, 3, options.device, options.trace if first else None)
        if found is not None:
            result["busy"] = found.busy
            result["launches"] = found.launches
            result["by_name"] = [dataclasses.astuple(kernel) for kernel in found.kernels[:25]]
            if first and options.profile is not None:
                options.profile.write_text(found.table())
        return result


def fed(options: Options) -> dict[str, Any]:
    """The loader alone, then steps that it feeds: what the run's metrics say, and what happened."""
    assert options.shards is not None
    with tempfile.TemporaryDirectory() as folder:
        probe = make_trainer(options, options.variants[0], folder)
        with make_loader(
            options.shards,
            options.batch,
            views=probe.method.views,
            backend=options.loader,
            device=probe.device,
            dtype=DTYPES[probe.precision],
            rank=0,
            world_size=1,
            threads=options.threads,
            loader_process=options.loader_process,
        ) as loader:
            alone = loader_alone(loader, options.loader_seconds, options.device)
            trainer = make_trainer(options, options.variants[0], folder, loader)
            batches, stop = trainer._batches(), StopSignal(lambda: None)

            def step() -> None:
                fetched = trainer._fetch(batches, stop)
                assert fetched is not None
                trainer._one_step(fetched)

            for _ in range(5):
                step()
            trainer._deferred.read()
            trainer._meter.restart()
            began = time.perf_counter()
            for _ in range(options.train_steps):
                step()
            lines = [record.line for record in trainer._deferred.read()]
            took = time.perf_counter() - began
            found = profile(step, 5, options.device, options.trace)
            trainer._deferred.forget()
            if found is not None and options.profile is not None:
                options.profile.write_text(found.table())
            seconds = [options.batch / line["images_per_s"] for line in lines]
            waited = sum(line["data_wait"] * one for line, one in zip(lines, seconds))
            return {
                "loader_alone_images_per_s": alone,
                "loader_threads": loader.config.thread_count,
                "images_per_s": options.train_steps * options.batch / took,
                "metered_images_per_s": options.train_steps * options.batch / sum(seconds),
                "metered_data_wait": waited / sum(seconds),
                "device_idle_share": None if found is None else 1 - found.busy,
                "first_and_last_loss": [lines[0]["loss"], lines[-1]["loss"]],
                "samples": len(loader.dataset),
            }


def loader_alone(loader: Loader, seconds: float, device: str) -> float:
    """Images a second to the device, over `seconds`, with nothing else to do there."""

    def forever() -> Iterator[Batch]:
        while True:
            yield from loader

    batches = forever()
    for _ in range(WARM_BATCHES):
        next(batches)
    synchronize(device)
    began = time.perf_counter()
    count = 0
    while time.perf_counter() - began < seconds:
        next(batches)
        count += loader.batch_size
    synchronize(device)
    return count / (time.perf_counter() - began)


def main(options: Options) -> int:
    """Every variant, or the fed steps; one that fails is a line."""
    lines = Lines(options.json)
    lines.note("machine", machine())
    lines.note("options", json.loads(json.dumps(dataclasses.asdict(options), default=str)))
    backend = contextlib.nullcontext()
    if options.force_backend is not None:
        backend = torch.compiler.set_stance("default", force_backend=options.force_backend)
    with backend:
        if options.shards is not None:
            lines.attempt("fed", lambda: fed(options))
        else:
            for variant in options.variants:
                lines.attempt(variant, lambda variant=variant: measure(options, variant))  # type: ignore[misc]
    return int(bool(lines.failed))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))

"""The `train` command: pre-train from shards into a run folder."""

import contextlib
import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Collection, Sequence

import torch

from maskco_fast.config_file import as_file, value_of, with_config_file
from maskco_fast.demo.shards import demo_shards
from maskco_fast.errors import SUCCESS, WRONG_OPTIONS, say
from maskco_fast.evaluation.monitor import KnnMonitor
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import Dataset, Loader, make_loader, open_dataset
from maskco_fast.loaders.system.cpus import loader_threads
from maskco_fast.loaders.system.files import write_json
from maskco_fast.loaders.system.progress import no_progress
from maskco_fast.methods.base import Method
from maskco_fast.methods.registry import METHODS, make_method
from maskco_fast.pictures.loss import loss_picture
from maskco_fast.pictures.views import draw_views
from maskco_fast.progress import ProgressLines, duration
from maskco_fast.run_lock import lock_run_folder
from maskco_fast.training.config import TrainConfig
from maskco_fast.training.devices import (
    DTYPES,
    choose_device,
    choose_precision,
    configure_cuda,
    describe_arithmetic,
    keep_freed_memory,
)
from maskco_fast.training.distributed import World, join, local_rank
from maskco_fast.training.loader_choice import choose_loader
from maskco_fast.training.recipes import RECIPES
from maskco_fast.training.trainer import Trainer

VIEWS_DRAWN = 3
"""Images of views.png: the first of the first epoch."""


def expand(arguments: Sequence[str]) -> list[str]:
    """The arguments with those of the `--config` file."""
    return with_config_file(arguments, TrainConfig())


def defaults(arguments: Sequence[str]) -> TrainConfig:
    """The configuration of `--recipe` and `--method`, which the other options change.

    Exits with code 2 for an unknown recipe or method.
    """
    recipe = choice(arguments, "--recipe", "paper", RECIPES)
    method = choice(arguments, "--method", "maskco", METHODS)
    return RECIPES[recipe](method)


def choice(arguments: Sequence[str], option: str, default: str, choices: Collection[str]) -> str:
    """The value of `option`, the last one if it is repeated; exits with code 2 if it is unknown."""
    given = value_of(option, arguments)
    value = default if given is None else given
    if value not in choices:
        print(
            f"maskco-fast: unknown {option[2:]} {value!r}. Choose one of {', '.join(choices)}.",
            file=sys.stderr,
        )
        raise SystemExit(WRONG_OPTIONS)
    return value


def train(config: TrainConfig) -> int:
    """Train a run and log it on stderr; returns the exit code.

    Success means that the run reached its last step, or that a signal ended it (`StopSignal`) after
    it wrote a checkpoint from which the same command resumes.

    Writes into `config.run_dir`: config.json, metrics.jsonl, quarantine.json, loader.json (with
    `--loader auto`), checkpoints/, tensorboard/, loss.png and views.png. Under torchrun this
    function runs once a rank, and rank 0 alone writes and logs.
    """
    began = time.monotonic()
    device = choose_device(config.device, local_rank())
    if device.type == "cpu":
        keep_freed_memory()
    configure_cuda(device, tf32=config.tf32, cudnn_benchmark=config.cudnn_benchmark)
    with join(device) as world, contextlib.ExitStack() as stack:
        if world.is_rank_zero:
            stack.enter_context(lock_run_folder(config.run_dir))
        precision = choose_precision(config.precision, device)
        method = make_method(config.method, config.method_config, config.model, seed=config.seed)
        method.views = config.views.apply(method.views, config.method)
        with world.local_rank_zero_first():
            dataset = _dataset(config)
        make = functools.partial(_loader, config, method, device, DTYPES[precision], world, dataset)
        loader = stack.enter_context(make(_backend(config, world, make)))
        _check_length(loader)
        # Hosts with other storage would choose another order, and shards that differ are named.
        loader.load_state_dict(world.broadcast(loader.state_dict()))
        method.prepare(len(loader.dataset))
        monitor = _monitor(config, device, world)
        trainer = Trainer(config, method, loader, world, monitor)
        trainer.resume()
        if world.is_rank_zero:
            _write_config(config, loader)
            _log_start(config, trainer, loader)
        stopped_by = trainer.fit()
        if world.is_rank_zero:
            _draw(config, trainer, loader, views=stopped_by is None)
            _log_end(trainer, stopped_by, time.monotonic() - began)
    return SUCCESS


def _log_start(config: TrainConfig, trainer: Trainer, loader: Loader) -> None:
    """Print a line with the run's settings and the size of its data set."""
    processes = trainer.world.size
    in_processes = f" in {processes} processes" if processes > 1 else ""
    say(
        f"{config.recipe}: {config.method} with {config.model.trunk} "
        f"at {config.model.view_size} pixels, {config.batch_size} images a step{in_processes}, "
        f"{describe_arithmetic(trainer.precision, trainer.device)}; {len(loader.dataset)} samples, "
        f"{len(loader)} steps an epoch, {len(loader.quarantine)} quarantined; into {config.run_dir}"
    )


def _draw(config: TrainConfig, trainer: Trainer, loader: Loader, *, views: bool) -> None:
    """Write loss.png, and views.png if `views`; that one reads shards."""
    method = trainer.method
    metrics = config.run_dir / "metrics.jsonl"
    if not metrics.stat().st_size:
        return  # the run was stopped before its first step
    loss_picture(
        metrics,
        config.run_dir / "loss.png",
        chance=method.chance_loss(config.batch_size),
        title=f"{config.method}, {config.recipe}",
    )
    if views:
        draw_views(
            loader.dataset,
            method.views,
            config.run_dir / "views.png",
            count=VIEWS_DRAWN,
            seed=config.seed,
        )


def _log_end(trainer: Trainer, stopped_by: str | None, seconds: float) -> None:
    """Print the quarantined samples by reason, and why the run ended."""
    config = trainer.config
    bad = trainer.bad_samples.by_reason()
    if bad:
        reasons = ", ".join(f"{count} {reason}" for reason, count in bad.items())
        say(f"quarantined: {reasons}; listed in {config.run_dir / 'quarantine.json'}")
    if stopped_by is not None:
        say(trainer.stop_message(stopped_by))
    else:
        say(f"done: {trainer.step} steps in {duration(seconds)}; {trainer.checkpoint_folder}")


def _dataset(config: TrainConfig) -> Dataset:
    """The run's shards, indexed; the demo set's without `--shards`."""
    shards: list[str] = list(config.shards)
    if not shards:
        say("no --shards: using the built-in demo set, which is drawn on first use")
        shards = [str(path) for path in demo_shards(progress=ProgressLines())]
    return open_dataset(
        shards,
        labels=config.labels,
        threads=config.loader_threads,
        progress=ProgressLines(),
        remote=config.remote,
    )


def _backend(config: TrainConfig, world: World, make: Callable[[str], Loader]) -> str:
    """The name of the run's loader: `--loader`, or with `auto` rank 0's choice for all ranks."""
    if config.loader != "auto":
        return config.loader
    if config.remote.mode == "stream":
        return "native"  # a stream can be read only once, so there is nothing to measure on
    return world.broadcast(choose_loader(config.run_dir, make) if world.is_rank_zero else "")


def _loader(
    config: TrainConfig,
    method: Method,
    device: torch.device,
    dtype: torch.dtype,
    world: World,
    dataset: Dataset,
    backend: str,
) -> Loader:
    return make_loader(
        dataset,
        config.images_per_process(world.size),
        views=method.views,
        backend=backend,
        device=device,
        dtype=dtype,
        seed=config.seed,
        rank=world.rank,
        world_size=world.size,
        shuffle_block=config.shuffle_block,
        threads=config.loader_threads or loader_threads(device.type, world.local_size),
        decode=config.decode,
        scan_index_gb=config.scan_index_gb,
        remote=config.remote,
        loader_process=config.loader_process,
    )


def _monitor(config: TrainConfig, device: torch.device, world: World) -> KnnMonitor | None:
    """The k-NN monitor; None without `--monitor.every`."""
    if not config.monitor.every:
        return None
    return KnnMonitor(
        config.monitor,
        size=config.model.view_size,
        device=device,
        precision=choose_precision(config.precision, device),
        world=world,
        backend="native" if config.loader == "auto" else config.loader,
        threads=config.loader_threads or loader_threads(device.type, world.local_size),
        remote=config.remote,
        progress=ProgressLines() if world.is_rank_zero else no_progress,
    )


def _check_length(loader: Loader) -> None:
    """Raise InvalidInput unless an epoch has at least one step."""
    if len(loader) == 0:
        raise InvalidInput(
            f"The shards must hold a batch of {loader.batch_size} usable samples for every "
            f"process, got {len(loader.dataset)} samples in all. "
            "Lower --batch-size, or give more shards."
        )


def _write_config(config: TrainConfig, loader: Loader) -> None:
    """Write config.json: every field, as of the newest start of this run, and what was chosen."""
    chosen = dataclasses.replace(config, shuffle_block=loader.config.block)
    write_json(config.run_dir / "config.json", as_file(chosen))

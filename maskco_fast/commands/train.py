"""The `train` command: a configuration in, a run folder out."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable

import torch

from maskco_fast.commands.inspect import draw_views
from maskco_fast.demo.shards import demo_shards
from maskco_fast.errors import SUCCESS, say
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import Dataset, Loader, make_loader, open_dataset
from maskco_fast.loaders.system.cpus import usable_cpus
from maskco_fast.loaders.system.files import write_json
from maskco_fast.methods.base import Method
from maskco_fast.methods.registry import make_method
from maskco_fast.pictures.pictures import loss_picture
from maskco_fast.progress import ProgressLines
from maskco_fast.training.config import TrainConfig
from maskco_fast.training.devices import DTYPES, choose_device, choose_precision, keep_freed_memory
from maskco_fast.training.distributed import World, join, local_rank
from maskco_fast.training.loader_choice import choose_loader
from maskco_fast.training.run_lock import lock_run_folder
from maskco_fast.training.trainer import Trainer

VIEWS_SHOWN = 3
"""Images of views.png: the first of the first epoch."""


def train(config: TrainConfig) -> int:
    """Train as `config` says, telling of it on stderr; returns `errors.SUCCESS`.

    That is when the run reached its last step, and when a signal asked it to end (`StopSignal`) and
    it left a checkpoint from which the same command goes on. Writes into `config.run_dir`:
    config.json, metrics.jsonl, quarantine.json, loader.json (of --loader auto), checkpoints/,
    tensorboard/, loss.png and views.png. Bad input raises what `errors.report_user_errors` names.
    Started by torchrun, this is one rank of the run, and only rank 0 writes and tells.
    """
    began = time.monotonic()
    device = choose_device(config.device, local_rank())
    if device.type == "cpu":
        keep_freed_memory()
    with join(device) as world, contextlib.ExitStack() as stack:
        if world.is_rank_zero:
            stack.enter_context(lock_run_folder(config.run_dir))
        precision = choose_precision(config.precision, device)
        method = make_method(config.method, config.method_config, config.model, seed=config.seed)
        with world.one_of_each_host_first():
            dataset = _dataset(config)
        make = functools.partial(_loader, config, method, device, DTYPES[precision], world, dataset)
        loader = stack.enter_context(make(_backend(config, world, make)))
        _check_length(loader)
        method.prepare(len(loader.dataset))
        trainer = Trainer(config, method, loader, world)
        if world.is_rank_zero:
            _write_config(config)
            _tell_the_run(trainer, loader)
        stopped_by = trainer.fit()
        if world.is_rank_zero:
            _draw(trainer, loader, views=stopped_by is None)
            _tell_the_end(trainer, stopped_by, time.monotonic() - began)
    return SUCCESS


def _tell_the_run(trainer: Trainer, loader: Loader) -> None:
    config, processes = trainer.config, trainer.world.size
    say(
        f"{config.recipe}: {config.method} with {config.model.trunk} at {config.model.view_size} pixels, "
        f"{config.batch_size} images a step{f' in {processes} processes' if processes > 1 else ''}, "
        f"{trainer.precision} on {trainer.device}; {len(loader.dataset)} samples, "
        f"{len(loader)} steps an epoch, {len(loader.quarantine)} quarantined; into {config.run_dir}"
    )


def _draw(trainer: Trainer, loader: Loader, *, views: bool) -> None:
    """loss.png and, where shards may still be read, views.png."""
    config, method = trainer.config, trainer.method
    metrics = config.run_dir / "metrics.jsonl"
    if metrics.stat().st_size:  # a run that is stopped before its first step has nothing to draw
        chance = method.chance_loss(config.batch_size)
        loss_picture(
            metrics,
            config.run_dir / "loss.png",
            chance=chance,
            title=f"{config.method}, {config.recipe}",
        )
        if views:
            draw_views(
                loader.dataset,
                method.views,
                config.run_dir / "views.png",
                count=VIEWS_SHOWN,
                seed=config.seed,
            )


def _tell_the_end(trainer: Trainer, stopped_by: str | None, took: float) -> None:
    config, bad = trainer.config, trainer.bad_samples.by_reason()
    if bad:
        reasons = ", ".join(f"{count} {reason}" for reason, count in bad.items())
        say(f"quarantined: {reasons}; each is named in {config.run_dir / 'quarantine.json'}")
    minutes, seconds = divmod(round(took), 60)
    if stopped_by is not None:
        say(
            f"{stopped_by}: saved at step {trainer.step} of {config.max_steps}; the same command goes on from there"
        )
    else:
        say(f"done: {trainer.step} steps; {minutes} min {seconds} s; {trainer.checkpoint_folder}")


def _dataset(config: TrainConfig) -> Dataset:
    """The shards, indexed; of the demo set where none are named."""
    shards: list[str] = list(config.shards)
    if not shards:
        say("no --shards: the built-in demo set (drawn on first use)")
        shards = [str(path) for path in demo_shards(progress=ProgressLines())]
    return open_dataset(
        shards, threads=config.loader_threads, progress=ProgressLines(), remote=config.remote
    )


def _backend(config: TrainConfig, world: World, make: Callable[[str], Loader]) -> str:
    """The loader named, or rank 0's choice for all ranks; a stream, which passes but once, is not
    measured."""
    if config.loader != "auto":
        return config.loader
    if config.remote.mode == "stream":
        return "native"
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
        threads=config.loader_threads or max(1, usable_cpus() // world.local_size),
        decode=config.decode,
        remote=config.remote,
    )


def _check_length(loader: Loader) -> None:
    if len(loader) == 0:
        raise InvalidInput(
            f"{len(loader.dataset)} usable samples do not fill a batch of {loader.batch_size} on every process: "
            "lower --batch-size, or give more shards"
        )


def _write_config(config: TrainConfig) -> None:
    """config.json: every field of the newest start of this run."""
    write_json(config.run_dir / "config.json", dataclasses.asdict(config))

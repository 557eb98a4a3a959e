"""The `train` command: a configuration in, a run folder out."""

import dataclasses
import json
import os
import time
from collections.abc import Callable

import torch

from maskco_fast.config import TrainConfig
from maskco_fast.demo import demo_shards
from maskco_fast.devices import DTYPES, choose_device, choose_precision
from maskco_fast.errors import SUCCESS, say
from maskco_fast.inspect import draw_views
from maskco_fast.loaders import Loader, make_loader
from maskco_fast.methods import Method, make_method
from maskco_fast.pictures import loss_picture
from maskco_fast.trainer import Trainer

VIEWS_SHOWN = 3
"""Images of views.png: the first of the first epoch."""


def train(config: TrainConfig) -> int:
    """Train as `config` says, telling of it on stderr; returns `errors.SUCCESS`.

    That is when the run reached its last step, and when it was asked to end (SIGTERM, Ctrl-C) and left a checkpoint
    from which the same command goes on. Writes into `config.run_dir`: config.json, metrics.jsonl, quarantine.json,
    checkpoints/, tensorboard/, loss.png and views.png. Bad input raises what `errors.named_errors` names.
    """
    began = time.monotonic()
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    method = make_method(config)
    with _loader(config, method, device, DTYPES[precision]) as loader:
        _check_length(loader)
        trainer = Trainer(config, method, loader)
        _write_config(config)
        samples = len(loader.dataset)
        say(
            f"{config.recipe}: {config.method} with {config.model.trunk} at {config.model.view_size} pixels, "
            f"{config.batch_size} images a step, {precision} on {device}; {samples} samples, "
            f"{len(loader)} steps an epoch, {len(loader.quarantine)} quarantined; into {config.run_dir}"
        )
        stopped_by = trainer.fit()
        bad = loader.quarantine.by_reason()
    metrics = config.run_dir / "metrics.jsonl"
    if metrics.stat().st_size:  # a run that is stopped before its first step has nothing to draw
        chance = method.chance_loss(config.batch_size)
        loss_picture(metrics, config.run_dir / "loss.png", chance=chance, title=f"{config.method}, {config.recipe}")
        draw_views(loader.dataset, method.views, config.run_dir / "views.png", count=VIEWS_SHOWN, seed=config.seed)
    if bad:
        reasons = ", ".join(f"{count} {reason}" for reason, count in bad.items())
        say(f"quarantined: {reasons}; each is named in {config.run_dir / 'quarantine.json'}")
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    if stopped_by is not None:
        say(f"{stopped_by}: saved at step {trainer.step} of {config.max_steps}; the same command goes on from there")
    else:
        say(f"done: {trainer.step} steps; {minutes} min {seconds} s; {trainer.checkpoint_folder}")
    return SUCCESS


def _loader(config: TrainConfig, method: Method, device: torch.device, dtype: torch.dtype) -> Loader:
    shards: list[str] = list(config.shards)
    if not shards:
        say("no --shards: the built-in demo set (drawn on first use)")
        shards = [str(path) for path in demo_shards(progress=_counter("scenes drawn"))]
    return make_loader(
        shards,
        config.batch_size,
        views=method.views,
        backend=config.loader,
        device=device,
        dtype=dtype,
        seed=config.seed,
        threads=config.loader_threads,
        decode=config.decode,
        progress=_counter("shards indexed"),
    )


def _counter(what: str, every: float = 5.0) -> Callable[..., None]:
    """A callback that says `done/all what` now and then, the first time after `every` seconds."""
    said = time.monotonic()

    def tell(done: int, count: int, *_: int) -> None:
        nonlocal said
        if time.monotonic() - said >= every:
            said = time.monotonic()
            say(f"{done}/{count} {what}")

    return tell


def _check_length(loader: Loader) -> None:
    if len(loader) == 0:
        raise ValueError(
            f"{len(loader.dataset)} usable samples do not fill a batch of {loader.batch_size}: "
            "lower --batch-size, or give more shards"
        )


def _write_config(config: TrainConfig) -> None:
    """config.json: every field of the newest start of this run."""
    config.run_dir.mkdir(parents=True, exist_ok=True)
    path = config.run_dir / "config.json"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(dataclasses.asdict(config), indent=1, default=str) + "\n")
    os.replace(temporary, path)

"""The `train` command: a configuration in, a run folder out."""

import dataclasses
import json
import os
import sys
import time
import warnings

import torch

from maskco_fast.checkpoint import CheckpointError
from maskco_fast.config import TrainConfig
from maskco_fast.demo import demo_shards
from maskco_fast.devices import DTYPES, choose_device, choose_precision
from maskco_fast.loaders import Loader, TooManyBadSamples, make_loader
from maskco_fast.methods import Method, make_method
from maskco_fast.pictures import loss_picture
from maskco_fast.trainer import NonFiniteLoss, Trainer

SUCCESS, FAILURE = 0, 1
"""Exit codes. SUCCESS: the run reached its last step, or was asked to end (SIGTERM, Ctrl-C) and left a checkpoint from
which the same command goes on. FAILURE: an error, named on stderr."""


def train(config: TrainConfig) -> int:
    """Train as `config` says and return the exit code, `SUCCESS` or `FAILURE`; tells of itself on stderr.

    Writes into `config.run_dir`: config.json, metrics.jsonl, quarantine.json, checkpoints/, tensorboard/ and loss.png.
    Bad input (shards, samples, settings, checkpoints, a full disk) is reported in a line; anything else raises.
    """
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: _say(f"warning: {message}")
        try:
            return _train(config)
        except (CheckpointError, NonFiniteLoss, TooManyBadSamples, OSError, ValueError) as error:
            if isinstance(error, ValueError) and not _is_ours(error):
                raise  # torch's and numpy's speak of the program, not of the input: their traceback is wanted
            _say(f"error: {error}")
            return FAILURE


def _train(config: TrainConfig) -> int:
    began = time.monotonic()
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    method = make_method(config)
    with _loader(config, method, device, DTYPES[precision]) as loader:
        _check_length(loader)
        trainer = Trainer(config, method, loader)
        _write_config(config)
        samples = len(loader.dataset)
        _say(
            f"{config.recipe}: {config.method} with {config.model.trunk} at {config.model.view_size} pixels, "
            f"{config.batch_size} images a step, {precision} on {device}; {samples} samples, "
            f"{len(loader)} steps an epoch, {len(loader.quarantine)} quarantined; into {config.run_dir}"
        )
        stopped_by = trainer.fit()
        bad = loader.quarantine.by_reason()
    loss_picture(
        config.run_dir / "metrics.jsonl",
        config.run_dir / "loss.png",
        chance=method.chance_loss(config.batch_size),
        title=f"{config.method}, recipe {config.recipe}",
    )
    if bad:
        reasons = ", ".join(f"{count} {reason}" for reason, count in bad.items())
        _say(f"quarantined: {reasons}; each is named in {config.run_dir / 'quarantine.json'}")
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    if stopped_by is not None:
        _say(f"{stopped_by}: saved at step {trainer.step} of {config.max_steps}; the same command goes on from there")
    else:
        _say(f"done: {trainer.step} steps; {minutes} min {seconds} s; {trainer.checkpoint_folder}")
    return SUCCESS


def _loader(config: TrainConfig, method: Method, device: torch.device, dtype: torch.dtype) -> Loader:
    shards: list[str] = list(config.shards)
    if not shards:
        _say("no --shards: the built-in demo set (drawn on first use)")
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
    )


def _counter(what: str, every: float = 5.0):
    """A callback that says `done/all what` now and then, the first time after `every` seconds."""
    said = time.monotonic()

    def tell(done: int, count: int) -> None:
        nonlocal said
        if time.monotonic() - said >= every:
            said = time.monotonic()
            _say(f"{done}/{count} {what}")

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


def _is_ours(error: BaseException) -> bool:
    """Whether this package raised the error."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    module = frame.tb_frame.f_globals.get("__name__", "") if frame is not None else ""
    return module.partition(".")[0] == __name__.partition(".")[0]


def _say(text: str) -> None:
    print(f"maskco-fast: {text}", file=sys.stderr, flush=True)

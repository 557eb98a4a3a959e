"""The `linear` command: train and test linear probes on a frozen trunk."""

import contextlib
import copy
import dataclasses
import pathlib
import time
from dataclasses import dataclass
from typing import Any

from maskco_fast.errors import SUCCESS, say
from maskco_fast.evaluation.linear import (
    OWN,
    PROTOCOLS,
    RECALIBRATED,
    Accuracy,
    LinearProbes,
    LinearRun,
    Protocol,
    accuracies,
)
from maskco_fast.evaluation.options import Evaluation, EvaluationOptions, evaluation
from maskco_fast.evaluation.paper import PAPER_ROWS
from maskco_fast.evaluation.probes import LAYERS
from maskco_fast.evaluation.recalibrate import recalibrate
from maskco_fast.evaluation.results import write_result
from maskco_fast.evaluation.weights import Weights, frozen_trunk
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import Loader, ViewConfig
from maskco_fast.loaders.system.files import write_json
from maskco_fast.networks.resnet import Trunk
from maskco_fast.pictures.layers import layers_picture
from maskco_fast.progress import duration
from maskco_fast.run_lock import lock_run_folder
from maskco_fast.training.config import public
from maskco_fast.training.devices import configure_cuda
from maskco_fast.training.distributed import share_of_batch
from maskco_fast.training.trainer import Trainer

IMAGENET_CLASSES = 1000
"""Data with as many classes is drawn beside the paper's ImageNet accuracies."""


@dataclass(frozen=True, kw_only=True)
class LinearConfig(EvaluationOptions):
    """Train linear probes on a frozen trunk, and measure their accuracy on validation images."""

    run_dir: pathlib.Path = pathlib.Path("runs/linear")
    """Output folder: linear.json, layers.png, metrics.jsonl and checkpoints/. The same command
    resumes an interrupted run."""
    protocol: Protocol = "multi"
    """multi: five probes, on conv1 to conv5. last: one on the average-pooled conv5 (MoCo)."""
    epochs: int | None = None
    """Passes over the training images; None: 90 for multi, 100 for last. The rate falls to a tenth
    at 1/3 and 2/3 of them (multi), or at 3/5 and 4/5 (last)."""
    learning_rate: float | None = None
    """For a batch of 256, scaled linearly; None: .01 for multi, 30 for last."""
    batch_size: int = 256
    """Images a step over all processes."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; a last one is written at the end and on SIGTERM or Ctrl-C."""
    log_every: int = 10
    """Steps between progress lines."""
    json: str | None = None
    """Also write linear.json's content to this file; "-" for stdout."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "batch_size", "checkpoint_every", "log_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidInput(f"`{name}` must be at least 1, got {value}.")

    def run(
        self, weights: Weights, *, steps_per_epoch: int, classes: int, recalibrated: int
    ) -> LinearRun:
        """The configuration of the training loop."""
        values = PROTOCOLS[self.protocol]
        epochs = self.epochs or values.epochs
        rate = self.learning_rate or values.optimizer.learning_rate
        return LinearRun(
            run_dir=self.run_dir,
            max_steps=epochs * steps_per_epoch,
            batch_size=self.batch_size,
            seed=self.seed,
            checkpoint_every=self.checkpoint_every,
            keep_checkpoints=1,
            log_every=self.log_every,
            device=self.device,
            precision=self.precision,
            optimizer=dataclasses.replace(values.optimizer, learning_rate=rate),
            protocol=self.protocol,
            epochs=epochs,
            view_size=self.size_for(weights),
            labels=self.labels,
            classes=classes,
            recalibrate=recalibrated,
            weights=weights.description,
            trunk_digest=weights.digest(),
        )


def linear(config: LinearConfig) -> int:
    """Train the probes, test them, write linear.json and layers.png; returns the exit code.

    A signal ends the training with a checkpoint, from which the same command resumes; the probes
    are tested once it is complete. Under torchrun this runs once a rank.
    """
    began = time.monotonic()
    with evaluation(config) as setting, contextlib.ExitStack() as stack:
        world = setting.world
        if world.is_rank_zero:
            stack.enter_context(lock_run_folder(config.run_dir))
        weights = config.read_weights()
        size = config.size_for(weights)
        loader = stack.enter_context(_train_loader(config, setting, ViewConfig.supervised(size)))
        trunks = {OWN: frozen_trunk(weights).to(setting.device)}
        recalibrated = 0
        if config.recalibrate:
            trunks[RECALIBRATED], recalibrated = _recalibrated(config, setting, trunks[OWN], size)
        run = config.run(
            weights,
            steps_per_epoch=len(loader),
            classes=len(setting.classes),
            recalibrated=recalibrated,
        )
        probes = LinearProbes(
            trunks, config.protocol, size=size, classes=len(setting.classes), seed=config.seed
        )
        configure_cuda(setting.device, tf32=run.tf32, cudnn_benchmark=run.cudnn_benchmark)
        trainer = Trainer(run, probes, loader, world)
        if world.is_rank_zero:
            write_json(config.run_dir / "config.json", public(run))
            say(
                f"linear probes of {weights.title()} at {size} pixels: "
                f"{len(setting.train)} training and {len(setting.val)} validation images, "
                f"{len(setting.classes)} classes, {run.epochs} epochs of {len(loader)} steps"
            )
        stopped_by = trainer.fit()
        if stopped_by is not None:
            if world.is_rank_zero:
                say(trainer.stop_message(stopped_by))
            return SUCCESS
        share = share_of_batch(config.batch_size, world.size)
        with setting.loader(setting.val, ViewConfig.evaluation(size), share) as val_loader:
            found, images = accuracies(
                probes,
                val_loader,
                setting.precision,
                world=world,
                progress=setting.progress,
            )
        if world.is_rank_zero:
            result = _result(run, setting, found, images)
            write_json(config.run_dir / "linear.json", result)
            _draw(run, weights, found, config.run_dir / "layers.png")
            print_table(weights, found, images)
            say(f"done in {duration(time.monotonic() - began)}; {config.run_dir / 'linear.json'}")
            write_result("linear", result, config.json, config.weights)
    return SUCCESS


def _train_loader(config: LinearConfig, setting: Evaluation, views: ViewConfig) -> Loader:
    """The loader of the training images: whole batches in a new order each epoch."""
    share = share_of_batch(config.batch_size, setting.world.size)
    loader = setting.loader(setting.train, views, share, shuffle=True, drop_last=True)
    if len(loader) == 0:
        raise InvalidInput(
            f"`batch_size` must be at most the number of training images, {len(setting.train)}, "
            f"got {config.batch_size}."
        )
    return loader


def _recalibrated(
    config: LinearConfig, setting: Evaluation, trunk: Trunk, size: int
) -> tuple[Trunk, int]:
    """A copy of the trunk with BatchNorm statistics of clean images, and the number of images."""
    trunk = copy.deepcopy(trunk)
    with _train_loader(config, setting, ViewConfig.evaluation(size)) as loader:
        images = recalibrate(
            trunk, loader, setting.precision, images=config.recalibrate, world=setting.world
        )
    return trunk, images


def _result(
    run: LinearRun, setting: Evaluation, found: dict[str, Accuracy], images: int
) -> dict[str, Any]:
    """linear.json: top-1 by layer at the top level, the rest under names of their own."""

    def by_layer(prefix: str, figure: str) -> dict[str, float]:
        return {
            layer: getattr(found[prefix + layer], figure)
            for layer in LAYERS
            if prefix + layer in found
        }

    result: dict[str, Any] = {
        **by_layer("", "top1"),
        "top5": by_layer("", "top5"),
        "images": {"train": len(setting.train), "val": images},
    }
    if run.recalibrate:
        prefix = f"{RECALIBRATED}_"
        result[RECALIBRATED] = {
            "over": run.recalibrate,
            **by_layer(prefix, "top1"),
            "top5": by_layer(prefix, "top5"),
        }
    return {
        **result,
        "protocol": run.protocol,
        "epochs": run.epochs,
        "batch_size": run.batch_size,
        "learning_rate": run.optimizer.learning_rate,
        "seed": run.seed,
        "view_size": run.view_size,
        "weights": run.weights,
        "classes": list(setting.classes),
    }


def _series(name: str, found: dict[str, Accuracy]) -> dict[str, dict[str, Accuracy]]:
    """The accuracies by layer, of the trunk and of its recalibrated copy."""
    rows: dict[str, dict[str, Accuracy]] = {}
    for label, prefix in ((name, ""), (f"{name}, recalibrated", f"{RECALIBRATED}_")):
        row = {layer: found[prefix + layer] for layer in LAYERS if prefix + layer in found}
        if row:
            rows[label] = row
    return rows


def print_table(weights: Weights, found: dict[str, Accuracy], images: int) -> None:
    """Print top-1 and top-5 by layer, and the paper's rows below."""
    rows: dict[str, list[str]] = {}
    for label, row in _series(weights.title(), found).items():
        for figure in ("top1", "top5"):
            rows[f"{label}, {figure.replace('top', 'top-')}"] = [
                f"{getattr(row[layer], figure):.2f}" if layer in row else "" for layer in LAYERS
            ]
    for paper in PAPER_ROWS:
        values = {"conv4": paper.conv4, "conv5": paper.conv5}
        rows[f"paper: {paper.method}, {paper.pretraining}, top-1"] = [
            f"{values[layer]:.1f}" if values.get(layer) is not None else "" for layer in LAYERS
        ]
    width = max(map(len, rows))
    print(f"{f'accuracy on {images} images, per cent':{width}}", *(f"{x:>6}" for x in LAYERS))
    for label, cells in rows.items():
        print(f"{label:{width}}", *(f"{cell:>6}" for cell in cells))
    print("The paper's rows: ResNet-50, ImageNet's 50 000 validation images.", flush=True)


def _draw(run: LinearRun, weights: Weights, found: dict[str, Accuracy], out: pathlib.Path) -> None:
    """Write layers.png; with the paper's rows where the data has ImageNet's number of classes."""
    series = {
        label: {layer: accuracy.top1 for layer, accuracy in row.items()}
        for label, row in _series(weights.title(), found).items()
    }
    if run.classes == IMAGENET_CLASSES:
        for paper in PAPER_ROWS:
            if paper.conv4 is not None and paper.conv5 is not None:
                label = f"paper: {paper.method}, {paper.pretraining}"
                series[label] = {"conv4": paper.conv4, "conv5": paper.conv5}
    layers_picture(
        series,
        out,
        layers=LAYERS,
        chance=100 / run.classes,
        title=f"linear probes, {run.epochs} epochs, {run.classes} classes",
    )

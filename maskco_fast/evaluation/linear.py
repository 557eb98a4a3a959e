"""Training and testing of linear probes on frozen trunks.

The training loop is the one of pre-training, `Trainer`: the probes are a `Method` whose trunks are
frozen and outside of the checkpoint.
"""

import math
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional

from maskco_fast.evaluation.features import check_labels, first_occurrences
from maskco_fast.evaluation.probes import LAYERS, Probes, hits
from maskco_fast.loaders import Batch, Loader, ViewConfig
from maskco_fast.loaders.system.progress import Progress, no_progress
from maskco_fast.methods.base import Method
from maskco_fast.networks.resnet import Trunk
from maskco_fast.training.config import MAY_CHANGE, RunConfig
from maskco_fast.training.devices import Precision, autocast
from maskco_fast.training.distributed import World
from maskco_fast.training.optimizer import OptimizerConfig

Protocol = Literal["multi", "last"]


@dataclass(frozen=True, kw_only=True)
class ProtocolValues:
    """The published settings of a protocol (docs/method.md)."""

    epochs: int
    optimizer: OptimizerConfig


PROTOCOLS: Mapping[str, ProtocolValues] = {
    # OpenSelfSup's: the paper prints a rate of .1 and says that it uses this configuration.
    "multi": ProtocolValues(
        epochs=90,
        optimizer=OptimizerConfig(
            learning_rate=0.01,
            momentum=0.9,
            nesterov=True,
            weight_decay=1e-4,
            decay_biases=False,
            schedule="step",
            milestones=(30 / 90, 60 / 90),
        ),
    ),
    "last": ProtocolValues(
        epochs=100,
        optimizer=OptimizerConfig(
            learning_rate=30.0,
            momentum=0.9,
            weight_decay=0.0,
            schedule="step",
            milestones=(60 / 100, 80 / 100),
        ),
    ),
}
"""By the name that `--protocol` takes."""

OWN = "own"
RECALIBRATED = "recalibrated"
"""Names of the trunks: with the run's BatchNorm statistics, and with recomputed ones."""


@dataclass(frozen=True, kw_only=True)
class LinearRun(RunConfig):
    """The probes' run, as `Trainer` takes it and config.json holds it."""

    run_dir: pathlib.Path = field(default=pathlib.Path("runs/linear"), metadata=MAY_CHANGE)
    protocol: Protocol = "multi"
    epochs: int = 0
    """Passes over the training images."""
    view_size: int = 0
    labels: str = ""
    classes: int = 0
    recalibrate: int = 0
    """Images over which the statistics of the second trunk were computed; 0 without one."""
    weights: dict[str, Any] = field(default_factory=dict)
    """Description of the weights."""
    trunk_digest: str = ""
    """SHA-256 of the trunk's weights: a run resumes with the same ones only."""


class LinearProbes(Method):
    """Probes of one or two frozen trunks, trained together; their losses are summed."""

    recipe_values: ClassVar = {}

    def __init__(
        self,
        trunks: Mapping[str, Trunk],
        protocol: Protocol,
        *,
        size: int,
        classes: int,
        seed: int,
    ) -> None:
        """`trunks`: by name, frozen, on the run's device. `size`: side of the views, pixels."""
        super().__init__()
        self.views = ViewConfig.supervised(size)
        self.classes = classes
        self.trunks = Frozen(trunks)
        shapes = self.trunks.shapes(size)
        self._probes = {name: Probes(protocol, shapes, classes, seed=seed) for name in trunks}
        self.query = nn.ModuleDict(self._probes)

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return `loss`, the sum over the probes, and each probe's accuracy on the batch."""
        scalars = {}
        losses = []
        for name, logits in self.logits(batch.views[0]).items():
            losses.append(functional.cross_entropy(logits, batch.target))
            correct = logits.detach().argmax(1) == batch.target
            scalars[f"accuracy_{name}"] = correct.float().mean()
        return {"loss": torch.stack(losses).sum(), **scalars}

    def logits(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return each probe's logits (N, classes) by name: conv1, ..., recalibrated_conv1, ...

        Each trunk computes its maps once, for all of its probes.
        """
        return {
            layer if name == OWN else f"{name}_{layer}": logits
            for name, probes in self._probes.items()
            for layer, logits in probes(self.trunks.maps(name, images)).items()
        }

    def chance_loss(self, batch_size: int) -> float:
        """Return ln(classes) for each probe."""
        count = sum(len(probes) for probes in self._probes.values())
        return count * math.log(self.classes)

    def after_step(self, progress: float) -> None:
        """Do nothing: only the probes are trained."""


class Frozen:
    """Frozen trunks by name. Not a module, so that they are in no state dict."""

    def __init__(self, trunks: Mapping[str, Trunk]) -> None:
        self._trunks = dict(trunks)

    @torch.no_grad()
    def maps(self, name: str, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the maps of `LAYERS` of one trunk."""
        return dict(zip(LAYERS, self._trunks[name].maps(images), strict=True))

    def shapes(self, size: int) -> dict[str, tuple[int, int]]:
        """Return channels and side of each map, for views of side `size` pixels."""
        name, trunk = next(iter(self._trunks.items()))
        device = next(trunk.parameters()).device
        maps = self.maps(name, torch.zeros(1, 3, size, size, device=device))
        return {layer: (value.shape[1], value.shape[2]) for layer, value in maps.items()}


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """A probe's accuracy, per cent."""

    top1: float
    top5: float
    """Share of images whose class is among the first five, or among all if there are fewer."""


@torch.no_grad()
def accuracies(
    method: LinearProbes,
    loader: Loader,
    precision: Precision,
    *,
    world: World | None = None,
    progress: Progress = no_progress,
) -> tuple[dict[str, Accuracy], int]:
    """Return the accuracy of each probe, by name, and the number of images of all ranks.

    BatchNorm is in eval mode meanwhile. Every image counts once, see `first_occurrences`. All ranks
    of `world` call this.
    """
    world = world if world is not None else World()
    device = torch.device(loader.config.device)
    was_training = method.training
    method.eval()
    names: list[str] = []
    found: list[torch.Tensor] = []  # (N, probes, 2) bool per batch
    indices = [torch.empty(0, dtype=torch.int64)]
    total = len(loader)
    for number, batch in enumerate(loader, 1):
        check_labels(batch.target, loader)
        with autocast(device, precision):
            logits = method.logits(batch.views[0])
        names = list(logits)
        found.append(torch.stack([hits(one, batch.target) for one in logits.values()], 1))
        indices.append(batch.index.cpu())
        progress("batches of validation images tested", number, total)
    method.train(was_training)
    kept = first_occurrences(torch.cat(indices), world)
    own = (torch.cat(found).cpu()[kept].sum(0), len(kept), names) if found else None
    shares = [share for share in world.gather_objects(own) if share is not None]
    images = sum(count for _, count, _ in shares)
    percent = 100 * torch.stack([share for share, _, _ in shares]).sum(0).double() / images
    return {
        name: Accuracy(top1=top1, top5=top5)
        for name, (top1, top5) in zip(shares[0][2], percent.tolist())
    }, images

"""The `knn` command: k-nearest-neighbour accuracy of a frozen trunk."""

from dataclasses import dataclass
from typing import Any

from maskco_fast.errors import SUCCESS, say
from maskco_fast.evaluation.features import Features, extract, pooled
from maskco_fast.evaluation.knn import SETTINGS, KnnSetting, knn_top1
from maskco_fast.evaluation.options import Evaluation, EvaluationOptions, evaluation
from maskco_fast.evaluation.recalibrate import recalibrate
from maskco_fast.evaluation.results import write_result
from maskco_fast.evaluation.weights import Weights, frozen_trunk
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import Dataset, ViewConfig
from maskco_fast.networks.resnet import Trunk


@dataclass(frozen=True, kw_only=True)
class KnnConfig(EvaluationOptions):
    """Classify validation images by their nearest training images (cosine, weighted votes)."""

    k: int = 20
    """Neighbours that vote. The settings 20/.07 and 200/.1 are reported in any case."""
    temperature: float = 0.07
    """Divides the cosine similarity in a vote's weight."""
    batch_size: int = 256
    """Images a batch on each process."""
    json: str | None = None
    """Also write the result to this file; "-" for stdout. A run folder that `weights` names gets it
    as knn.json in any case."""

    def __post_init__(self) -> None:
        super().__post_init__()
        KnnSetting(k=self.k, temperature=self.temperature)
        if self.batch_size < 1:
            raise InvalidInput(f"`batch_size` must be at least 1, got {self.batch_size}.")


def knn(config: KnnConfig) -> int:
    """Print and write the accuracy of each setting; returns the exit code.

    Under torchrun every process encodes and searches its share of the images.
    """
    with evaluation(config) as setting:
        weights = config.read_weights()
        size = config.size_for(weights)
        trunk = frozen_trunk(weights).to(setting.device)
        result = {
            **_measure(config, setting, trunk, size),
            "classes": list(setting.classes),
            "view_size": size,
            "weights": weights.description,
        }
        if config.recalibrate:
            with setting.loader(
                setting.train,
                ViewConfig.evaluation(size),
                min(config.batch_size, max(1, len(setting.train) // setting.world.size)),
                shuffle=True,
                drop_last=True,
            ) as loader:
                images = recalibrate(
                    trunk, loader, setting.precision, images=config.recalibrate, world=setting.world
                )
            result["recalibrated"] = {"over": images, **_measure(config, setting, trunk, size)}
        if setting.world.is_rank_zero:
            _report(config, weights, result)
    return SUCCESS


def _measure(config: KnnConfig, setting: Evaluation, trunk: Trunk, size: int) -> dict[str, Any]:
    """Encode both sets and return the chosen setting's accuracy, and that of all settings."""

    def features(dataset: Dataset, name: str) -> Features:
        with setting.loader(dataset, ViewConfig.evaluation(size), config.batch_size) as loader:
            found = extract(
                pooled(trunk),
                loader,
                setting.precision,
                world=setting.world,
                progress=setting.progress,
                stage=f"batches of {name} images encoded",
            )
        assert found is not None  # nothing stops it
        return found

    train = features(setting.train, "training")
    val = features(setting.val, "validation")
    counts = [sum(setting.world.gather_objects(len(one))) for one in (train, val)]
    chosen = KnnSetting(k=config.k, temperature=config.temperature)
    settings = [chosen, *(one for one in SETTINGS if one != chosen and one.k <= counts[0])]
    top1 = knn_top1(
        train,
        val,
        settings,
        classes=len(setting.classes),
        device=setting.device,
        world=setting.world,
    )
    rows = [
        {"top1": accuracy, "k": one.k, "temperature": one.temperature}
        for one, accuracy in zip(settings, top1)
    ]
    return {**rows[0], "settings": rows, "images": {"train": counts[0], "val": counts[1]}}


def _report(config: KnnConfig, weights: Weights, result: dict[str, Any]) -> None:
    """Print the accuracies, and write the JSON."""
    images = result["images"]
    say(
        f"k-NN of {weights.description['source']} {weights.trunk} at {result['view_size']} pixels: "
        f"{images['train']} training and {images['val']} validation images, "
        f"{len(result['classes'])} classes"
    )
    for label, measured in (("", result), (" recalibrated", result.get("recalibrated"))):
        for row in measured["settings"] if measured else ():
            say(f"top-1 {row['top1']:.2f} %{label} (k {row['k']}, T {row['temperature']:g})")
    write_result("knn", result, config.json, config.weights)

"""The `distance` command: the ResNet distance between two crops of an image (the paper's Table 1).

Four variants, since the paper leaves the formula open.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from maskco_fast.demo.shards import demo_val_shards
from maskco_fast.errors import SUCCESS
from maskco_fast.evaluation.distance import VARIANTS, distance_views, resnet_distance
from maskco_fast.evaluation.paper import PAPER_DISTANCES
from maskco_fast.evaluation.results import write_result
from maskco_fast.evaluation.weights import frozen_trunk, read_weights
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import RemoteConfig, make_loader, open_dataset
from maskco_fast.progress import ProgressLines
from maskco_fast.training.devices import choose_device, configure_cuda


@dataclass(frozen=True, kw_only=True)
class DistanceConfig:
    """Measure how far apart the conv5 features of two random crops of an image are.

    The paper's Table 1 has torchvision's resnet50 with IMAGENET1K_V1: pass its state dict.
    """

    weights: str
    """A run folder, a checkpoint, an exported file, a torchvision state dict, or "random"."""
    shards: tuple[str, ...] = ()
    """Tar shards: paths, globs, `{0000..0331}` ranges, http(s)://, s3:// and pipe: names, or
    folders of images. None: the validation part of the built-in demo set."""
    network: Literal["query", "key"] = "query"
    """The trained network, or its moving average."""
    images: int = 5000
    """Images to measure, in the order of the seed; fewer shards give fewer."""
    size: int = 224
    """Side of the crops, pixels; a multiple of 32."""
    batch_size: int = 64
    """Images a batch."""
    seed: int = 0
    """Seed of the order and of the crops."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    json: str | None = None
    """Write the result here as JSON; "-" for stdout."""
    remote: RemoteConfig = field(default_factory=RemoteConfig)

    def __post_init__(self) -> None:
        for name in ("images", "batch_size"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.size < 32 or self.size % 32:
            raise InvalidInput(f"`size` must be a positive multiple of 32, got {self.size}.")


def distance(config: DistanceConfig) -> int:
    """Measure and print the distances; returns the exit code."""
    weights = read_weights(config.weights, network=config.network)
    device = choose_device(config.device)
    configure_cuda(device)
    trunk = frozen_trunk(weights).to(device)
    progress = ProgressLines()
    shards = config.shards or demo_val_shards(progress=progress)
    dataset = open_dataset(shards, progress=progress, remote=config.remote)
    with make_loader(
        dataset,
        min(config.batch_size, config.images, len(dataset)),
        views=distance_views(config.size),
        device=device,
        seed=config.seed,
        rank=0,
        world_size=1,
        drop_last=False,
    ) as loader:
        values_N = resnet_distance(trunk, loader, images=config.images)
    result: dict[str, Any] = {
        **{name: float(values.double().mean()) for name, values in values_N.items()},
        "standard_error": {name: _standard_error(values) for name, values in values_N.items()},
        "images": len(values_N["map_l2_mean"]),
        "size": config.size,
        "seed": config.seed,
        "weights": weights.description,
    }
    write_result("distance", result, config.json, config.weights)
    if config.json != "-":
        print(_as_text(result))
    return SUCCESS


def _standard_error(values_N: torch.Tensor) -> float | None:
    """Of the mean: the deviation over the images by the root of their number; None for one."""
    if len(values_N) < 2:
        return None
    return float(values_N.double().std()) / len(values_N) ** 0.5


def _as_text(result: dict[str, Any]) -> str:
    lines = [f"{result['images']} images, two crops of {result['size']} pixels each"]
    for name, meaning in VARIANTS.items():
        error = result["standard_error"][name]
        spread = "" if error is None else f" ± {error:.4f}"
        lines.append(f"  {name:<18} {result[name]:.4f}{spread:<10} {meaning}")
    printed = ", ".join(f"{name} {value:.4f}" for name, value in PAPER_DISTANCES.items())
    lines.append(f"the paper prints, for an unnamed formula: {printed}")
    return "\n".join(lines)

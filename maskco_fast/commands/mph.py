"""The `mph` command: conv5 and MPH maps of masked images (the paper's Figures 6 and 7)."""

import pathlib
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from maskco_fast.demo.shards import demo_val_shards
from maskco_fast.errors import SUCCESS, say
from maskco_fast.evaluation.mask_prediction import LayerMaps, mask_centre, mask_responses
from maskco_fast.evaluation.results import write_result
from maskco_fast.evaluation.weights import frozen_mph, frozen_trunk, read_weights
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.kernels.views import IMAGENET_MEAN, IMAGENET_STD
from maskco_fast.loaders import RemoteConfig, ViewConfig, make_loader, open_dataset
from maskco_fast.pictures.mph import mph_picture
from maskco_fast.progress import ProgressLines


@dataclass(frozen=True, kw_only=True)
class MphConfig:
    """Draw what the mask prediction head makes of images whose centre is masked."""

    weights: str
    """A run folder, a checkpoint, an exported file, a torchvision state dict, or "random"."""
    shards: tuple[str, ...] = ()
    """Tar shards: paths, globs, `{0000..0331}` ranges, http(s)://, s3:// and pipe: names, or
    folders of images. None: the validation part of the built-in demo set."""
    network: Literal["query", "key"] = "query"
    """The trained network, or its moving average."""
    out: pathlib.Path = pathlib.Path("mph.png")
    """The PNG file to write."""
    count: int = 4
    """Images to draw and to measure: the first ones of the epoch."""
    size: int | None = None
    """Side of the images, pixels; a multiple of 32. None: that of the run, 224 where unknown."""
    seed: int = 0
    """Seed of the order."""
    json: str | None = None
    """Write the norm ratios and cosines here as JSON; "-" for stdout."""
    remote: RemoteConfig = field(default_factory=RemoteConfig)

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InvalidInput(f"`count` must be at least 1, got {self.count}.")
        if self.size is not None and (self.size < 32 or self.size % 32):
            raise InvalidInput(f"`size` must be a positive multiple of 32, got {self.size}.")


def mph(config: MphConfig) -> int:
    """Write the picture and print the comparison; returns the exit code."""
    weights = read_weights(config.weights, network=config.network)
    size = config.size or weights.description.get("view_size") or 224
    head = frozen_mph(weights) if weights.mph_state else None
    if head is None:
        say("these weights have no mask prediction head: conv5 alone is shown")
    names, images = _images(config, size)
    layers = mask_responses(frozen_trunk(weights), head, images)
    result = _result(names, layers)
    result.update(images=len(names), size=size, weights=weights.description)
    _draw(config.out, names, images, layers, weights.description)
    write_result("mph", result, config.json, config.weights)
    if config.json != "-":
        print(_as_text(result, layers))
        print(f"{config.out}: {len(names)} images")
    return SUCCESS


def _images(config: MphConfig, size: int) -> tuple[list[str], torch.Tensor]:
    """The keys of the first images of the epoch, and their centre crops (N, 3, size, size)."""
    progress = ProgressLines()
    shards = config.shards or demo_val_shards(progress=progress)
    dataset = open_dataset(shards, progress=progress, remote=config.remote)
    with make_loader(
        dataset,
        min(config.count, len(dataset)),
        views=ViewConfig.evaluation(size),
        seed=config.seed,
        rank=0,
        world_size=1,
    ) as loader:
        batch = next(iter(loader))
        names = []
        for position in batch.index.tolist():
            shard, number = dataset.locate(position)
            names.append(shard.key(number))
        return names, batch.views[0].clone()


def _result(names: list[str], layers: dict[str, LayerMaps]) -> dict[str, Any]:
    """The means over the images, and each image's numbers."""
    result: dict[str, Any] = {}
    per_image: list[dict[str, Any]] = [{"key": name} for name in names]
    for layer, maps in layers.items():
        for name, values_N in (("norm_ratio", maps.norm_ratio), ("cosine", maps.cosine)):
            result[f"{layer}_{name}"] = float(values_N.mean())
            for entry, value in zip(per_image, values_N.tolist()):
                entry[f"{layer}_{name}"] = value
    result["per_image"] = per_image
    return result


def _draw(
    out: pathlib.Path,
    names: list[str],
    images: torch.Tensor,
    layers: dict[str, LayerMaps],
    description: dict[str, Any],
) -> None:
    known = [
        str(description[name])
        for name in ("method", "recipe", "trunk", "network", "source")
        if description.get(name) is not None
    ]
    step = description.get("step")
    title = ", ".join([*known, *([f"step {step}"] if step is not None else [])])
    mph_picture(
        names,
        _levels(images),
        _levels(mask_centre(images)),
        layers,
        out,
        title=f"{title}   mean |f| over the channels; masked against clean inside the region",
    )


def _levels(images: torch.Tensor) -> np.ndarray:
    """Normalised images (N, 3, S, S) as levels (N, S, S, 3) uint8."""
    levels = images.permute(0, 2, 3, 1).numpy() * IMAGENET_STD + IMAGENET_MEAN
    return (255 * levels).round().clip(0, 255).astype(np.uint8)


def _as_text(result: dict[str, Any], layers: dict[str, LayerMaps]) -> str:
    lines = [f"masked against clean inside the centre region, mean of {result['images']} images:"]
    for layer in layers:
        ratio, cosine = result[f"{layer}_norm_ratio"], result[f"{layer}_cosine"]
        lines.append(f"  {layer:<6} ratio of norms {ratio:.3f}   cosine {cosine:.3f}")
    return "\n".join(lines)

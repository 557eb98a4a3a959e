"""The `views` command: draw a few images with their crops, mask and boxes."""

import pathlib
from dataclasses import dataclass, field

from maskco_fast.errors import SUCCESS
from maskco_fast.loaders import RemoteConfig, ViewConfig, open_dataset
from maskco_fast.pictures.views import draw_views


@dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """Draw the views of a few images: both crops, the masked query, and the key with its boxes."""

    shards: tuple[str, ...]
    """Tar shards: paths, globs, `{0000..0331}` ranges, http(s)://, s3:// and pipe: names, or
    folders of images."""
    out: pathlib.Path = pathlib.Path("views.png")
    """The PNG file to write."""
    count: int = 4
    """Images to draw: the first ones of the epoch, and no more than there are."""
    seed: int = 0
    """Seed of the order and of the augmentations."""
    epoch: int = 0
    """Epoch of the order and of the augmentations."""
    loader: str = "auto"
    """The loader that renders the views."""
    index_folder: pathlib.Path | None = None
    """Folder of the shards' indexes. None: the user's cache folder."""
    views: ViewConfig = field(default_factory=ViewConfig.maskco)
    remote: RemoteConfig = field(default_factory=RemoteConfig)


def views(config: ViewsConfig) -> int:
    """Write the picture; returns the exit code."""
    dataset = open_dataset(config.shards, index_folder=config.index_folder, remote=config.remote)
    count = min(config.count, len(dataset))
    draw_views(
        dataset,
        config.views,
        config.out,
        count=count,
        seed=config.seed,
        epoch=config.epoch,
        backend=config.loader,
    )
    print(f"{config.out}: {count} images")
    return SUCCESS

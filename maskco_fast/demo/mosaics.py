"""Shards of 2x2 mosaics of labelled images: of one class, and of four different classes.

`maskco-fast study mosaics` writes OUT/same-*.tar and OUT/mixed-*.tar, with one mosaic for every
image of the shards. In both sets each image is the tile of four mosaics, once in each corner, so
that the sets differ in the company of a tile alone: `same` has four different images of one class,
`mixed` four images of four classes. A method that needs the views of an image to show one thing
loses on `mixed`.

Each tile is an image resized to cover a square and cropped at the centre, by Pillow, bicubic. A
mosaic NNNNNNNNN has the members .jpg (4:4:4), .cls (the class; -1 in `mixed`) and .json, with key
and class of each tile: upper left, upper right, lower left, lower right. The bytes depend on the
images, the options and the versions of NumPy and Pillow.
"""

import io
import json
import pathlib
import tarfile
from dataclasses import dataclass
from typing import Literal

import numpy as np
import tyro
from PIL import Image, ImageOps

from maskco_fast.demo.shards import add_sample
from maskco_fast.errors import SUCCESS, say
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import Dataset, open_dataset
from maskco_fast.loaders.shards.decode import BadImage, decode_pillow
from maskco_fast.loaders.system.files import write_atomically
from maskco_fast.progress import ProgressLines

CORNERS = 4
SWEEPS = 16
"""Exchanges that each corner of the mixed mosaics is offered; most are accepted."""


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Write shards of mosaics of one class, and of four classes, from labelled shards."""

    what: tyro.conf.Positional[Literal["mosaics"]] = "mosaics"
    """What to write."""

    shards: tuple[str, ...]
    """Labelled shards, named as in `train`."""
    out: pathlib.Path
    """Folder of the mosaics' shards."""
    labels: str = "cls"
    """Where an image's label is: cls, json:FIELD, or folder."""
    tile: int = 64
    """Side of a tile, pixels; a mosaic has twice as many."""
    quality: int = 95
    """JPEG quality."""
    seed: int = 0
    """Seed of which images are tiles of a mosaic, and of the mosaics' order."""
    shard_samples: int = 2500
    """Mosaics a shard."""

    def __post_init__(self) -> None:
        for name, low, high in (("tile", 8, 512), ("quality", 1, 100)):
            if not low <= getattr(self, name) <= high:
                raise InvalidInput(
                    f"`{name}` must be in [{low}, {high}], got {getattr(self, name)}."
                )
        if self.shard_samples < 1:
            raise InvalidInput(f"`shard_samples` must be at least 1, got {self.shard_samples}.")


def same_classes(target_N: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Images of N mosaics, (N, 4): four different ones of a class, each image once in each corner.

    `target_N`: the images' classes. The classes must have at least 4 images each.
    """
    rows = []
    for target in np.unique(target_N):
        images = random.permutation(np.flatnonzero(target_N == target))
        shifts = random.choice(len(images), CORNERS, replace=False)
        rows.append(np.stack([np.roll(images, shift) for shift in shifts], 1))
    return random.permutation(np.concatenate(rows))


def mixed_classes(target_N: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Images of N mosaics, (N, 4): of four different classes, each image once in each corner.

    `target_N`: the images' classes, none of which may have more than N // 4.
    """
    count = len(target_N)
    # In the order of the classes, two images a quarter of the set apart are of different classes.
    images = random.permutation(count)
    images = images[np.argsort(target_N[images], kind="stable")]
    rows = np.stack([np.roll(images, corner * (count // CORNERS)) for corner in range(CORNERS)], 1)
    # So far a class always meets the same others: exchange tiles of two mosaics where both stay
    # mixed.
    for _ in range(SWEEPS):
        for corner in range(CORNERS):
            one, other = random.permutation(count)[: count // 2 * 2].reshape(2, -1)
            classes = target_N[rows]
            rest = np.delete(classes, corner, axis=1)
            fits = (classes[one, corner, None] != rest[other]).all(1)
            fits &= (classes[other, corner, None] != rest[one]).all(1)
            one, other = one[fits], other[fits]
            rows[one, corner], rows[other, corner] = rows[other, corner], rows[one, corner]
    return random.permutation(rows)


MOSAICS = {"same": same_classes, "mixed": mixed_classes}
"""By the name of the set."""


def check_classes(dataset: Dataset) -> None:
    """Raise InvalidInput where a class has too few images for `same` or too many for `mixed`."""
    counts = np.bincount(dataset.samples["target"])
    assert dataset.classes is not None  # opened with `labels`
    for number in np.flatnonzero(counts):
        if not CORNERS <= counts[number] <= len(dataset) // CORNERS:
            raise InvalidInput(
                f"Every class must have between {CORNERS} images and a quarter of all "
                f"{len(dataset)}, got {counts[number]} of class {dataset.classes[number]!r}. "
                "Leave out classes or images."
            )


def read_tile(dataset: Dataset, index: int, side: int) -> Image.Image:
    """Image `index` as a square of `side` pixels; InvalidInput where it does not decode."""
    try:
        image = Image.fromarray(decode_pillow(dataset.read(index)))
    except BadImage as error:
        shard, number = dataset.locate(index)
        raise InvalidInput(
            f"{shard.key(number)} in {shard.path} must be an image, got one that {error}. "
            "Leave it out of the shards."
        ) from error
    return ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)


def draw_mosaic(dataset: Dataset, images: np.ndarray, side: int) -> Image.Image:
    """The mosaic of four images with tiles of `side` pixels, row by row."""
    mosaic = Image.new("RGB", (2 * side, 2 * side))
    for corner, index in enumerate(images.tolist()):
        place = (corner % 2 * side, corner // 2 * side)
        mosaic.paste(read_tile(dataset, index, side), place)
    return mosaic


def members(dataset: Dataset, images: np.ndarray, options: StudyConfig) -> dict[str, bytes]:
    """A mosaic's members by extension."""
    jpeg = io.BytesIO()
    mosaic = draw_mosaic(dataset, images, options.tile)
    mosaic.save(jpeg, "JPEG", quality=options.quality, subsampling="4:4:4")
    assert dataset.classes is not None  # opened with `labels`
    targets = dataset.samples["target"][images].tolist()
    located = [dataset.locate(index) for index in images.tolist()]
    described = {
        "keys": [shard.key(number) for shard, number in located],
        "classes": [dataset.classes[target] for target in targets],
    }
    label = targets[0] if len(set(targets)) == 1 else -1
    return {
        "jpg": jpeg.getvalue(),
        "json": json.dumps(described).encode(),
        "cls": str(label).encode(),
    }


def write_mosaics(dataset: Dataset, name: str, options: StudyConfig) -> list[pathlib.Path]:
    """Write the set `name`, "same" or "mixed"; returns the paths of its shards."""
    random = np.random.default_rng((options.seed, list(MOSAICS).index(name)))
    rows = MOSAICS[name](dataset.samples["target"], random)
    starts = range(0, len(rows), options.shard_samples)
    progress = ProgressLines()
    paths = []
    for shard, start in enumerate(starts):
        path = options.out / f"{name}-{shard:04d}-of-{len(starts):04d}.tar"
        with (
            write_atomically(path) as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for number in range(start, min(start + options.shard_samples, len(rows))):
                add_sample(tar, f"{number:09d}", members(dataset, rows[number], options))
                progress(f"{name} mosaics written", number + 1, len(rows))
        paths.append(path)
    return paths


def study(config: StudyConfig) -> int:
    """Write both sets; returns the exit code.

    InvalidInput where a class has too few or too many images, or an image does not decode.
    """
    dataset = open_dataset(config.shards, labels=config.labels, progress=ProgressLines())
    check_classes(dataset)
    for name in MOSAICS:
        paths = write_mosaics(dataset, name, config)
        say(f"{len(dataset)} {name} mosaics in {len(paths)} shards: {paths[0]}")
    return SUCCESS

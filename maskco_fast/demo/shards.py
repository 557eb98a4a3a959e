"""The demo set's shards: scenes as JPEGs in webdataset tars, drawn offline on first use."""

import io
import json
import os
import pathlib
import tarfile
from collections.abc import Mapping

from PIL import Image

from maskco_fast.demo.scenes import VERSION, scene
from maskco_fast.kernels.compiler.cache import cache_folder
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders.system.files import write_atomically
from maskco_fast.loaders.system.progress import Progress, no_progress

QUALITY = 90
"""JPEG quality of the members."""
VAL_SAMPLES = 1024
VAL_SEED = 1
"""Scenes and seed of the validation part."""


def demo_folder() -> pathlib.Path:
    """The demo set's default folder: `demo` in the cache folder (`$MASKCO_FAST_CACHE`, …)."""
    return cache_folder("demo")


def demo_shards(
    folder: str | os.PathLike[str] | None = None,
    *,
    samples: int = 3072,
    shards: int = 4,
    size: tuple[int, int] = (128, 160),
    seed: int = 0,
    progress: Progress = no_progress,
) -> list[pathlib.Path]:
    """Return the paths of the demo set's shards, after drawing those that `folder` does not hold.

    `folder`: None for `demo_folder()`. `samples`: scenes in all shards together. `size`: smallest
    and largest side, pixels. Scene i has the members `{i:09d}.jpg`, `.json` (see `scene`) and
    `.cls` (the context's number as text). Each shard holds consecutive scenes and is written
    atomically, so that interrupted or concurrent calls do no harm. `progress` is called after every
    64th scene.

    Raises InvalidInput for sizes that make no set, and OSError if the folder is not writable.
    """
    if not 1 <= shards <= samples:
        raise InvalidInput(
            f"demo_shards: `shards` must be in [1, samples], "
            f"got {shards} shards for {samples} samples."
        )
    if not 32 <= size[0] <= size[1] <= 1024:
        raise InvalidInput(
            f"demo_shards: `size` must be (low, high) with 32 <= low <= high <= 1024, got {size}."
        )
    # The name holds every choice, so that a folder never mixes two sets.
    name = f"v{VERSION}-seed{seed}-{samples}x{size[0]}-{size[1]}"
    root = pathlib.Path(folder if folder is not None else demo_folder()) / name
    root.mkdir(parents=True, exist_ok=True)
    bounds = [samples * shard // shards for shard in range(shards + 1)]
    paths = [root / f"demo-{shard:04d}-of-{shards:04d}.tar" for shard in range(shards)]
    for path, start, stop in zip(paths, bounds, bounds[1:]):
        if not path.exists():
            _write_shard(path, range(start, stop), seed, size, progress, samples)
    return paths


def demo_val_shards(
    folder: str | os.PathLike[str] | None = None, *, progress: Progress = no_progress
) -> list[pathlib.Path]:
    """The demo set's validation part: 1024 other scenes, from another seed than `demo_shards`."""
    return demo_shards(folder, samples=VAL_SAMPLES, shards=1, seed=VAL_SEED, progress=progress)


def _write_shard(
    path: pathlib.Path,
    indices: range,
    seed: int,
    size: tuple[int, int],
    progress: Progress,
    samples: int,
) -> None:
    """Draw the scenes `indices` into the shard `path`.

    Another process may do the same at the same time: both write the same bytes.
    """
    with (
        write_atomically(path) as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for index in indices:
            pixels, label = scene(seed, index, size)
            jpeg = io.BytesIO()
            Image.fromarray(pixels).save(jpeg, "JPEG", quality=QUALITY)
            members = {
                "jpg": jpeg.getvalue(),
                "json": json.dumps(label).encode(),
                "cls": b"%d" % label["context"],
            }
            add_sample(tar, f"{index:09d}", members)
            if (index + 1) % 64 == 0:
                progress("scenes drawn", index + 1, samples)


def add_sample(tar: tarfile.TarFile, key: str, members: Mapping[str, bytes]) -> None:
    """Append a sample's members, by extension, without time and owner.

    A shard's bytes are thus the same every time.
    """
    for extension, data in members.items():
        info = tarfile.TarInfo(f"{key}.{extension}")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))

"""The built-in demo set: the scenes of `scenes.py` as JPEGs in webdataset shards, made offline on
first use."""

import io
import json
import os
import pathlib
import tarfile

from PIL import Image

from maskco_fast.demo.scenes import VERSION, scene
from maskco_fast.kernels.compiler.cache import cache_folder
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders.system.files import write_atomically
from maskco_fast.loaders.system.progress import Progress, no_progress

QUALITY = 90
"""JPEG quality of the members."""


def demo_folder() -> pathlib.Path:
    """Where the demo set is kept unless told otherwise: `demo` in the user's cache folder
    (`$MASKCO_FAST_CACHE`, …)."""
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
    """The paths of the demo set's shards, drawing those that `folder` (default: `demo_folder()`)
    does not hold yet.

    Scene i is member `{i:09d}` with `.jpg`, `.json` (see `scene`) and `.cls` (the context's number
    as text); each shard holds a run of consecutive scenes. A shard appears under its name only when
    it is whole, so that a run that is cut off or a second process at the same time does no harm.
    `progress` is called after every 64th scene. ValueError for numbers that make no set; OSError
    where the folder cannot be written.
    """
    if not 1 <= shards <= samples:
        raise InvalidInput(
            f"demo_shards: {samples} samples do not fill {shards} shards; give 1 <= shards <= samples"
        )
    if not 32 <= size[0] <= size[1] <= 1024:
        raise InvalidInput(
            f"demo_shards: size is {size}; it wants 32 <= low <= high <= 1024 pixels"
        )
    # The name says what is inside, so that another choice makes another set and never half of each.
    name = f"v{VERSION}-seed{seed}-{samples}x{size[0]}-{size[1]}"
    root = pathlib.Path(folder if folder is not None else demo_folder()) / name
    root.mkdir(parents=True, exist_ok=True)
    bounds = [samples * shard // shards for shard in range(shards + 1)]
    paths = [root / f"demo-{shard:04d}-of-{shards:04d}.tar" for shard in range(shards)]
    for path, start, stop in zip(paths, bounds, bounds[1:]):
        if not path.exists():
            _write_shard(path, range(start, stop), seed, size, progress, samples)
    return paths


def _write_shard(
    path: pathlib.Path,
    indices: range,
    seed: int,
    size: tuple[int, int],
    progress: Progress,
    samples: int,
) -> None:
    """Draw scenes into the shard `path`. Another process may do so too: the files are equal, the
    last one stays."""
    with (
        write_atomically(path) as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for index in indices:
            pixels, label = scene(seed, index, size)
            jpeg = io.BytesIO()
            Image.fromarray(pixels).save(jpeg, "JPEG", quality=QUALITY)
            members = (
                ("jpg", jpeg.getvalue()),
                ("json", json.dumps(label).encode()),
                ("cls", b"%d" % label["context"]),
            )
            for extension, data in members:
                info = tarfile.TarInfo(
                    f"{index:09d}.{extension}"
                )  # no time, no owner: the same bytes every time
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            if (index + 1) % 64 == 0:
                progress("scenes drawn", index + 1, samples)

"""Generated images and tar shards; skips for backends whose packages are missing."""

import io
import pathlib
import tarfile

import numpy as np
import PIL
import pytest
from PIL import Image

pillow_writes_on_request = pytest.mark.skipif(
    tuple(int(part) for part in PIL.__version__.split(".")[:2]) < (10, 2),
    reason="Pillow below 10.2 ignores `restart_marker_blocks` and `keep_rgb`: update it",
)
"""For tests of files with restart intervals or an Adobe segment, which Pillow must write."""


def skip_without_packages(backend: str) -> None:
    """Skip the test where `backend` lacks a package; the reason says how to install it."""
    if backend == "dali":
        pytest.importorskip(
            "nvidia.dali",
            reason="pip install 'maskco-fast[dali]' brings DALI",
            exc_type=ImportError,
        )
    if backend == "ffcv":
        # The module's error says what to install.
        pytest.importorskip("maskco_fast.loaders.backends.ffcv", exc_type=ImportError)


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """(height, width, 3) uint8: waves, edges and a little noise, which JPEG and resizing change."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 32.0
    waves = [
        np.sin(x * random.uniform(0.2, 3) + y * random.uniform(0.2, 3) + random.uniform(0, 6))
        for _ in range(3)
    ]
    image = 128 + 90 * np.stack(waves, -1) + random.normal(0, 4, (height, width, 3))
    image[height // 3 : height // 2, width // 4 : width // 2] = random.integers(0, 256, 3)
    return image.clip(0, 255).astype(np.uint8)


def encode(image: np.ndarray, suffix: str = "jpg", **options: object) -> bytes:
    """Encode an image as a file of the format `suffix`; `options` go to Pillow."""
    buffer = io.BytesIO()
    formats = {
        "jpg": "JPEG",
        "png": "PNG",
        "webp": "WEBP",
        "gif": "GIF",
        "bmp": "BMP",
        "tif": "TIFF",
    }
    Image.fromarray(image).save(buffer, formats[suffix], **options)
    return buffer.getvalue()


def write_tar(
    path: pathlib.Path, members: dict[str, bytes], *, form: int = tarfile.USTAR_FORMAT
) -> pathlib.Path:
    """Write a tar archive of these members; return its path."""
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_shards(
    folder: pathlib.Path,
    shards: int = 2,
    samples: int = 20,
    bad: tuple[int, ...] = (),
    side: int = 64,
) -> list[str]:
    """Write tar shards of generated JPEGs into `folder`; returns their paths.

    `samples` per shard; samples numbered `bad` have a sound header and do not decode.
    """
    paths = []
    for shard in range(shards):
        members = {}
        for number in range(samples):
            key = f"{shard * samples + number:06d}"
            shape = (side + number % 5 * 7, side + number % 3 * 11)
            data = encode(picture(*shape, seed=shard * samples + number), quality=90)
            if shard * samples + number in bad:  # damage the first Huffman table
                table = data.index(b"\xff\xc4") + 5
                data = data[:table] + b"\xff" * 16 + data[table + 16 :]
            members[f"{key}.jpg"] = data
            members[f"{key}.cls"] = str(number % 4).encode()
        paths.append(str(write_tar(folder / f"shard-{shard:04d}.tar", members)))
    return paths

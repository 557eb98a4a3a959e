"""Generated images and tar shards, and which loaders can be tested here."""

import io
import pathlib
import tarfile

import numpy as np
import pytest
from PIL import Image


def skip_without_packages(backend: str) -> None:
    """Skip the test where the loader `backend` lacks a package, saying how to install it."""
    if backend == "dali":
        pytest.importorskip(
            "nvidia.dali",
            reason="pip install 'maskco-fast[dali]' brings DALI",
            exc_type=ImportError,
        )
    if backend == "ffcv":
        pytest.importorskip(
            "maskco_fast.loaders.backends.ffcv", exc_type=ImportError
        )  # whose error says what to install


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """(height, width, 3) uint8: smooth waves with edges and a little noise, so that JPEG and
    resizing have work."""
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
    """The picture as the bytes of an image file."""
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
    """A tar archive of these members."""
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path

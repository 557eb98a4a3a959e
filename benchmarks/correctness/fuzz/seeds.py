"""Sound files of every kind, which the fuzzer damages."""

import functools
import io
import tarfile
from collections.abc import Callable, Mapping

import numpy as np
import simplejpeg
from PIL import Image, features

from benchmarks.correctness.fuzz.mutate import segment

JPEG_OPTIONS: tuple[dict, ...] = (
    {"quality": 90},
    {"quality": 30, "subsampling": 0},
    {"quality": 98, "subsampling": 1, "optimize": True},
    {"quality": 75, "subsampling": 2, "restart_marker_blocks": 3},
    {"quality": 85, "progressive": True},
    {"quality": 60, "comment": b"comment", "exif": b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"},
)
"""Options of Pillow's encoder."""


def picture(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8: waves with noise, and a plain rectangle."""
    y, x = np.mgrid[:height, :width] / 16.0
    waves = [np.sin(x * random.uniform(0.2, 3) + y * random.uniform(0.2, 3)) for _ in range(3)]
    image = 128 + 90 * np.stack(waves, -1) + random.normal(0, 12, (height, width, 3))
    image[: height // 2, : width // 3] = random.integers(0, 256, 3)
    return image.clip(0, 255).astype(np.uint8)


def _save(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@functools.cache
def jpegs() -> tuple[bytes, ...]:
    """JPEGs of every sampling, colour space and kind of scan that encoders here write."""
    random = np.random.default_rng(0)
    files = []
    for options in JPEG_OPTIONS:
        for height, width in ((8, 8), (33, 50), (64, 47)):
            image = Image.fromarray(picture(random, height, width))
            files.append(_save(image, "JPEG", **options))
            files.append(_save(image.convert("L"), "JPEG", quality=options["quality"]))
    image = Image.fromarray(picture(random, 40, 56))
    files.append(_save(image.convert("CMYK"), "JPEG"))
    for sampling in ("440", "411"):
        files.append(simplejpeg.encode_jpeg(np.asarray(image), 80, "RGB", sampling))
    thumbnail = _save(image.resize((16, 12)), "JPEG")
    plain = _save(image, "JPEG")
    files.append(plain[:2] + segment(0xE1, b"Exif\0\0" + thumbnail) + plain[2:])
    files.append(plain[:2] + segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(40)) + plain[2:])
    files.append(
        plain[:2] + segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed" + bytes(20)) + plain[2:]
    )
    return tuple(files)


@functools.cache
def images() -> tuple[bytes, ...]:
    """Small images of every format that is read besides JPEG, in their usual modes."""
    random = np.random.default_rng(1)
    image = Image.fromarray(picture(random, 24, 31))
    files = [
        _save(image, "PNG"),
        _save(image.convert("P"), "PNG", transparency=3),
        _save(image.convert("LA"), "PNG"),
        _save(image.convert("1"), "PNG"),
        _save(Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16)), "PNG"),
        _save(image, "GIF"),
        _save(image, "GIF", save_all=True, append_images=[image.rotate(90)]),
        _save(image, "BMP"),
        _save(image.convert("P"), "BMP"),
        _save(image, "TIFF"),
        _save(image, "PPM"),
        _save(image.convert("L"), "PPM"),
        _save(image, "WEBP"),
        _save(image, "WEBP", lossless=True),
        _save(image.convert("RGBA"), "WEBP", save_all=True, append_images=[image.rotate(90)]),
    ]
    files += [
        _save(image, "TIFF", compression=how)
        for how in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    ]
    if features.check("avif"):
        files.append(_save(image, "AVIF"))
    # Formats that nobody means by an image of a data set; they must be refused.
    files += [
        _save(image, form) for form in ("DDS", "ICO", "PCX", "SGI", "TGA", "EPS", "SPIDER")[:6]
    ]
    return tuple(files)


def tar(members: Mapping[str, bytes], form: int = tarfile.USTAR_FORMAT) -> bytes:
    """A tar archive of these members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@functools.cache
def tars() -> tuple[bytes, ...]:
    """Archives of each format of tar, with long names and labels."""
    small = jpegs()[0]
    members = {"0.jpg": small, "0.cls": b"3", f"{'long/' * 40}1.jpg": small, "1.cls": b"1"}
    members |= {"2.png": images()[0], "2.json": b'{"a": 1}', "käse.jpg": small}
    long_names: Callable[[int], bytes] = lambda form: tar(members, form)  # noqa: E731
    short = {name: data for name, data in members.items() if len(name) < 90}
    return (
        tar(short, tarfile.USTAR_FORMAT),
        long_names(tarfile.GNU_FORMAT),
        long_names(tarfile.PAX_FORMAT),
    )

"""What decoding costs by kind and size of JPEG, by libjpeg-turbo and ours, and what `--decode fast`
gains and changes.

    python benchmarks/decode.py --shards 'in1k-sample-{0000..0003}.tar' [--images 100] [--rounds 7]

The shards' images as they are, then scaled to cover 800 x 600 and 1200 x 900 and encoded anew at
quality 90, plain and progressive. On one thread; rounds are interleaved, times are medians of the
rounds, the spread is their range. Differences are of the two 224-pixel views before their colours
change, in levels; ours are equal to libjpeg's.
"""

import dataclasses
import io
import pathlib
import statistics
import tarfile
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import tyro
from PIL import Image, ImageOps

from maskco_fast.bench.harness import machine
from maskco_fast.kernels.plan import plan
from maskco_fast.kernels.render_jpegs import JpegRenderer
from maskco_fast.kernels.views import ViewConfig
from maskco_fast.loaders import Dataset, open_dataset
from maskco_fast.loaders.regions import scale_crops, shrink_factors
from maskco_fast.loaders.shards.decode import Decoder

VIEWS = ViewConfig.maskco()
WAYS = ("libjpeg", "ours", "fast")
Region = tuple[np.ndarray, int, int, np.ndarray]
"""Pixels of a part of an image, its y and x, and the plan row with crops in its pixels."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Time exact and fast decoding."""

    shards: tuple[str, ...]
    """Tar shards or folders of photographs."""
    images: int = 100
    """Images of each kind."""
    rounds: int = 7


def encoded_anew(
    dataset: Dataset, images: int, size: tuple[int, int], *, progressive: bool
) -> Iterator[bytes]:
    """The first images, cut and scaled to `size` (width, height)."""
    for index in range(min(images, len(dataset))):
        with Image.open(io.BytesIO(dataset.read(index))) as image:
            buffer = io.BytesIO()
            ImageOps.fit(image.convert("RGB"), size).save(
                buffer, "JPEG", quality=90, progressive=progressive
            )
            yield buffer.getvalue()


def as_dataset(path: pathlib.Path, encoded: Iterator[bytes]) -> Dataset:
    """The encoded images as a tar shard at `path`, opened."""
    with tarfile.open(path, "w") as archive:
        for number, data in enumerate(encoded):
            member = tarfile.TarInfo(f"{number:06d}.jpg")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return open_dataset(str(path), index_folder=path.parent)


class Ways:
    """How an image is decoded: by libjpeg-turbo in whole, by the loaders' own decoder where it can,
    and fast."""

    def __init__(self) -> None:
        self.exact, self.quick = Decoder(), Decoder(fast=True)
        self.renderer, self.hasty = JpegRenderer(VIEWS), JpegRenderer(VIEWS)
        self.hasty.whole = False

    def libjpeg(self, data: bytes, sample: np.void, row: np.ndarray, shrink: int) -> Region:
        return self.exact.decode(data, sample), 0, 0, row

    def ours(self, data: bytes, sample: np.void, row: np.ndarray, shrink: int) -> Region:
        return self._by(self.renderer, data, sample, row)

    def _by(self, renderer: JpegRenderer, data: bytes, sample: np.void, row: np.ndarray) -> Region:
        region = renderer.decode(data, int(sample["height"]), int(sample["width"]), row)
        return (*region, row) if region else self.libjpeg(data, sample, row, 1)

    def fast(self, data: bytes, sample: np.void, row: np.ndarray, shrink: int) -> Region:
        if shrink == 1:
            return self._by(self.hasty, data, sample, row)
        image, shrink = self.quick.decode_scaled(data, sample, shrink)
        return image, 0, 0, scale_crops(row, 2, shrink, *image.shape[:2])


def measure(name: str, dataset: Dataset, options: Options) -> str:
    """One line of the table."""
    count = min(options.images, len(dataset))
    samples, data = dataset.samples[:count], [dataset.read(index) for index in range(count)]
    rows = plan(VIEWS, 0, 0, samples["sample_id"], samples["height"], samples["width"])
    shrinks = shrink_factors(rows, 2, VIEWS.size).tolist()
    ways = Ways()
    seams = {name: np.empty((2, count, 224, 224, 3), np.uint8) for name in WAYS}
    decoding: dict[str, list[float]] = {name: [] for name in WAYS}
    whole: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(options.rounds + 1):
        for way in WAYS:
            decode, decoded, rendered = getattr(ways, way), 0.0, 0.0
            for n in range(count):
                began = time.perf_counter()
                *region, row = decode(data[n], samples[n], rows[n], shrinks[n])
                between = time.perf_counter()
                ways.renderer.resize(*region, row, seams[way], n)
                rendered += time.perf_counter() - between
                decoded += between - began
            decoding[way].append(1000 * decoded / count)
            whole[way].append(1000 * (decoded + rendered) / count)
    times = "".join(_spread(decoding[way][1:]) for way in WAYS)
    gains = "".join(
        f"{statistics.median(a / b for a, b in zip(whole['libjpeg'][1:], whole[way][1:])):6.2f}x"
        for way in WAYS[1:]
    )
    smaller = np.mean(np.array(shrinks) > 1)
    assert (seams["ours"] == seams["libjpeg"]).all(), "our decoder's pixels differ from libjpeg's"
    apart = np.abs(seams["libjpeg"].astype(np.int16) - seams["fast"])
    size = np.mean([len(one) for one in data]) / 1000
    return f"{name:24}{size:5.0f}{times}{gains}{smaller:9.0%}{apart.mean():8.2f}{apart.max():6}"


def _spread(times: list[float]) -> str:
    return f"{statistics.median(times):8.2f} ({min(times):.2f}-{max(times):.2f})"


def main(options: Options) -> None:
    """Print the table."""
    dataset = open_dataset(options.shards)
    print(machine())
    print(
        f"{'images':24}{'kB':>5}{'libjpeg ms':>20}{'ours ms':>20}{'fast ms':>20}{'ours':>7}{'fast':>7}{'smaller':>9}"
        f"{'mean':>8}{'worst':>6}\nours, fast: times faster than libjpeg, resizing of both views included; "
        "smaller: share that fast decoding scales down; mean, worst: levels that fast views are apart"
    )
    print(measure("as they are", dataset, options))
    with tempfile.TemporaryDirectory() as folder:
        for width, height in ((500, 375), (800, 600), (1200, 900)):
            for progressive in (False, True):
                name = f"{width} x {height}{', progressive' if progressive else ''}"
                path = pathlib.Path(folder, f"{width}{'p' * progressive}.tar")
                images = encoded_anew(
                    dataset, options.images, (width, height), progressive=progressive
                )
                print(measure(name, as_dataset(path, images), options), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

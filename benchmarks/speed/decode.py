"""Decoding time by kind and size of JPEG: libjpeg-turbo, our decoder, and `--decode fast`.

    python -m benchmarks.speed.decode --shards 'in1k-sample-{0000..0003}.tar' [--images 100]

The shards' images as they are, then scaled to cover 500 x 375, 800 x 600 and 1200 x 900 pixels and
encoded again at quality 90, plain and progressive. On one thread, in interleaved rounds: medians
and ranges of the rounds. The differences of fast decoding are those of the two 224-pixel views at
the seam, in levels. Our exact decoder must equal libjpeg.
"""

import dataclasses
import io
import pathlib
import tarfile
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import tyro
from PIL import Image, ImageOps

from maskco_fast.bench.harness import Spread, machine, ratio_by_round
from maskco_fast.kernels.plan import plan
from maskco_fast.kernels.render.jpegs import JpegRenderer
from maskco_fast.kernels.views import ViewConfig
from maskco_fast.loaders import Dataset, open_dataset
from maskco_fast.loaders.regions import scale_crops, shrink_factors
from maskco_fast.loaders.shards.decode import Decoder

VIEWS = ViewConfig.maskco()
WAYS = ("libjpeg", "ours", "fast")
SIZES = ((500, 375), (800, 600), (1200, 900))
"""Widths and heights of the images that are encoded again."""
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
    """Interleaved passes that are counted, after one that is not."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One kind of image: the times of its decoding, and the difference that fast decoding makes."""

    name: str
    kilobytes: float
    milliseconds: dict[str, Spread]
    """Decoding an image, by `WAYS`."""
    gains: dict[str, float]
    """libjpeg's time over ours and fast's, resizing of both views included; medians by round."""
    smaller: float
    """Share of the images that fast decoding scales down."""
    fast_mean: float
    fast_worst: int
    """Levels between the views of fast decoding and libjpeg's."""


def encode_again(
    dataset: Dataset, images: int, size: tuple[int, int], *, progressive: bool
) -> Iterator[bytes]:
    """The first images as JPEGs of `size` (width, height), cut to its aspect ratio."""
    for index in range(min(images, len(dataset))):
        with Image.open(io.BytesIO(dataset.read(index))) as image:
            buffer = io.BytesIO()
            fitted = ImageOps.fit(image.convert("RGB"), size)
            fitted.save(buffer, "JPEG", quality=90, progressive=progressive)
            yield buffer.getvalue()


def as_dataset(path: pathlib.Path, encoded: Iterator[bytes]) -> Dataset:
    """Write the encoded images to a tar shard at `path` and open it."""
    with tarfile.open(path, "w") as archive:
        for number, data in enumerate(encoded):
            member = tarfile.TarInfo(f"{number:06d}.jpg")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return open_dataset(str(path), index_folder=path.parent)


class Decoders:
    """The ways to decode an image, a method each, by the names in `WAYS`."""

    def __init__(self) -> None:
        self.library = Decoder()
        self.scaling_library = Decoder(fast=True)
        self.renderer = JpegRenderer(VIEWS)

    def libjpeg(self, data: bytes, sample: np.void, row: np.ndarray, shrink: int) -> Region:
        """The whole image by libjpeg-turbo."""
        return self.library.decode(data, sample), 0, 0, row

    def ours(self, data: bytes, sample: np.void, row: np.ndarray, shrink: int) -> Region:
        """The crops' region by our decoder; what it does not decode goes to libjpeg-turbo."""
        region = self.renderer.decode(data, int(sample["height"]), int(sample["width"]), row)
        return (*region, row) if region else self.libjpeg(data, sample, row, 1)

    def fast(self, data: bytes, sample: np.void, row: np.ndarray, shrink: int) -> Region:
        """Scaled down by libjpeg-turbo where the crops allow, else by our decoder."""
        if shrink == 1:
            return self.ours(data, sample, row, shrink)
        image, shrink = self.scaling_library.decode_scaled(data, sample, shrink)
        return image, 0, 0, scale_crops(row, 2, shrink, *image.shape[:2])


def measure(name: str, dataset: Dataset, options: Options) -> Line:
    """Time one kind of image; AssertionError where our decoder's pixels are not libjpeg's."""
    count = min(options.images, len(dataset))
    samples = dataset.samples[:count]
    data = [dataset.read(index) for index in range(count)]
    rows = plan(VIEWS, 0, 0, samples["sample_id"], samples["height"], samples["width"])
    shrinks = shrink_factors(rows, VIEWS.layout.sizes).tolist()
    decoders = Decoders()
    seams = {way: np.empty((2, count, VIEWS.size, VIEWS.size, 3), np.uint8) for way in WAYS}
    decoding: dict[str, list[float]] = {way: [] for way in WAYS}
    with_resizing: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(options.rounds + 1):
        for way in WAYS:
            decode = getattr(decoders, way)
            decode_s = resize_s = 0.0
            for n in range(count):
                began = time.perf_counter()
                image, y, x, row = decode(data[n], samples[n], rows[n], shrinks[n])
                decoded = time.perf_counter()
                decoders.renderer.resize(image, y, x, row, seams[way], n)
                resize_s += time.perf_counter() - decoded
                decode_s += decoded - began
            if number:  # the first round warms up
                decoding[way].append(1000 * decode_s / count)
                with_resizing[way].append(1000 * (decode_s + resize_s) / count)
    assert (seams["ours"] == seams["libjpeg"]).all(), "our decoder's pixels differ from libjpeg's"
    apart = np.abs(seams["libjpeg"].astype(np.int16) - seams["fast"])
    return Line(
        name=name,
        kilobytes=float(np.mean([len(one) for one in data])) / 1000,
        milliseconds={way: Spread.of(decoding[way]) for way in WAYS},
        gains={
            way: ratio_by_round(with_resizing["libjpeg"], with_resizing[way]).median
            for way in WAYS[1:]
        },
        smaller=float(np.mean(np.array(shrinks) > 1)),
        fast_mean=float(apart.mean()),
        fast_worst=int(apart.max()),
    )


def lines(options: Options) -> Iterator[Line]:
    """Every line of the table, as it is measured."""
    dataset = open_dataset(options.shards)
    yield measure("as they are", dataset, options)
    with tempfile.TemporaryDirectory() as folder:
        for progressive in (False, True):
            for width, height in SIZES:
                name = f"{width} x {height}{', progressive' if progressive else ''}"
                path = pathlib.Path(folder, f"{width}{'p' * progressive}.tar")
                images = encode_again(
                    dataset, options.images, (width, height), progressive=progressive
                )
                yield measure(name, as_dataset(path, images), options)


def text(line: Line) -> str:
    """A line of the printed table."""
    times = "".join(f"{line.milliseconds[way].text(2):>20}" for way in WAYS)
    gains = "".join(f"{line.gains[way]:6.2f}x" for way in WAYS[1:])
    return (
        f"{line.name:24}{line.kilobytes:5.0f}{times}{gains}{line.smaller:9.0%}"
        f"{line.fast_mean:8.2f}{line.fast_worst:6}"
    )


def main(options: Options) -> None:
    """Print the table."""
    print(machine())
    print(
        f"{'images':24}{'kB':>5}{'libjpeg ms':>20}{'ours ms':>20}{'fast ms':>20}{'ours':>7}"
        f"{'fast':>7}{'smaller':>9}{'mean':>8}{'worst':>6}\n"
        "ours, fast: libjpeg's time over theirs, resizing of both views included; smaller: share "
        "that fast decoding scales down; mean, worst: levels between fast and exact views"
    )
    for line in lines(options):
        print(text(line), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

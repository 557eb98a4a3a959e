"""What decoding costs by kind and size of JPEG, and what `--decode fast` gains and changes.

    python benchmarks/decode.py --shards 'in1k-sample-{0000..0003}.tar' [--images 100] [--rounds 7]

The shards' images as they are, then scaled to cover 800 x 600 and 1200 x 900 and encoded anew at quality 90, plain and
progressive. On one thread; rounds are interleaved, times are medians of the rounds, the spread is their range.
Differences are of the two 224-pixel views before their colours change, in levels, between exact and fast decoding.
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

from maskco_fast.bench import machine
from maskco_fast.kernels.plan import plan
from maskco_fast.kernels.render import Renderer
from maskco_fast.kernels.views import ViewConfig
from maskco_fast.loaders import Dataset
from maskco_fast.loaders.decode import Decoder
from maskco_fast.loaders.regions import shrinks_of, shrunk


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Time exact and fast decoding."""

    shards: tuple[str, ...]
    """Tar shards or folders of photographs."""
    images: int = 100
    """Images of each kind."""
    rounds: int = 7


def encoded_anew(dataset: Dataset, images: int, size: tuple[int, int], *, progressive: bool) -> Iterator[bytes]:
    """The first images, cut and scaled to `size` (width, height)."""
    for index in range(min(images, len(dataset))):
        with Image.open(io.BytesIO(dataset.read(index))) as image:
            buffer = io.BytesIO()
            ImageOps.fit(image.convert("RGB"), size).save(buffer, "JPEG", quality=90, progressive=progressive)
            yield buffer.getvalue()


def as_dataset(path: pathlib.Path, encoded: Iterator[bytes]) -> Dataset:
    """The encoded images as a tar shard at `path`, opened."""
    with tarfile.open(path, "w") as archive:
        for number, data in enumerate(encoded):
            member = tarfile.TarInfo(f"{number:06d}.jpg")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return Dataset.open(str(path), index_folder=path.parent)


def measure(name: str, dataset: Dataset, options: Options) -> str:
    """One line of the table."""
    views = ViewConfig.maskco(224)
    count = min(options.images, len(dataset))
    samples, data = dataset.samples[:count], [dataset.read(index) for index in range(count)]
    rows = plan(views, 0, 0, samples["sample_id"], samples["height"], samples["width"])
    shrinks = shrinks_of(rows, 2, views.size).tolist()
    renderer, seam = Renderer(views), np.empty((2, 2, count, 224, 224, 3), np.uint8)
    decoders = Decoder(), Decoder(fast=True)
    seconds: dict[str, list[float]] = {"exact": [], "fast": [], "exact views": [], "fast views": []}
    for _ in range(options.rounds + 1):
        for fast, decoder in enumerate(decoders):
            decoding = rendering = 0.0
            for n in range(count):
                began = time.perf_counter()
                image, shrink = decoder.decode_scaled(data[n], samples[n], shrinks[n])
                decoded = time.perf_counter()
                row = rows[n] if shrink == 1 else shrunk(rows[n], 2, shrink, *image.shape[:2])
                renderer.resize(image, 0, 0, row, seam[fast], n)
                rendering += time.perf_counter() - decoded
                decoding += decoded - began
            seconds[("exact", "fast")[fast]].append(decoding)
            seconds[("exact views", "fast views")[fast]].append(decoding + rendering)
    times = {name: [1000 * one / count for one in many[1:]] for name, many in seconds.items()}
    apart = np.abs(seam[0].astype(np.int16) - seam[1])
    gains = [a / b for a, b in zip(times["exact views"], times["fast views"])]
    return (
        f"{name:26}{np.mean([len(one) for one in data]) / 1000:7.0f}{_spread(times['exact'])}{_spread(times['fast'])}"
        f"{statistics.median(gains):11.2f}x{np.mean(np.array(shrinks) > 1):8.0%}{apart.mean():9.2f}{apart.max():7}"
    )


def _spread(times: list[float]) -> str:
    return f"{statistics.median(times):8.2f} ({min(times):.2f}-{max(times):.2f})"


def main(options: Options) -> None:
    """Print the table."""
    dataset = Dataset.open(options.shards)
    print(machine())
    print(
        f"{'images':26}{'kB':>7}{'exact ms':>20}{'fast ms':>20}{'gain':>12}{'smaller':>8}{'mean':>9}{'worst':>7}\n"
        "gain: of decoding and resizing both views; smaller: images that are scaled down; mean, worst: levels apart"
    )
    print(measure("as they are", dataset, options))
    with tempfile.TemporaryDirectory() as folder:
        for width, height in ((500, 375), (800, 600), (1200, 900)):
            for progressive in (False, True):
                name = f"{width} x {height}{', progressive' if progressive else ''}"
                path = pathlib.Path(folder, f"{width}{'p' * progressive}.tar")
                images = encoded_anew(dataset, options.images, (width, height), progressive=progressive)
                print(measure(name, as_dataset(path, images), options), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

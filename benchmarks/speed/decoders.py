"""JPEG decoders of Python libraries side by side: whole images to RGB arrays, and a region of each.

    python -m benchmarks.speed.decoders --shards 'in1k-sample-{0000..0003}.tar' [--images 200]

One thread each, interleaved rounds after one that is not counted: images/s as median and range of
the rounds, and our speed over theirs, by round. The region is 224 pixels square, in the middle;
libraries without regions decode the image and cut it. "levels" is the largest difference from
libjpeg-turbo's pixels. Libraries that are not installed are named below the table.

`maskco_fast_decoder.py` in this folder adds our decoder to a public benchmark of decoders.
"""

import dataclasses
import io
import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import tyro

from maskco_fast import decode_jpeg
from maskco_fast.bench.harness import Spread, machine, ratio_by_round
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.kernels.headers import JPEG
from maskco_fast.kernels.jpeg.decode import decode_reference
from maskco_fast.loaders import open_dataset

OURS = "maskco-fast"
SIDE = 224
"""Side of the region, pixels; shorter images are taken whole."""
Decode = Callable[[bytes], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Time JPEG decoders on the CPU, one thread each."""

    shards: tuple[str, ...]
    """Tar shards or folders of photographs; other formats than JPEG are passed over."""
    images: int = 200
    """Images."""
    rounds: int = 7
    """Interleaved passes that are counted, after one that is not."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A library's figures."""

    name: str
    whole: Spread
    """Images/s."""
    region: Spread
    """Regions/s."""
    gain: Spread
    """Our whole images/s over theirs."""
    region_gain: Spread
    levels: int
    """Largest difference from libjpeg-turbo's pixels."""


def simplejpeg() -> Decode:
    """simplejpeg, libjpeg-turbo with the fast DCT and upsampling off."""
    import simplejpeg

    return lambda data: simplejpeg.decode_jpeg(data, "RGB")


def pillow() -> Decode:
    """Pillow."""
    from PIL import Image

    return lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def torchvision() -> Decode:
    """torchvision.io, which yields planes: the view as (H, W, 3) costs nothing."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    def decode(data: bytes) -> np.ndarray:
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return decode_jpeg(encoded, mode=ImageReadMode.RGB).permute(1, 2, 0).numpy()

    return decode


def opencv() -> Decode:
    """OpenCV, on one thread, its orientation ignored; BGR is turned to RGB."""
    import cv2

    cv2.setNumThreads(1)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION

    def decode(data: bytes) -> np.ndarray:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        assert image is not None
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)

    return decode


def kornia_rs() -> Decode:
    """kornia-rs, through its binding of libjpeg-turbo; the module of it has moved in 0.2."""
    import kornia_rs

    decoder = getattr(kornia_rs, "io", kornia_rs).ImageDecoder()
    return lambda data: np.asarray(decoder.decode(data))


PEERS: Mapping[str, Callable[[], Decode]] = {
    "simplejpeg": simplejpeg,
    "torchvision": torchvision,
    "Pillow": pillow,
    "OpenCV": opencv,
    "kornia-rs": kornia_rs,
}
"""By name; each raises ImportError where the library is not installed."""


def middle(height: int, width: int) -> tuple[int, int, int, int]:
    """The region (y, x, height, width) in the middle of an image."""
    rows, columns = min(SIDE, height), min(SIDE, width)
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def cut(decode: Decode, data: bytes, region: tuple[int, int, int, int]) -> np.ndarray:
    """The region of an image that is decoded whole."""
    y, x, rows, columns = region
    return decode(data)[y : y + rows, x : x + columns]


def photographs(options: Options) -> list[bytes]:
    """The first JPEGs of the shards; InvalidInput where there is none."""
    dataset = open_dataset(options.shards)
    indexes = np.flatnonzero(dataset.samples["format"] == JPEG)[: options.images]
    if not len(indexes):
        raise InvalidInput("`shards` must hold a JPEG, got none. Give shards of photographs.")
    return [dataset.read(int(index)) for index in indexes]


def measure(options: Options, decoders: Mapping[str, Decode]) -> Iterator[Row]:
    """Time ours and `decoders`, in interleaved rounds. AssertionError for wrong pixels."""
    files = photographs(options)
    exact = [decode_reference(data) for data in files]
    regions = [middle(*image.shape[:2]) for image in exact]
    everyone = {OURS: decode_jpeg, **decoders}
    whole: dict[str, list[float]] = {name: [] for name in everyone}
    part: dict[str, list[float]] = {name: [] for name in everyone}
    for number in range(options.rounds + 1):
        for name, decode in everyone.items():
            began = time.perf_counter()
            for data in files:
                decode(data)
            between = time.perf_counter()
            for data, region in zip(files, regions):
                if name == OURS:
                    decode_jpeg(data, region)
                else:
                    cut(decode, data, region)
            ended = time.perf_counter()
            if number:  # the first round warms up
                whole[name].append(len(files) / (between - began))
                part[name].append(len(files) / (ended - between))
    for name, decode in everyone.items():
        apart = max(
            int(np.abs(decode(data).astype(np.int16) - image).max())
            for data, image in zip(files, exact)
        )
        assert name != OURS or apart == 0, "our decoder's pixels differ from libjpeg-turbo's"
        yield Row(
            name,
            Spread.of(whole[name]),
            Spread.of(part[name]),
            ratio_by_round(whole[OURS], whole[name]),
            ratio_by_round(part[OURS], part[name]),
            apart,
        )


def installed() -> tuple[dict[str, Decode], list[str]]:
    """The peers' decoders by name, and the names of those that are not installed."""
    found, missing = {}, []
    for name, make in PEERS.items():
        try:
            found[name] = make()
        except ImportError:
            missing.append(name)
    return found, missing


def main(options: Options) -> None:
    """Print the table."""
    decoders, missing = installed()
    print(machine())
    print(
        f"{'decoder':14}{'images/s':>22}{'ours over it':>20}{'regions/s':>22}{'ours over it':>20}"
        f"{'levels':>8}"
    )
    for row in measure(options, decoders):
        print(
            f"{row.name:14}{row.whole.text():>22}{row.gain.text(2, 'x'):>20}"
            f"{row.region.text():>22}{row.region_gain.text(2, 'x'):>20}{row.levels:8}"
        )
    if missing:
        print(f"not installed: {', '.join(missing)}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

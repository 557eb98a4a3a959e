"""CPU time of decoding a JPEG's crops: from its beginning, from checkpoints, from its record.

    python -m benchmarks.speed.checkpoint_decoding --shards 'in1k-sample-{0000..0003}.tar'

By kind of image: as they are, and encoded again at quality 90 with 4:4:4 and 4:2:0, and with 4:2:0
at 640 x 480. On one thread, CPU milliseconds an image, medians of interleaved rounds. Files that
have no checkpoints are left out. All pixels are compared with libjpeg's first. Without AVX-512 (for
example with NUMBA_CPU_NAME=x86-64-v3) there are no lanes. A record is what `beton --form
coefficients` stores in place of the JPEG.
"""

import dataclasses
import io
import time
from collections.abc import Callable, Iterator

import numpy as np
import simplejpeg
import tyro
from PIL import Image, ImageOps

from maskco_fast.bench.harness import Spread, machine, ratio_by_round
from maskco_fast.kernels.coefficients.decode import decode_record, decode_record_avx512
from maskco_fast.kernels.coefficients.pack import pack
from maskco_fast.kernels.compiler.address import address_of
from maskco_fast.kernels.compiler.features import has_avx512, has_vbmi2
from maskco_fast.kernels.headers import find_ordinary_scan
from maskco_fast.kernels.jpeg.checkpoints import (
    CHECKPOINT_DTYPE,
    Checkpoints,
    checksum,
    find_checkpoints,
    make_table,
)
from maskco_fast.kernels.jpeg.chunks import decode_region_by_lanes, decode_region_by_streams
from maskco_fast.kernels.jpeg.decode import DECODED, decode_region
from maskco_fast.kernels.plan import plan
from maskco_fast.kernels.render.records import RecordRenderer
from maskco_fast.kernels.views import ViewConfig
from maskco_fast.loaders import open_dataset

VIEWS = ViewConfig.maskco()
CALL = 4
"""Files that are rendered in a call, as by the native loader."""
LIBRARY, BEGINNING, RECORD = "libjpeg, whole", "from the beginning", "record"
KERNELS: dict[str, Callable[..., int]] = {
    BEGINNING: decode_region,
    "two streams": decode_region_by_streams,
    **({"32 lanes": decode_region_by_lanes} if has_avx512() else {}),
    RECORD: decode_record_avx512 if has_vbmi2() else decode_record,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Time decoding from checkpoints."""

    shards: tuple[str, ...]
    """Tar shards or folders of photographs."""
    images: int = 200
    """Images of each kind, spread over the shards."""
    rounds: int = 7
    """Interleaved passes that are counted, after one that is not."""


@dataclasses.dataclass(frozen=True)
class Photo:
    """A file with what decoding it needs."""

    data: bytes
    height: int
    width: int
    row: np.ndarray
    """The plan row."""
    checkpoints: Checkpoints
    record: bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One kind of image."""

    name: str
    kilobytes: float
    share: float
    """Bytes of checkpoints over bytes of files."""
    growth: float
    """Bytes of records over bytes of files."""
    decoding: dict[str, Spread]
    """CPU milliseconds an image, by way."""
    gains: dict[str, float]
    """libjpeg's time for the whole image over that of decoding and both views; by way."""


def encode_again(files: list[bytes], size: tuple[int, int] | None, subsampling: int) -> list[bytes]:
    """The files at quality 90; `size` (width, height), cut to its aspect ratio, or None."""
    encoded = []
    for data in files:
        with Image.open(io.BytesIO(data)) as image:
            picture = image.convert("RGB")
            buffer = io.BytesIO()
            fitted = ImageOps.fit(picture, size) if size else picture
            fitted.save(buffer, "JPEG", quality=90, subsampling=subsampling)
            encoded.append(buffer.getvalue())
    return encoded


def as_photos(files: list[bytes]) -> list[Photo]:
    """The files that have checkpoints."""
    photos = []
    for number, data in enumerate(files):
        height, width, scan = find_ordinary_scan(np.frombuffer(data, np.uint8))
        rows = find_checkpoints(data) if scan else None
        if rows is None:
            continue
        (row,) = plan(VIEWS, 0, 0, np.array([number]), np.array([height]), np.array([width]))
        begins, lengths = np.array([0, len(rows)]), np.array([len(data)])
        checkpoints = Checkpoints(rows, begins, lengths, np.array([checksum(data)], np.uint32))
        photos.append(Photo(data, height, width, row, checkpoints, pack(data)))
    return photos


def region_of(renderer: RecordRenderer, photo: Photo) -> list[int]:
    """The region of a file that its crops need: y, x, rows, columns. The renderer's working memory
    grows to fit."""
    assert renderer.decode(photo.data, photo.height, photo.width, photo.row) is not None
    return renderer._jpeg_scratch.region.tolist()


def decoder(
    renderer: RecordRenderer, way: str, photo: Photo, region: list[int]
) -> Callable[[], int]:
    """A call of a kernel on one file, with all that Python does for it done ahead."""
    kernel, data = KERNELS[way], photo.record if way == RECORD else photo.data
    file = np.frombuffer(data, np.uint8), len(data), photo.height, photo.width
    memory = renderer._jpeg_scratch, renderer._pixels, make_table(1, photo.checkpoints), 0
    return lambda: kernel(*file, *region, *memory)


class Loader:
    """Renders both views of files as the native loader does, four a call, by one of the ways."""

    def __init__(self, way: str, photos: list[Photo]) -> None:
        self.renderer = RecordRenderer(VIEWS)
        self.render: Callable[..., np.ndarray] = self.renderer.render_jpegs
        if way == RECORD:
            self.render = self.renderer.render_records
        elif way != BEGINNING:
            address = address_of(KERNELS[way], *self.renderer._decode_arguments())
            self.renderer.__dict__["at_checkpoints_address"] = address
        self.out = np.empty((2, CALL, VIEWS.size, VIEWS.size, 3), self.renderer.buffer_dtype)
        self.calls = []
        for n in range(0, len(photos), CALL):
            some = photos[n : n + CALL]
            rows = [photo.checkpoints.rows for photo in some]
            checkpoints = Checkpoints(
                np.concatenate(rows),
                np.cumsum([0, *map(len, rows)]),
                np.concatenate([photo.checkpoints.lengths for photo in some]),
                np.concatenate([photo.checkpoints.checksums for photo in some]),
            )
            self.calls.append(
                (
                    [photo.record if way == RECORD else photo.data for photo in some],
                    np.array([(photo.height, photo.width) for photo in some]),
                    np.stack([photo.row for photo in some]),
                    np.arange(len(some)),
                    self.out,
                    *(() if way in (BEGINNING, RECORD) else (checkpoints,)),
                )
            )

    def __call__(self) -> None:
        """Render all files."""
        for arguments in self.calls:
            assert self.render(*arguments).all()


def measure(name: str, files: list[bytes], options: Options) -> Line:
    """Time one kind of image; AssertionError where a way's pixels are not libjpeg's."""
    photos = as_photos(files)
    renderer = RecordRenderer(VIEWS)
    regions = [region_of(renderer, photo) for photo in photos]
    calls = {
        way: [decoder(renderer, way, *pair) for pair in zip(photos, regions)] for way in KERNELS
    }
    for n, (photo, (y, x, rows, columns)) in enumerate(zip(photos, regions)):
        truth = simplejpeg.decode_jpeg(photo.data, "RGB")
        for way in KERNELS:
            assert calls[way][n]() == DECODED, f"{way} does not take an image"
            pixels = renderer._pixels[: 3 * rows * columns].reshape(rows, columns, 3)
            same = np.array_equal(pixels, truth[y : y + rows, x : x + columns])
            assert same, f"the pixels of {way} differ from libjpeg's"
    loaders = {way: Loader(way, photos) for way in KERNELS}
    decoding: dict[str, list[float]] = {way: [] for way in (LIBRARY, *KERNELS)}
    in_all: dict[str, list[float]] = {way: [] for way in (LIBRARY, *KERNELS)}
    for number in range(options.rounds + 1):
        for way in (LIBRARY, *KERNELS):
            began = time.thread_time()
            for n, photo in enumerate(photos):
                if way == LIBRARY:
                    simplejpeg.decode_jpeg(photo.data, "RGB")
                else:
                    calls[way][n]()
            decoded = time.thread_time()
            if way != LIBRARY:
                loaders[way]()
            rendered = time.thread_time()
            if number:  # the first round warms up
                began, decoded, rendered = (
                    1000 * time_s / len(photos) for time_s in (began, decoded, rendered)
                )
                decoding[way].append(decoded - began)
                in_all[way].append(decoded - began if way == LIBRARY else rendered - decoded)
    files_bytes = sum(len(photo.data) for photo in photos)
    rows = sum(len(photo.checkpoints.rows) for photo in photos)
    return Line(
        name=name,
        kilobytes=files_bytes / len(photos) / 1000,
        share=rows * CHECKPOINT_DTYPE.itemsize / files_bytes,
        growth=sum(len(photo.record) for photo in photos) / files_bytes,
        decoding={way: Spread.of(times) for way, times in decoding.items()},
        gains={way: ratio_by_round(in_all[LIBRARY], in_all[way]).median for way in KERNELS},
    )


def lines(options: Options) -> Iterator[Line]:
    """Every line of the table, as it is measured."""
    dataset = open_dataset(options.shards)
    step = max(len(dataset) // options.images, 1)
    files = [dataset.read(index) for index in range(0, len(dataset), step)][: options.images]
    yield measure("as they are", files, options)
    yield measure("4:4:4", encode_again(files, None, 0), options)
    yield measure("4:2:0", encode_again(files, None, 2), options)
    yield measure("640 x 480, 4:2:0", encode_again(files, (640, 480), 2), options)


def text(line: Line) -> str:
    """A line of the printed table."""
    times = "".join(f"{spread.text(3):>22}" for spread in line.decoding.values())
    gains = "".join(f"{gain:6.2f}x" for gain in line.gains.values())
    return f"{line.name:18}{line.kilobytes:5.0f}{line.share:7.1%}{line.growth:7.2f}{times}{gains}"


def main(options: Options) -> None:
    """Print the table."""
    print(machine())
    print(
        f"{'images':18}{'kB':>5}{'share':>7}{'record':>7}"
        + "".join(f"{way:>22}" for way in (LIBRARY, *KERNELS))
        + f"   both views as well: {', '.join(KERNELS)}\n"
        "share: checkpoints over files; record: records over files; last columns: libjpeg's time "
        "for the whole image over that of decoding and rendering both views"
    )
    for line in lines(options):
        print(text(line), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

"""Time by stage of the native path: milliseconds an image, on one thread."""

import io
import pathlib
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from maskco_fast.bench.setting import Setting
from maskco_fast.kernels import headers
from maskco_fast.kernels.plan import BLUR_SIGMA, GRAY, JITTER, VIEW_FLOATS, plan
from maskco_fast.kernels.render.jpegs import JpegRenderer
from maskco_fast.loaders import ViewConfig, make_loader, open_dataset
from maskco_fast.loaders.buffers import BufferPool
from maskco_fast.loaders.shards.build_index import index_shard
from maskco_fast.loaders.shards.decode import Decoder

IMAGES = 200
"""Images a pass."""
REPEATS = 5
"""Passes that are counted, after one that warms up."""


def stages(setting: Setting) -> dict[str, float]:
    """Milliseconds an image by stage, both views: medians of `REPEATS` passes over `IMAGES` images.

    Each image is rendered right after it is decoded, as in the loader, so that the caches hold the
    same data. Colour, blur and store are differences between renderings: with the plan as drawn,
    without its blur, without its colour changes too, and up to the seam alone. "hand-over" is
    Python's share, see `hand_over`.
    """
    views = ViewConfig.maskco(setting.size)
    dataset = open_dataset(setting.shards)
    positions = np.linspace(0, len(dataset) - 1, min(IMAGES, len(dataset))).astype(np.int64)
    samples = dataset.samples[positions]
    library = Decoder()
    renderer = JpegRenderer(views, setting.dtype)
    jpeg = (samples["format"] == headers.JPEG).tolist()
    shape = (2, setting.batch_size, views.size, views.size, 3)
    seam = np.zeros(shape, np.uint8)
    out = BufferPool(shape, setting.torch_dtype).take()

    def draw() -> np.ndarray:
        return plan(views, 0, 0, samples["sample_id"], samples["height"], samples["width"])

    rows = draw()
    sharp = _without(rows, 2, BLUR_SIGMA)
    plain = _without(rows, 2, BLUR_SIGMA, JITTER, GRAY)
    rendered: dict[str, Callable[[int, tuple[np.ndarray, int, int]], None]] = {
        "resize": lambda i, region: renderer.resize(*region, rows[i], seam, i % setting.batch_size),
        "all": lambda i, region: renderer.render(*region, rows[i], out, i % setting.batch_size),
        "sharp": lambda i, region: renderer.render(*region, sharp[i], out, i % setting.batch_size),
        "plain": lambda i, region: renderer.render(*region, plain[i], out, i % setting.batch_size),
    }
    passes: dict[str, list[float]] = {
        name: [] for name in ("index", "plan", "read", "decode", *rendered)
    }
    for _ in range(REPEATS + 1):
        passes["index"].append(_milliseconds(lambda: index_shard(dataset.shards[0].path)))
        passes["plan"].append(_milliseconds(draw))
        for name, render in rendered.items():
            reading = decoding = rendering = 0.0
            for i, position in enumerate(positions.tolist()):
                began = time.perf_counter()
                encoded = dataset.read(position)
                was_read = time.perf_counter()
                height, width = int(samples[i]["height"]), int(samples[i]["width"])
                region = renderer.decode(encoded, height, width, rows[i]) if jpeg[i] else None
                region = region or (library.decode(encoded, samples[i]), 0, 0)
                decoded = time.perf_counter()
                render(i, region)
                rendering += time.perf_counter() - decoded
                decoding += decoded - was_read
                reading += was_read - began
            for stage, seconds in (("read", reading), ("decode", decoding), (name, rendering)):
                passes[stage].append(1000 * seconds)
    # The first pass warms up: it compiles kernels and maps the pages of the buffers.
    took = {name: statistics.median(times[1:]) / len(positions) for name, times in passes.items()}
    return {
        "index": took["index"] * len(positions) / len(dataset.shards[0].samples),
        **{name: took[name] for name in ("plan", "read", "decode", "resize")},
        "colour": took["sharp"] - took["plain"],
        "blur": took["all"] - took["sharp"],
        "store": took["plain"] - took["resize"],
        "hand-over": hand_over(),
    }


def _milliseconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - began)


def _without(rows: np.ndarray, views: int, *columns: int) -> np.ndarray:
    """The plan rows with these columns of every view at zero."""
    changed = rows.copy()
    for view in range(views):
        for column in columns:
            changed[:, view * VIEW_FLOATS + column] = 0
    return changed


def hand_over() -> float:
    """Milliseconds of Python an image: an epoch of tiny images, less the kernels' time for them.

    CPU time of the process on all its threads, so that other processes do not disturb it. Nearly
    all of it holds the GIL.
    """
    count = 4000
    batch = 100
    views = ViewConfig.maskco(16)
    encoded = io.BytesIO()
    # Without subsampling a tiny JPEG takes the same decoder as a photograph.
    Image.new("RGB", (8, 8)).save(encoded, "JPEG", subsampling=0)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "tiny.tar")
        with tarfile.open(path, "w") as archive:
            for number in range(count):
                member = tarfile.TarInfo(f"{number:06d}.jpg")
                member.size = len(encoded.getvalue())
                archive.addfile(member, io.BytesIO(encoded.getvalue()))
        with make_loader(
            path, batch, views=views, backend="native", threads=1, index_folder=folder
        ) as loader:
            epochs = []
            for _ in range(REPEATS + 1):
                began = time.process_time()
                for _ in loader:
                    continue
                epochs.append(time.process_time() - began)
    renderer = JpegRenderer(views)
    out = np.empty((2, batch, views.size, views.size, 3), np.float32)
    rows = plan(views, 0, 0, np.arange(batch), np.full(batch, 8), np.full(batch, 8))
    arguments = [encoded.getvalue()] * batch, np.full((batch, 2), 8), rows, np.arange(batch), out
    kernels = []
    for _ in range(REPEATS + 1):
        began = time.process_time()
        for _ in range(count // batch):
            renderer.render_jpegs(*arguments)
        kernels.append(time.process_time() - began)
    return 1000 * (statistics.median(epochs[1:]) - statistics.median(kernels[1:])) / count


def print_stages(setting: Setting) -> None:
    """Print the stages as a table, with each one's share of an image's time."""
    took = stages(setting)
    total = sum(value for name, value in took.items() if name != "index")
    print(f"\n{'stage':12}{'ms/image':>10}{'share':>8}   one thread, both views, {setting.dtype}")
    for name, value in took.items():
        share = "once" if name == "index" else f"{value / total:.0%}"
        print(f"{name:12}{value:>10.4f}{share:>8}")
    print(f"{'sum':12}{total:>10.4f}   (index is paid once a shard)")

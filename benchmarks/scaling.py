"""How many cores one process of the native loader can use: simulated from times measured here.

    python benchmarks/scaling.py --shards 'in1k-sample-{0000..0003}.tar' [--images 300]

Measured, on one thread: each image's time in decoding and rendering, for which the GIL is released, and what an image
costs besides, all of which is taken to hold the GIL (an upper bound: the read and libjpeg's set-up release it too).
Simulated: threads that take images in turn, release the GIL three times an image (read, decode, render) and queue for
it in order. The simulation knows nothing of memory bandwidth, clock speeds or hyper-threads.
"""

import dataclasses
import heapq
import io
import pathlib
import statistics
import tarfile
import tempfile
import time

import numpy as np
import tyro
from PIL import Image

from maskco_fast.bench import machine
from maskco_fast.kernels.jit import jit
from maskco_fast.kernels.plan import plan
from maskco_fast.kernels.render import Renderer, render_views
from maskco_fast.kernels.views import ViewConfig
from maskco_fast.loaders import Dataset, make_loader
from maskco_fast.loaders.decode import Decoder

PIECES = 3
"""Times that an image takes and releases the GIL."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Simulate the native loader on many cores."""

    shards: tuple[str, ...]
    """Tar shards or folders of photographs."""
    images: int = 300
    """Images whose times are measured."""
    cores: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 96)


def free_times(options: Options) -> np.ndarray:
    """(n,) seconds of each image in decoding and rendering two 224-pixel views; the median of three."""
    dataset, views = Dataset.open(options.shards), ViewConfig.maskco(224)
    positions = np.linspace(0, len(dataset) - 1, min(options.images, len(dataset))).astype(int)
    samples = dataset.samples[positions]
    rows = plan(views, 0, 0, samples["sample_id"], samples["height"], samples["width"])
    decoder, renderer = Decoder(), Renderer(views)
    out = np.empty((2, 1, 224, 224, 3), np.float32)
    times = np.empty((4, len(positions)))
    for took in times:
        for n, position in enumerate(positions.tolist()):
            data = dataset.read(position)
            began = time.perf_counter()
            renderer.render(decoder.decode(data, samples[n]), 0, 0, rows[n], out, 0)
            took[n] = time.perf_counter() - began
    return np.median(times[1:], 0)


@jit()
def _render_often(times, image, row, normalisation, scratch, out):
    for _ in range(times):
        render_views(image, 0, 0, row, 2, True, 0, normalisation, scratch, out, 0)


def held_time() -> float:
    """Seconds that an image costs besides: those of a one-pixel image, less the rendering of its tiny views."""
    count, views = 4000, ViewConfig.maskco(16)
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "JPEG")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "tiny.tar")
        with tarfile.open(path, "w") as archive:
            for number in range(count):
                member = tarfile.TarInfo(f"{number:06d}.jpg")
                member.size = len(buffer.getvalue())
                archive.addfile(member, io.BytesIO(buffer.getvalue()))
        with make_loader(path, 100, views=views, backend="native", threads=1, index_folder=folder) as loader:
            epochs = []
            for _ in range(6):
                began = time.process_time()
                for _ in loader:
                    continue
                epochs.append(time.process_time() - began)
            rows = next(loader._requests(0, 1, 1)).rows
    renderer, image, out = Renderer(views), np.zeros((1, 1, 3), np.uint8), np.empty((2, 1, 16, 16, 3), np.float32)
    kernels = []
    for row in rows:
        arguments = (image, row, renderer._normalisation, renderer._scratch, out)
        _render_often(1, *arguments)
        began = time.perf_counter()
        _render_often(20, *arguments)
        kernels.append((time.perf_counter() - began) / 20)
    return statistics.median(epochs[1:]) / count - statistics.mean(kernels)


def simulate(free: np.ndarray, held: float, cores: int, images: int = 20_000) -> float:
    """Images/s of `cores` threads, a core each: every image is `PIECES` times a hold of the GIL, then a free part."""
    random = np.random.default_rng(0)
    parts = random.choice(free, images) / PIECES
    threads = [(0.0, thread) for thread in range(cores)]  # when each thread next wants the GIL
    left = [0] * cores  # pieces of the image that it is at
    at = [0.0] * cores
    begun, gil_free, last = 0, 0.0, 0.0
    while threads:
        now, thread = heapq.heappop(threads)
        if not left[thread]:
            if begun == images:
                continue
            left[thread], at[thread], begun = PIECES, parts[begun], begun + 1
        gil_free = max(now, gil_free) + held / PIECES
        left[thread] -= 1
        last = gil_free + at[thread]
        heapq.heappush(threads, (last, thread))
    return images / last


def main(options: Options) -> None:
    """Print what was measured and the table."""
    free, held = free_times(options), held_time()
    print(machine())
    print(f"an image: {1e3 * free.mean():.2f} ms without the GIL (measured), at most {1e6 * held:.0f} us with it")
    print(f"the GIL alone would end one process's growth at {1 / held:.0f} images/s\n")
    print(f"{'cores':>6}{'images/s':>10}{'of ideal':>10}   simulated")
    for cores in options.cores:
        speed = simulate(free, held, cores)
        print(f"{cores:6}{speed:10.0f}{speed * (free.mean() + held) / cores:10.0%}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

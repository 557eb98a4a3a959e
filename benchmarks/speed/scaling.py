"""How many cores one process of the native loader can use: simulated from times measured here.

    python benchmarks/scaling.py --shards 'in1k-sample-{0000..0003}.tar' [--images 300]

Measured, on one thread: each image's time in decoding and rendering, for which the GIL is released,
and what an image costs besides, all of which is taken to hold the GIL (an upper bound: the read and
libjpeg's set-up release it too). Simulated: threads that take a few images in turn, hold the GIL to
read each and once more to hand them over, and queue for it in order. The simulation knows nothing
of memory bandwidth, clock speeds or hyper-threads.
"""

import dataclasses
import heapq
import time

import numpy as np
import torch
import tyro

from maskco_fast.bench.harness import machine
from maskco_fast.bench.stages import hand_over
from maskco_fast.kernels.plan import plan
from maskco_fast.kernels.render_jpegs import JpegRenderer
from maskco_fast.kernels.views import ViewConfig
from maskco_fast.loaders import open_dataset
from maskco_fast.loaders.backends.sample_renderer import SAMPLES_PER_CALL
from maskco_fast.loaders.buffers import BufferPool
from maskco_fast.loaders.shards.decode import Decoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Simulate the native loader on many cores."""

    shards: tuple[str, ...]
    """Tar shards or folders of photographs."""
    images: int = 300
    """Images whose times are measured."""
    cores: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 96)


def free_times(options: Options) -> np.ndarray:
    """(n,) seconds of each image in decoding and rendering two 224-pixel views; the median of
    three."""
    dataset, views = open_dataset(options.shards), ViewConfig.maskco(224)
    positions = np.linspace(0, len(dataset) - 1, min(options.images, len(dataset))).astype(int)
    samples = dataset.samples[positions]
    sides = np.stack([samples["height"], samples["width"]], 1).astype(np.int64)
    rows = plan(views, 0, 0, samples["sample_id"], samples["height"], samples["width"])
    decoder, renderer = Decoder(), JpegRenderer(views)
    out, first = BufferPool((2, 1, 224, 224, 3), torch.float32).take(), np.zeros(1, np.int64)
    times = np.empty((4, len(positions)))
    for took in times:
        for n, position in enumerate(positions.tolist()):
            data = dataset.read(position)
            began = time.perf_counter()
            if not renderer.render_jpegs(
                [data], sides[n : n + 1], rows[n : n + 1], first, out
            ).all():
                renderer.render(decoder.decode(data, samples[n]), 0, 0, rows[n], out, 0)
            took[n] = time.perf_counter() - began
    return np.median(times[1:], 0)


def simulate(free: np.ndarray, held: float, cores: int, images: int = 20_000) -> float:
    """Images/s of `cores` threads, a core each, that take `SAMPLES_PER_CALL` images at a time.

    For each of them a thread holds the GIL to read it, and once more for all; then follows what is
    free of it.
    """
    random = np.random.default_rng(0)
    tasks = random.choice(free, (images // SAMPLES_PER_CALL, SAMPLES_PER_CALL)).sum(1)
    holds = SAMPLES_PER_CALL + 1
    hold = held * SAMPLES_PER_CALL / holds
    threads = [(0.0, thread) for thread in range(cores)]  # when each thread next wants the GIL
    left = [0] * cores  # holds until its task is free of the GIL
    at = [0.0] * cores
    begun, gil_free, last = 0, 0.0, 0.0
    while threads:
        now, thread = heapq.heappop(threads)
        if not left[thread]:
            if begun == len(tasks):
                continue
            left[thread], at[thread], begun = holds, tasks[begun], begun + 1
        gil_free = max(now, gil_free) + hold
        left[thread] -= 1
        until = gil_free + (0.0 if left[thread] else at[thread])
        last = max(last, until)
        heapq.heappush(threads, (until, thread))
    return len(tasks) * SAMPLES_PER_CALL / last


def main(options: Options) -> None:
    """Print what was measured and the table."""
    free, held = free_times(options), hand_over() / 1000
    print(machine())
    print(
        f"an image: {1e3 * free.mean():.2f} ms without the GIL (measured), at most {1e6 * held:.0f} us with it"
    )
    print(f"the GIL alone would end one process's growth at {1 / held:.0f} images/s\n")
    print(f"{'cores':>6}{'images/s':>10}{'of ideal':>10}   simulated")
    for cores in options.cores:
        speed = simulate(free, held, cores)
        print(f"{cores:6}{speed:10.0f}{speed * (free.mean() + held) / cores:10.0%}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

"""Images/s of one native loader over cores: measured on this machine's, simulated beyond.

    python -m benchmarks.speed.scaling --shards 'in1k-sample-{0000..0003}.tar' [--images 300]

Measured: epochs of the loader with 1, 2, … threads, up to the CPUs that this process may use, in
interleaved rounds. For the simulation, on one thread: each image's time in decoding and rendering,
which releases the GIL, and Python's time an image, all of which counts as holding the GIL (an upper
bound: reading releases it too). Simulated threads take a few images in turn, hold the GIL a few
times for them, and queue for it in order. The simulation leaves out what a change of its holder
costs, memory bandwidth, clock speeds and hyper-threads.
"""

import dataclasses
import heapq
import time
from collections.abc import Sequence

import numpy as np
import torch
import tyro

from maskco_fast.bench.harness import Spread, machine
from maskco_fast.bench.stages import hand_over
from maskco_fast.kernels.jpeg.checkpoints import Checkpoints, checksum, find_checkpoints
from maskco_fast.kernels.plan import plan
from maskco_fast.kernels.render.jpegs import JpegRenderer
from maskco_fast.kernels.views import ViewConfig
from maskco_fast.loaders import Loader, make_loader, open_dataset
from maskco_fast.loaders.backends.sample_renderer import MOST_PER_CALL
from maskco_fast.loaders.buffers import BufferPool
from maskco_fast.loaders.shards.decode import Decoder
from maskco_fast.loaders.system.cpus import usable_cpus

HOLDS = 5
"""Times that a thread takes the GIL for its images: around the reads of entries, checkpoints and
files, the rendering, and to hand them over."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Measure and simulate the native loader on many cores."""

    shards: tuple[str, ...]
    """Tar shards or folders of photographs."""
    images: int = 300
    """Images whose times are measured for the simulation."""
    cores: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 96)
    """Cores to simulate."""
    rounds: int = 3
    """Epochs that are counted for each number of threads, after one that is not."""
    batch_size: int = 50
    """Images a batch of the measured epochs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaling:
    """Images/s of one process, by cores."""

    measured: dict[int, Spread]
    """Of whole epochs, by threads."""
    simulated: dict[int, float]
    free_ms: float
    """Mean time of an image without the GIL."""
    held_us: float
    """Python's time an image, at most this much with the GIL."""

    def share(self, cores: int) -> float:
        """Simulated images/s over those of as many cores that never wait."""
        ideal = 1000 * cores / (self.free_ms + self.held_us / 1000)
        return self.simulated[cores] / ideal


def times_without_gil(options: Options) -> np.ndarray:
    """(n,) seconds of decoding and rendering two 224-pixel views of each image, from checkpoints as
    from the second epoch on; medians of three passes."""
    dataset = open_dataset(options.shards)
    views = ViewConfig.maskco()
    positions = np.linspace(0, len(dataset) - 1, min(options.images, len(dataset))).astype(int)
    samples = dataset.samples[positions]
    sides = np.stack([samples["height"], samples["width"]], 1).astype(np.int64)
    rows = plan(views, 0, 0, samples["sample_id"], samples["height"], samples["width"])
    decoder = Decoder()
    renderer = JpegRenderer(views)
    out = BufferPool((2, 1, views.size, views.size, 3), torch.float32).take()
    slot = np.zeros(1, np.int64)
    times = np.empty((4, len(positions)))
    checkpoints = [checkpoints_of(dataset.read(position)) for position in positions.tolist()]
    for seconds in times:
        for n, position in enumerate(positions.tolist()):
            data = dataset.read(position)
            began = time.perf_counter()
            one = slice(n, n + 1)
            arguments = [data], sides[one], rows[one], slot, out, checkpoints[n]
            if not renderer.render_jpegs(*arguments).all():
                renderer.render(decoder.decode(data, samples[n]), 0, 0, rows[n], out, 0)
            seconds[n] = time.perf_counter() - began
    return np.median(times[1:], 0)  # the first pass warms up


def checkpoints_of(data: bytes) -> Checkpoints | None:
    """The checkpoints of one JPEG, None where it has none."""
    rows = find_checkpoints(data)
    if rows is None:
        return None
    return Checkpoints(
        rows=rows,
        begins=np.array([0, len(rows)]),
        lengths=np.array([len(data)]),
        checksums=np.array([checksum(data)], np.uint32),
    )


def simulate(free: np.ndarray, held: float, cores: int, images: int = 20_000) -> float:
    """Images/s of `cores` threads, a core each.

    `free`: seconds without the GIL of sample images; `held`: seconds with it, an image. A thread
    takes `MOST_PER_CALL` images at a time, holds the GIL `HOLDS` times, and works without it.
    """
    random = np.random.default_rng(0)
    shape = (images // MOST_PER_CALL, MOST_PER_CALL)
    tasks = random.choice(free, shape).sum(1)  # seconds without the GIL
    hold = held * MOST_PER_CALL / HOLDS
    waiting = [(0.0, thread) for thread in range(cores)]  # when each thread next asks for the GIL
    left = [0] * cores  # holds left of the thread's task
    work = [0.0] * cores  # seconds without the GIL of the thread's task
    begun = 0
    gil_free = 0.0  # when the GIL is next free
    last = 0.0
    while waiting:
        now, thread = heapq.heappop(waiting)
        if not left[thread]:
            if begun == len(tasks):
                continue
            left[thread] = HOLDS
            work[thread] = tasks[begun]
            begun += 1
        gil_free = max(now, gil_free) + hold
        left[thread] -= 1
        until = gil_free + (0.0 if left[thread] else work[thread])
        last = max(last, until)
        heapq.heappush(waiting, (until, thread))
    return len(tasks) * MOST_PER_CALL / last


def measure_threads(options: Options, threads: Sequence[int]) -> dict[int, Spread]:
    """Images/s of the native loader's epochs by number of threads, in interleaved rounds."""
    dataset = open_dataset(options.shards)
    batch = min(options.batch_size, len(dataset))
    loaders = {
        count: make_loader(dataset, batch, backend="native", threads=count, rank=0, world_size=1)
        for count in threads
    }
    speeds: dict[int, list[float]] = {count: [] for count in threads}
    for _ in range(options.rounds + 1):
        for count, loader in loaders.items():
            speeds[count].append(_epoch(loader))
    dataset.reader.close()
    return {count: Spread.of(found[1:]) for count, found in speeds.items()}


def _epoch(loader: Loader) -> float:
    """Images/s of one epoch."""
    began = time.perf_counter()
    images = sum(len(batch) for batch in loader)
    return images / (time.perf_counter() - began)


def measure(options: Options) -> Scaling:
    """Measure this machine's cores and simulate `options.cores`."""
    cpus = usable_cpus()
    threads = sorted({*(count for count in options.cores if count <= cpus), 1, cpus})
    free = times_without_gil(options)
    held = max(hand_over() / 1000, 1e-7)
    return Scaling(
        measured=measure_threads(options, threads),
        simulated={cores: simulate(free, held, cores) for cores in options.cores},
        free_ms=1000 * float(free.mean()),
        held_us=1e6 * held,
    )


def main(options: Options) -> None:
    """Print the measured times and the table."""
    found = measure(options)
    print(machine())
    print(
        f"an image: {found.free_ms:.2f} ms without the GIL, at most {found.held_us:.0f} us with it,"
        f" which bounds one process at {1e6 / found.held_us:.0f} images/s\n"
    )
    print(f"{'cores':>6}{'measured':>20}{'simulated':>11}{'of ideal':>10}")
    for cores in sorted({*found.measured, *found.simulated}):
        measured = found.measured[cores].text() if cores in found.measured else "-"
        simulated, share = "-", "-"
        if cores in found.simulated:
            simulated = f"{found.simulated[cores]:.0f}"
            share = f"{found.share(cores):.0%}"
        print(f"{cores:6}{measured:>20}{simulated:>11}{share:>10}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

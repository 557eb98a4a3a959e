"""Images/s of one native loader over cores: measured on this machine's, simulated beyond.

    python -m benchmarks.speed.scaling --shards 'in1k-sample-{0000..0003}.tar' [--images 300]

Measured: epochs of the loader with 1, 2, … threads, up to the CPUs that this process may use, in
interleaved rounds. Simulated: the same loader with as many threads as there would be cores, whose
kernels sleep for as long as an image takes them, from checkpoints as from the second epoch on. This
machine's CPUs are then left with Python and reading, of which Python takes one thread at a time on
any number of cores. The simulation leaves out memory bandwidth, clock speeds and hyper-threads, and
is too low where reading alone fills this machine's CPUs.
"""

import dataclasses
import itertools
import pathlib
import tempfile
import time
from collections.abc import Sequence
from unittest import mock

import numpy as np
import torch
import tyro

from maskco_fast.bench.harness import Spread, machine
from maskco_fast.kernels.jpeg.checkpoints import Checkpoints, checksum, find_checkpoints
from maskco_fast.kernels.plan import plan
from maskco_fast.kernels.render.jpegs import JpegRenderer
from maskco_fast.kernels.views import ViewConfig
from maskco_fast.loaders import Dataset, Loader, make_loader, open_dataset
from maskco_fast.loaders.buffers import BufferPool
from maskco_fast.loaders.scans.scan_dataset import scan_dataset
from maskco_fast.loaders.shards.decode import Decoder
from maskco_fast.loaders.system.cpus import usable_cpus

SIMULATED_SAMPLES = 10_000
"""Of the simulation's data set at least, in links to the shards: epochs of some 40 batches."""
SIMULATED_BATCH = 256
"""Images a batch of the simulation, as for a GPU."""


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
    seconds: float = 2.0
    """Of each simulation."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaling:
    """Images/s of one process, by cores."""

    measured: dict[int, Spread]
    """Of whole epochs, by threads."""
    simulated: dict[int, float]
    free_ms: float
    """Mean time of an image in the kernels."""

    def share(self, cores: int) -> float:
        """Simulated images/s over those of as many cores with nothing to do but the kernels."""
        return self.simulated[cores] * self.free_ms / (1000 * cores)


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


def simulate(options: Options, free_s: float) -> dict[int, float]:
    """Images/s by threads whose kernels sleep for `free_s` seconds an image."""

    def sleep(
        self: JpegRenderer, decoders: object, finish: object, where: np.ndarray, *_: object
    ) -> np.ndarray:
        time.sleep(free_s * len(where))
        return np.ones(len(where), np.bool_)

    with tempfile.TemporaryDirectory() as folder:
        index = pathlib.Path(folder, "index")
        dataset = open_dataset(linked_shards(options.shards, folder), index_folder=index)
        scan_dataset(dataset, limit=1e9)
        with mock.patch.object(JpegRenderer, "_call", sleep):
            return {cores: _sleeping(dataset, cores, options.seconds) for cores in options.cores}


def linked_shards(shards: Sequence[str], folder: str) -> list[str]:
    """Links in `folder` to the shards, again and again, as many as `SIMULATED_SAMPLES` take."""
    dataset = open_dataset(tuple(shards))
    paths = [dataset.shards.path(number) for number in range(len(dataset.shards))]
    links = []
    for number in range(-(-SIMULATED_SAMPLES // len(dataset)) * len(paths)):
        path = pathlib.Path(paths[number % len(paths)]).resolve()
        link = pathlib.Path(folder, f"{number:04d}{path.suffix}")
        link.symlink_to(path)
        links.append(str(link))
    return links


def _sleeping(dataset: Dataset, threads: int, seconds: float) -> float:
    """Images/s of a loader on `dataset`, after its first batches."""
    with make_loader(
        dataset,
        min(SIMULATED_BATCH, len(dataset)),
        backend="native",
        threads=threads,
        rank=0,
        world_size=1,
    ) as loader:
        batches = itertools.chain.from_iterable(itertools.repeat(loader))
        for _ in range(2 * loader.config.prefetch):
            next(batches)
        images, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            images += len(next(batches))
        return images / (time.perf_counter() - began)


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
    return Scaling(
        measured=measure_threads(options, threads),
        simulated=simulate(options, float(free.mean())),
        free_ms=1000 * float(free.mean()),
    )


def main(options: Options) -> None:
    """Print the measured times and the table."""
    found = measure(options)
    print(machine())
    print(f"an image takes the kernels {found.free_ms:.2f} ms\n")
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

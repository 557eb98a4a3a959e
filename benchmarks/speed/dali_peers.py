"""Our DALI loader beside DALI's own operators: images/s of both views on a CPU, at the seam and
augmented.

    python benchmarks/dali_peers.py --shards 'shards/in1k-sample-{0000..0003}.tar'

Both pairs read the same shards with as many threads. At the seam (two uint8 views of 224 pixels)
DALI decodes each image once and resizes the same crops by its ROI resize; augmented, it is the MoCo
v2 pipeline of `maskco_fast.peers`. A round runs an epoch of each row in turn, so that what else the
machine does falls on all alike; the first round, which compiles and fills caches, is not counted. A
row of ours is timed only where its views are the reference loader's.
"""

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import tyro

from benchmarks.correctness.parity import SEAM, at_seam, gate
from maskco_fast.bench.harness import machine
from maskco_fast.bench.peers import dali_stock
from maskco_fast.bench.rows import Setting
from maskco_fast.kernels.plan import plan
from maskco_fast.loaders import Dataset, Loader, LoaderConfig, ViewConfig, open_dataset
from maskco_fast.loaders.backends.dali import DaliLoader
from maskco_fast.loaders.backends.reference import ReferenceLoader
from maskco_fast.loaders.order import SHARDS_PER_BLOCK, order
from maskco_fast.loaders.system.cpus import usable_cpus


@dataclass(frozen=True, kw_only=True)
class Options:
    """Time our DALI loader beside DALI's own operators."""

    shards: tuple[str, ...]
    """Tar shards of JPEGs: paths, globs or `{0000..0003}` ranges."""
    rounds: int = 5
    """Epochs a row that are counted."""
    batch_size: int = 50
    """Images a batch."""
    threads: int = usable_cpus()
    """DALI's threads, ours and the peers' alike."""
    size: int = 224
    """Side of the views, pixels."""


def our_loader(options: Options, dataset: Dataset, kind: type[Loader], *, seam: bool) -> Loader:
    """A loader of MaskCo's views: uint8 as at the seam, or augmented float32."""
    views = ViewConfig.maskco(options.size)
    config = LoaderConfig(
        batch_size=options.batch_size,
        views=at_seam(views) if seam else views,
        dtype=torch.uint8 if seam else torch.float32,
        threads=options.threads,
        rank=0,
        world_size=1,
    )
    return kind(dataset, config)


def check_views(options: Options, dataset: Dataset, *, seam: bool) -> str:
    """Our first batch against the reference loader's; RuntimeError where it is not within
    tolerance."""
    name = SEAM if seam else "finished, float32"
    mine, truth = (
        our_loader(options, dataset, kind, seam=seam) for kind in (DaliLoader, ReferenceLoader)
    )
    with mine, truth:
        return f"{name}: {gate(mine, truth, name)} levels from the reference, mean / largest"


def dali_roi_resize(options: Options, dataset: Dataset) -> Iterator[int]:
    """DALI's own graph for the same crops: decode, ROI resize, flip; two views (N, 224, 224, 3)
    uint8.

    The whole image is decoded, since the resize reads pixels outside the crop.
    """
    from nvidia.dali import fn, pipeline_def, types

    views = ViewConfig.maskco(options.size)
    positions = order(dataset.shard_sizes, seed=0, epoch=0, shuffle=True, block=SHARDS_PER_BLOCK)
    batches = len(positions) // options.batch_size

    def source(iteration: int) -> tuple[Any, ...]:
        if iteration == batches:
            raise StopIteration
        indices = positions[iteration * options.batch_size : (iteration + 1) * options.batch_size]
        samples = dataset.samples[indices]
        rows = plan(views, 0, 0, samples["sample_id"], samples["height"], samples["width"])
        named = rows.view(views.plan_dtype)[:, 0]["views"]
        crops, flips = named["crop"], named["flip"].astype(np.int32)
        encoded = [np.frombuffer(dataset.read(index), np.uint8) for index in indices]
        start, end = crops[..., :2], crops[..., :2] + crops[..., 2:]
        return encoded, *(
            np.ascontiguousarray(part[:, v]) for v in range(2) for part in (start, end, flips)
        )

    @pipeline_def(
        batch_size=options.batch_size,
        num_threads=options.threads,
        device_id=None,
        prefetch_queue_depth=3,
    )
    def graph() -> tuple[Any, Any]:
        encoded, *inputs = fn.external_source(source, num_outputs=7, batch=True)
        images = fn.decoders.image(
            encoded, device="cpu", output_type=types.RGB, adjust_orientation=False
        )
        made = []
        for v in range(2):
            start, end, flip = inputs[3 * v : 3 * v + 3]
            view = fn.resize(
                images, size=[options.size] * 2, roi_start=start, roi_end=end, antialias=True
            )
            made.append(fn.flip(view, horizontal=flip))
        return made[0], made[1]

    pipeline = graph()
    pipeline.build()
    for _ in range(batches):
        outputs = pipeline.run()
        yield len(torch.from_dlpack(outputs[0].as_tensor()))


def epochs(loader: Any) -> Callable[[], Iterator[int]]:
    """Batch sizes of one epoch of a loader or a peer's pipeline, each time that it is called."""

    def epoch() -> Iterator[int]:
        for batch in loader:
            yield len(batch[0]) if isinstance(batch, list | tuple) else len(batch)

    return epoch


def settle() -> None:
    """Return when this process is idle: a pipeline reads ahead beyond its epoch, at the cost of the
    row after it."""
    while True:
        before = time.process_time()
        time.sleep(0.2)
        if time.process_time() - before < 0.01:
            return


def timed(epoch: Iterator[int]) -> tuple[float, float]:
    """(images/s, CPU milliseconds an image) of one epoch."""
    settle()
    began, cpu = time.perf_counter(), time.process_time()
    images = sum(epoch)
    return images / (time.perf_counter() - began), 1000 * (time.process_time() - cpu) / images


def main(options: Options) -> None:
    """Check, time and print."""
    import nvidia.dali

    dataset = open_dataset(options.shards)
    print(
        f"{machine()}, DALI {nvidia.dali.__version__}; {len(dataset)} images, {dataclasses.asdict(options)}"
    )
    print(check_views(options, dataset, seam=True))
    print(check_views(options, dataset, seam=False))
    shards = tuple(options.shards)
    setting = Setting(
        shards=shards,
        batch_size=options.batch_size,
        size=options.size,
        workers=options.threads,
        dtype="float32",
        decode="exact",
        images=None,
        ffcv_ssl=None,
    )
    rows: dict[str, Callable[[], Iterator[int]]] = {
        "ours, to the seam": epochs(our_loader(options, dataset, DaliLoader, seam=True)),
        "DALI's ROI resize": lambda: dali_roi_resize(options, dataset),
        "ours, augmented": epochs(our_loader(options, dataset, DaliLoader, seam=False)),
        "DALI's MoCo v2": epochs(dali_stock(dataset, setting)),
    }
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in rows}
    for number in range(options.rounds + 1):
        for name, epoch in rows.items():
            rates[name].append(timed(epoch()))
        print(
            f"round {number}: " + ", ".join(f"{name} {rates[name][-1][0]:.0f}" for name in rows),
            file=sys.stderr,
        )
    print(f"{'row':20}{'images/s':>10}{'slowest-fastest':>18}{'CPU ms':>9}{'ratio':>8}")
    names = list(rows)
    for place, name in enumerate(names):
        speeds, costs = zip(*rates[name][1:])
        peer = [speed for speed, _ in rates[names[place ^ 1]][1:]]
        ratio = statistics.median(one / other for one, other in zip(speeds, peer))
        spread = f"{min(speeds):.0f}-{max(speeds):.0f}"
        line = f"{name:20}{statistics.median(speeds):>10.0f}{spread:>18}{statistics.median(costs):>9.2f}"
        print(line + (f"{ratio:>7.2f}x" if place % 2 == 0 else ""))
    print("ratio: over the row below it, round by round; medians of the rounds")


if __name__ == "__main__":
    main(tyro.cli(Options))

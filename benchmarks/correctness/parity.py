"""Differences of every loader's views from the reference loader's, in levels of 255, by stage;
boxes to the bit.

    python -m benchmarks.correctness.parity --shards 'in1k-sample-{0000..0003}.tar' [--images 400]

Prints the table of docs/loaders.md. The FFCV loader reads a .beton made of the same shards. The
exit code is 1 where a loader's plans, boxes or order differ from the reference, or its views exceed
`LIMITS`.
"""

import itertools
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from maskco_fast.bench.harness import machine
from maskco_fast.bench.parity import (
    FINISHED_LIMIT,
    SEAM_LIMIT,
    Difference,
    compare,
    seam_views,
)
from maskco_fast.loaders import (
    LOADERS,
    Batch,
    Dataset,
    Loader,
    LoaderConfig,
    ViewConfig,
    make_loader,
    open_dataset,
)
from maskco_fast.loaders.backends.dali import DaliLoader
from maskco_fast.loaders.backends.dali_graph import DeviceGraph
from maskco_fast.loaders.shards.beton_writer import write_beton

SEAM = "at the seam, uint8"
FINISHED = {
    "finished, uint8": torch.uint8,
    "finished, float32": torch.float32,
    "finished, bfloat16": torch.bfloat16,
}
LIMITS = {SEAM: SEAM_LIMIT, **dict.fromkeys(FINISHED, FINISHED_LIMIT)}
"""By stage and dtype."""
DEVICE_GRAPH = "dali, device graph on CPU operators"
DEVICE_LIMIT = Difference(mean=0.3, worst=32, far=1 / 1000)
"""At the edges DALI's resize repeats a crop's outermost pixels, where Pillow leaves them out of the
filter."""


class DeviceGraphLoader(DaliLoader):
    """DALI's graph for a CUDA device, built from the CPU's operators: it ends at the seam."""

    def _make_graph(self) -> DeviceGraph:
        return DeviceGraph(self.config, None)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare the loaders with the reference."""

    shards: tuple[str, ...]
    """Tar shards or folders of images."""
    images: int = 400
    """Images compared."""
    batch_size: int = 50
    """Images a batch."""
    size: int = 224
    """Side of the views, pixels."""
    seed: int = 0
    """Seed of the order and the plans."""


def differences(
    options: Options, dataset: Dataset, beton: Dataset
) -> dict[str, dict[str, Difference]]:
    """The difference from the reference, by loader and key of `LIMITS`."""
    views = ViewConfig.maskco(options.size)

    def open_loader(backend: str, stage: str) -> Loader:
        return make_loader(
            beton if backend == "ffcv" else dataset,
            options.batch_size,
            views=seam_views(views) if stage == SEAM else views,
            backend=backend,
            dtype=torch.uint8 if stage == SEAM else FINISHED[stage],
            seed=options.seed,
            rank=0,
            world_size=1,
        )

    def first_batches(loader: Loader) -> Iterator[Batch]:
        with loader:
            yield from itertools.islice(loader, options.images // options.batch_size)

    backends = [name for name in LOADERS if name != "reference"]
    found: dict[str, dict[str, Difference]] = {name: {} for name in (*backends, DEVICE_GRAPH)}
    truth: list[Batch] = []
    for stage in LIMITS:
        if stage != "finished, bfloat16":  # compared with float32, so that its rounding counts too
            truth = list(first_batches(open_loader("reference", stage)))
        for backend in backends:
            found[backend][stage] = compare(first_batches(open_loader(backend, stage)), truth)
        if stage == SEAM:
            config = LoaderConfig(
                batch_size=options.batch_size,
                views=seam_views(views),
                dtype=torch.uint8,
                seed=options.seed,
                rank=0,
                world_size=1,
            )
            loader = DeviceGraphLoader(dataset, config)
            found[DEVICE_GRAPH][stage] = compare(first_batches(loader), truth)
    return found


def main(options: Options) -> int:
    """Print the table; returns 0, or 1 where a loader exceeds a limit."""
    dataset = open_dataset(options.shards)
    print(
        f"{machine()}; {options.images} images, two {options.size} views; "
        "mean / largest difference in levels"
    )
    print(f"| loader | {' | '.join(LIMITS)} | boxes |\n|{'---|' * (len(LIMITS) + 2)}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "same.beton")
        write_beton(dataset, path)
        found = differences(options, dataset, open_dataset([str(path)]))
    red = False
    for name, by_stage in found.items():
        cells = [str(by_stage[stage]) if stage in by_stage else "" for stage in LIMITS]
        print(f"| {name} | {' | '.join(cells)} | equal |", flush=True)
        limits = {SEAM: DEVICE_LIMIT} if name == DEVICE_GRAPH else LIMITS
        red = red or not all(one.within(limits[stage]) for stage, one in by_stage.items())
    return int(red)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))

"""Every loader's views beside the reference loader's, in levels of 255, at each seam; boxes to the
bit.

    python benchmarks/parity.py --shards 'shards/in1k-sample-{0000..0003}.tar' [--images 400]

Prints the table of the README. The FFCV loader reads a .beton made of the same shards. A row whose
plans, boxes or order are not the reference's, or whose views are not within `LIMITS` of it, ends
the command with exit code 1.
"""

import dataclasses
import itertools
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from maskco_fast.bench.harness import machine
from maskco_fast.kernels.views import IMAGENET_STD
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

FAR = 3
"""Levels; a value further from the reference is far."""


@dataclass(frozen=True)
class Apart:
    """How far views are from the reference's, levels."""

    mean: float
    worst: float
    far: float
    """Share of the values that are more than `FAR` off."""

    def within(self, limit: "Apart") -> bool:
        """Whether no figure is above `limit`'s."""
        return self.mean <= limit.mean and self.worst <= limit.worst and self.far <= limit.far

    def __str__(self) -> str:
        return f"{self.mean:.3f} / {self.worst:.0f}"


SEAM = "at the seam, uint8"
FINISHED = {
    "finished, uint8": torch.uint8,
    "finished, float32": torch.float32,
    "finished, bfloat16": torch.bfloat16,
}
LIMITS = {SEAM: Apart(0.2, 1, 0), **dict.fromkeys(FINISHED, Apart(0.5, 16, 1 / 200))}
"""The tolerances that tests/loaders/test_conformance.py holds every loader to."""
DEVICE_GRAPH = "dali, device graph on CPU operators"
DEVICE_LIMIT = Apart(0.3, 32, 1 / 1000)
"""DALI's resize repeats a crop's outermost pixels where Pillow leaves them out of the filter: its
edges differ."""


class DeviceGraphLoader(DaliLoader):
    """DALI's graph for a CUDA device, made of the CPU's operators: it ends at the seam."""

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
    """Of the order and the plans."""


def at_seam(views: ViewConfig) -> ViewConfig:
    """The same crops and flips with colours left alone: their finished levels are those at the
    seam."""
    plain = {"jitter_probability": 0.0, "gray_probability": 0.0, "blur_probability": 0.0}
    return dataclasses.replace(
        views, views=tuple(dataclasses.replace(view, **plain) for view in views.views)
    )


def levels_apart(mine: Batch, truth: Batch) -> torch.Tensor:
    """Every value's difference in levels, flat. RuntimeError where sample, order or boxes are not
    the same."""
    for name in ("index", "sample_id", "target", "masked_box", "key_boxes"):
        if not torch.equal(getattr(mine, name), getattr(truth, name)):
            raise RuntimeError(f"parity is red: {name} differs from the reference loader's")
    levels = (
        torch.ones(3) if mine.views[0].dtype == torch.uint8 else 255 * torch.tensor(IMAGENET_STD)
    )
    scale = levels.view(3, 1, 1)
    differences = [
        (one.float() - other.float()).abs() * scale for one, other in zip(mine.views, truth.views)
    ]
    return torch.stack(differences).flatten()


def compare(mine: Iterable[Batch], truth: Iterable[Batch]) -> Apart:
    """The batches of two loaders; as many as the shorter one has."""
    batches = [levels_apart(one, other) for one, other in zip(mine, truth)]
    apart = torch.cat(batches)
    return Apart(apart.mean().item(), apart.max().item(), (apart > FAR).float().mean().item())


def gate(mine: Loader, truth: Loader, seam: str) -> Apart:
    """The first batch's difference from the reference; RuntimeError where it is not within the
    seam's limit."""
    apart = compare(itertools.islice(mine, 1), itertools.islice(truth, 1))
    if not apart.within(LIMITS[seam]):
        raise RuntimeError(
            f"parity is red: {seam}, {apart} levels from the reference (mean / worst): not timed"
        )
    return apart


def differences(options: Options, dataset: Dataset, beton: Dataset) -> dict[str, dict[str, Apart]]:
    """By loader and seam: the difference from the reference."""
    views = ViewConfig.maskco(options.size)
    common = {"seed": options.seed, "rank": 0, "world_size": 1}

    def first_batches(loader: Loader) -> Iterator[Batch]:
        with loader:
            yield from itertools.islice(loader, options.images // options.batch_size)

    def make(backend: str, seam: str) -> Loader:
        source = beton if backend == "ffcv" else dataset
        seam_views, dtype = (
            (at_seam(views), torch.uint8) if seam == SEAM else (views, FINISHED[seam])
        )
        return make_loader(
            source, options.batch_size, views=seam_views, backend=backend, dtype=dtype, **common
        )

    found: dict[str, dict[str, Apart]] = {
        name: {} for name in (*LOADERS, DEVICE_GRAPH) if name != "reference"
    }
    truth: list[Batch] = []
    for seam in LIMITS:
        if seam != "finished, bfloat16":  # held to float32, so that its rounding counts as well
            truth = list(first_batches(make("reference", seam)))
        for backend in LOADERS:
            if backend != "reference":
                found[backend][seam] = compare(first_batches(make(backend, seam)), truth)
        if seam == SEAM:
            config = LoaderConfig(
                batch_size=options.batch_size, views=at_seam(views), dtype=torch.uint8, **common
            )
            found[DEVICE_GRAPH][seam] = compare(
                first_batches(DeviceGraphLoader(dataset, config)), truth
            )
    return found


def main(options: Options) -> int:
    """Print the table; returns 0, or 1 where a row is red."""
    dataset = open_dataset(options.shards)
    print(
        f"{machine()}; {options.images} images, two {options.size} views; mean / largest difference in levels"
    )
    print(f"| loader | {' | '.join(LIMITS)} | boxes |\n|{'---|' * (len(LIMITS) + 2)}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "same.beton")
        write_beton(dataset, path)
        found = differences(options, dataset, open_dataset([str(path)]))
    red = False
    for name, apart in found.items():
        cells = [str(apart[seam]) if seam in apart else "" for seam in LIMITS]
        print(f"| {name} | {' | '.join(cells)} | equal |", flush=True)
        limits = {SEAM: DEVICE_LIMIT} if name == DEVICE_GRAPH else LIMITS
        red = red or not all(one.within(limits[seam]) for seam, one in apart.items())
    return int(red)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))

"""DALI's device graph on a GPU: its values while the device lags behind, and its images a second.

    python -m benchmarks.gpu.dali --shards 'in1k-{0000..0015}.tar' --json dali.json

Two graphs: regions decoded on the CPU, and whole images decoded on the device (needs nvJPEG). Each
is compared with the native loader's batches on the same device. Levels differ by DALI's own resize;
boxes and ids must be equal. Then the loader alone is timed.
"""

import itertools
import pathlib
import sys
from dataclasses import dataclass
from typing import Any

import torch
import tyro

from benchmarks.gpu.lines import Lines
from benchmarks.gpu.step import loader_alone
from maskco_fast.loaders import Dataset, Loader, ViewConfig, make_loader, open_dataset
from maskco_fast.loaders.backends.dali import DaliLoader
from maskco_fast.loaders.config import LoaderConfig

FAR = 24
"""Levels of 255; a larger difference is counted."""
LAG = 50_000_000
"""Cycles that the device sleeps after a batch, about 30 ms."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Check and time DALI's device graph."""

    shards: str
    """Shards of JPEGs."""
    device: str = "cuda"
    """cuda, or cpu for a dry run, which has DALI's host graph."""
    size: int = 224
    """Side of the views, pixels."""
    batch: int = 64
    """Images a batch when values are compared."""
    batches: int = 6
    """Batches that are compared, all kept meanwhile."""
    timed_batch: int = 256
    """Images a batch when the loader is timed."""
    seconds: float = 5.0
    """For each timing."""
    json: pathlib.Path | None = None
    """Where the results are written, after each one."""


def dali_loader(options: Options, dataset: Dataset, batch: int, on_device: bool) -> Loader:
    """DALI's loader of levels."""
    config = LoaderConfig(
        batch_size=batch,
        views=ViewConfig.maskco(options.size),
        dtype=torch.uint8,
        device=options.device,
        rank=0,
        world_size=1,
    )
    return DaliLoader(dataset, config, decode_on_device=on_device)


def values(options: Options, dataset: Dataset, on_device: bool) -> dict[str, Any]:
    """Compare every batch with the native loader's.

    Each is held while the device sleeps: memory that is given back too early is then overwritten by
    a later batch before it is compared.
    """
    native = make_loader(
        dataset,
        options.batch,
        views=ViewConfig.maskco(options.size),
        device=options.device,
        dtype=torch.uint8,
        backend="native",
        rank=0,
        world_size=1,
    )
    with dali_loader(options, dataset, options.batch, on_device) as ours, native:
        kept = []
        for batch in itertools.islice(ours, options.batches):
            if options.device.startswith("cuda"):
                torch.cuda._sleep(LAG)
            kept.append(batch)
        equal = True
        means = []
        shares = []
        for one, other in zip(kept, native):
            equal &= torch.equal(one.sample_id, other.sample_id)
            if one.key_boxes is not None and other.key_boxes is not None:
                equal &= torch.equal(one.key_boxes, other.key_boxes)
            for view, expected in zip(one.views, other.views):
                apart = (view.int() - expected.int()).abs().float()
                means.append(apart.mean().item())
                shares.append((apart > FAR).float().mean().item())
    return {
        "numbers_equal": equal,
        "mean_levels": sum(means) / len(means),
        f"share_beyond_{FAR}": sum(shares) / len(shares),
    }


def speed(options: Options, dataset: Dataset, on_device: bool) -> float:
    """Images a second of the loader alone."""
    with dali_loader(options, dataset, options.timed_batch, on_device) as ours:
        return loader_alone(ours, options.seconds, options.device)


def main(options: Options) -> int:
    """Both graphs; one that fails is a line."""
    lines = Lines(options.json)
    dataset = open_dataset(options.shards)
    graphs = {"regions decoded on the CPU": False}
    if options.device.startswith("cuda"):
        graphs["images decoded on the device"] = True
    for name, on_device in graphs.items():
        lines.attempt(f"{name}: values", lambda on=on_device: values(options, dataset, on))  # type: ignore[misc]
        lines.attempt(f"{name}: images/s", lambda on=on_device: speed(options, dataset, on))  # type: ignore[misc]
    return int(bool(lines.failed))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))

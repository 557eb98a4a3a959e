"""What shuffling more shards together costs: an epoch from shards that no cache holds.

    python -m benchmarks.speed.shuffle_block --shards 'train-{0000..0099}.tar' [--copies 10]

Before each epoch the system is asked to drop the shards from its cache (posix_fadvise), so that
they are read from the disk; a disk or a host with a cache of its own may still answer from that.
The settings take turns. `--copies` makes more shards out of few: each shard's samples, dealt to
that many shards in a temporary folder, with keys of their own.
"""

import dataclasses
import os
import pathlib
import tarfile
import tempfile
import time
from collections.abc import Sequence

import tyro

from maskco_fast.bench.harness import Spread, machine, ratio_by_round
from maskco_fast.loaders import Dataset, ViewConfig, make_loader, open_dataset
from maskco_fast.loaders.order import ALL, SHARDS_PER_BLOCK, ShuffleBlock
from maskco_fast.loaders.shards.names import expand

SETTINGS: tuple[ShuffleBlock, ...] = (SHARDS_PER_BLOCK, ALL)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Time epochs by how many shards are shuffled together."""

    shards: tuple[str, ...]
    """Tar shards on a disk of this machine, more than 16 of them."""
    copies: int = 0
    """Copies to make of each shard before; 0 reads the shards themselves."""
    batch_size: int = 64
    rounds: int = 5
    """Epochs of each setting that are counted, after one that is not."""


def copy_shard(path: str, folder: pathlib.Path, copies: int) -> list[str]:
    """Copy a shard `copies` times, keys prefixed with the copy's number; returns the paths."""
    out = [folder / f"{pathlib.Path(path).stem}-{copy:04d}.tar" for copy in range(copies)]
    with tarfile.open(path) as source:
        members = [member for member in source if member.isfile()]
        for number, target in enumerate(out):
            with tarfile.open(target, "w") as tar:
                for member in members:
                    copied = tarfile.TarInfo(f"{number:04d}-{pathlib.Path(member.name).name}")
                    copied.size = member.size
                    tar.addfile(copied, source.extractfile(member))
    return [str(target) for target in out]


def drop_from_cache(paths: Sequence[str]) -> None:
    """Write the files to the disk and drop them from the system's cache."""
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def epoch(dataset: Dataset, paths: Sequence[str], block: ShuffleBlock, options: Options) -> float:
    """Images/s of an epoch, from its first batch on."""
    with make_loader(
        dataset,
        options.batch_size,
        views=ViewConfig.maskco(),
        shuffle_block=block,
        scan_index_gb=0,
    ) as loader:
        drop_from_cache(paths)
        batches = iter(loader)
        next(batches)
        began = time.perf_counter()
        images = sum(len(batch) for batch in batches)
        return images / (time.perf_counter() - began)


def main(options: Options) -> None:
    """Print the table."""
    paths = expand(options.shards)
    with tempfile.TemporaryDirectory() as folder:
        if options.copies:
            copied = (copy_shard(path, pathlib.Path(folder), options.copies) for path in paths)
            paths = [path for several in copied for path in several]
        dataset = open_dataset(paths, index_folder=folder)
        speeds: dict[ShuffleBlock, list[float]] = {block: [] for block in SETTINGS}
        for number in range(options.rounds + 1):
            for block in SETTINGS:
                speed = epoch(dataset, paths, block, options)
                if number:
                    speeds[block].append(speed)
    print(f"{machine()}; {len(paths)} shards")
    print(f"{'--shuffle-block':18}{'images/s':>20}  over {SETTINGS[0]}'s, by round")
    for block, found in speeds.items():
        ratio = ratio_by_round(found, speeds[SETTINGS[0]]).text(2)
        print(f"{block!s:18}{Spread.of(found).text():>20}  {ratio}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

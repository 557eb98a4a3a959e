"""The `beton` command: convert shards to one .beton file, FFCV's format.

All loaders here read such a file.
"""

import pathlib
import time
from dataclasses import dataclass, field

from maskco_fast.errors import SUCCESS
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import Quarantine, RemoteConfig, open_dataset
from maskco_fast.loaders.shards.beton_encode import BetonOptions, estimate
from maskco_fast.loaders.shards.beton_writer import write_beton
from maskco_fast.loaders.system.cpus import usable_cpus
from maskco_fast.progress import ProgressLines, duration


@dataclass(frozen=True, kw_only=True)
class BetonConfig:
    """Convert shards to one .beton file. Repeat the command to resume after an interruption."""

    shards: tuple[str, ...]
    """Tar shards: paths, globs, `{0000..0331}` ranges, http(s)://, s3:// and pipe: names, or
    folders of images."""
    out: pathlib.Path
    """The file to write; its name must end in .beton."""
    labels: str | None = None
    """Labels to store with their class list: cls, json:FIELD or folder. None: the numbers in .cls
    members, without a list."""
    max_side: int | None = None
    """Largest side, pixels: larger images are shrunk and encoded as JPEG. None: keep the original
    bytes of every JPEG."""
    quality: int = 90
    """JPEG quality of the images that are encoded, 1..100."""
    check: bool = True
    """Read the finished file and compare the original bytes with the shards."""
    threads: int | None = None
    """Images read and encoded at a time. None: one for each CPU available to this process."""
    index_folder: pathlib.Path | None = None
    """Folder of the shards' indexes. None: the user's cache folder."""
    report: pathlib.Path | None = None
    """Write every sample left out to this file, in the format of a run's quarantine.json."""
    remote: RemoteConfig = field(default_factory=RemoteConfig)

    def __post_init__(self) -> None:
        if self.out.suffix != ".beton":
            raise InvalidInput(
                f"`out` must end in .beton, got {self.out}. Name it {self.out.name}.beton."
            )


def beton(config: BetonConfig) -> int:
    """Write and check the file, print what was left out; returns the exit code.

    Raises what `open_dataset` and `write_beton` raise.
    """
    options = BetonOptions(max_side=config.max_side, quality=config.quality)
    threads = config.threads or usable_cpus()
    dataset = open_dataset(
        config.shards,
        labels=config.labels,
        index_folder=config.index_folder,
        threads=threads,
        remote=config.remote,
    )
    expected = estimate(dataset, options, threads)
    print(
        f"{expected.samples} samples from {len(dataset.shards)} shards, "
        f"{len(dataset.bad)} left out by the index; about {expected.bytes / 1e6:.0f} MB, and "
        f"{duration(expected.seconds)} with {threads} threads, without the disk's time",
        flush=True,
    )
    began = time.monotonic()
    left_out = write_beton(
        dataset, config.out, options, threads=threads, check=config.check, progress=ProgressLines()
    )
    seconds = time.monotonic() - began
    quarantine = Quarantine([*dataset.bad, *left_out])
    if config.report is not None:
        quarantine.write(config.report)
    print(
        f"{config.out}: {len(dataset) - len(left_out)} samples, "
        f"{config.out.stat().st_size / 1e6:.0f} MB in {duration(seconds)}; "
        f"{len(quarantine)} left out"
    )
    for reason, count in quarantine.by_reason().items():
        print(f"  {count:>7}  {reason}")
    return SUCCESS

"""The `beton` command: shards into one .beton file, which the FFCV loader and every other one here
reads."""

import pathlib
import time
from dataclasses import dataclass, field

from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import Quarantine, RemoteConfig, open_dataset
from maskco_fast.loaders.shards.beton_writer import BetonOptions, estimate, write_beton
from maskco_fast.loaders.system.cpus import usable_cpus
from maskco_fast.progress import ProgressLines, duration


@dataclass(frozen=True, kw_only=True)
class BetonConfig:
    """Write shards into one .beton file. The same command goes on where an interrupted one stood."""

    shards: tuple[str, ...]
    """Tar shards: paths, globs, `{0000..0331}` ranges, http(s)://, s3:// and pipe: names, or
    folders of images."""
    out: pathlib.Path
    """The file to write, by custom NAME.beton."""
    max_side: int | None = None
    """Longest side, pixels: larger images are shrunk and encoded anew. None keeps every JPEG's
    original bytes."""
    quality: int = 90
    """JPEG quality of what is encoded anew, 1..100."""
    check: bool = True
    """Read the file again and compare the original bytes with the shards."""
    threads: int | None = None
    """Images read and encoded at a time; None for the CPUs that this process may use."""
    index_folder: pathlib.Path | None = None
    """Where the shards' indexes are kept; None for the user's cache folder."""
    report: pathlib.Path | None = None
    """Write every sample left out here, as the trainer's quarantine.json."""
    remote: RemoteConfig = field(default_factory=RemoteConfig)

    def __post_init__(self) -> None:
        if self.out.suffix != ".beton":
            raise InvalidInput(
                f"out is {self.out}; loaders know the file by its suffix: name it {self.out.name}.beton"
            )


def beton(config: BetonConfig) -> int:
    """Tell what writing will take, write, check, and tell what was left out; returns 0.

    FileNotFoundError, EmptyDataset, ValueError and OSError as `open_dataset` and `write_beton`
    raise them.
    """
    options = BetonOptions(max_side=config.max_side, quality=config.quality)
    threads = config.threads or usable_cpus()
    dataset = open_dataset(
        config.shards, index_folder=config.index_folder, threads=threads, remote=config.remote
    )
    wanted = estimate(dataset, options, threads)
    print(
        f"{wanted.samples} samples from {len(dataset.shards)} shards, {len(dataset.bad)} left out by the index; "
        f"about {wanted.bytes / 1e6:.0f} MB, and {duration(wanted.seconds)} with {threads} threads besides the disk",
        flush=True,
    )
    began = time.monotonic()
    found = write_beton(
        dataset, config.out, options, threads=threads, check=config.check, progress=ProgressLines()
    )
    seconds = time.monotonic() - began
    quarantine = Quarantine([*dataset.bad, *found])
    if config.report is not None:
        quarantine.write(config.report)
    written = len(dataset) - len(found)
    size = config.out.stat().st_size
    print(
        f"{config.out}: {written} samples, {size / 1e6:.0f} MB in {duration(seconds)}; {len(quarantine)} left out"
    )
    for reason, count in quarantine.by_reason().items():
        print(f"  {count:>7}  {reason}")
    return 0

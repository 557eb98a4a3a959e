"""The `beton` command: convert shards to one .beton file, FFCV's format, and give its JPEGs back.

All loaders here read such a file.
"""

import pathlib
import time
from dataclasses import dataclass, field

from maskco_fast.errors import FAILURE, SUCCESS
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import Quarantine, RemoteConfig, open_dataset
from maskco_fast.loaders.shards.beton import BetonDataset
from maskco_fast.loaders.shards.beton_encode import BetonOptions, Form, estimate
from maskco_fast.loaders.shards.beton_writer import write_beton, write_jpegs
from maskco_fast.loaders.system.cpus import usable_cpus
from maskco_fast.progress import ProgressLines, duration


@dataclass(frozen=True, kw_only=True)
class BetonConfig:
    """Convert shards to one .beton file, or give the images of one back. Repeat the command to
    resume after an interruption."""

    shards: tuple[str, ...] = ()
    """Tar shards: paths, globs, `{0000..0331}` ranges, http(s)://, s3:// and pipe: names, or
    folders of images."""
    out: pathlib.Path | None = None
    """The file to write; its name must end in .beton."""
    form: Form = "jpeg"
    """How JPEGs are stored: jpeg, as they are; coefficients, in a form of our own that is read
    about twice as fast and takes a quarter more bytes. It gives the JPEGs back, byte for byte."""
    to_jpeg: tuple[pathlib.Path, pathlib.Path] | None = None
    """A .beton file and a folder: write the file's images there, a tar for each shard that it was
    made from, instead of a .beton file."""
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
        if (self.out is None) == (self.to_jpeg is None) or bool(self.shards) != bool(self.out):
            raise InvalidInput(
                "`shards` and `out` must be given together, or `to_jpeg` alone. To convert shards, "
                "pass --shards 'train-*.tar' --out train.beton; to get the images back, pass "
                "--to-jpeg train.beton FOLDER."
            )
        if self.out is not None and self.out.suffix != ".beton":
            raise InvalidInput(
                f"`out` must end in .beton, got {self.out}. Name it {self.out.name}.beton."
            )


def beton(config: BetonConfig) -> int:
    """Write and check the file, print what was left out; returns the exit code.

    Raises what `open_dataset`, `write_beton` and `write_jpegs` raise.
    """
    threads = config.threads or usable_cpus()
    if config.to_jpeg is not None:
        return _give_back(config, *config.to_jpeg, threads)
    assert config.out is not None
    options = BetonOptions(max_side=config.max_side, quality=config.quality, form=config.form)
    dataset = open_dataset(
        config.shards,
        labels=config.labels,
        index_folder=config.index_folder,
        threads=threads,
        remote=config.remote,
    )
    expected = estimate(dataset, options, threads)
    original = int(dataset.samples["size"].sum())
    records = (
        f"; {expected.records:.0%} of the images as coefficients, "
        f"{expected.bytes / original:.2f} times the shards' bytes"
    )
    print(
        f"{expected.samples} samples from {len(dataset.shards)} shards, "
        f"{len(dataset.bad)} left out by the index; about {expected.bytes / 1e6:.0f} MB, and "
        f"{duration(expected.seconds)} with {threads} threads, without the disk's time"
        f"{records if config.form == 'coefficients' else ''}",
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
    if config.form == "coefficients":
        _count_records(config.out)
    for reason, count in quarantine.by_reason().items():
        print(f"  {count:>7}  {reason}")
    return SUCCESS


def _count_records(path: pathlib.Path) -> None:
    """Print how many images of a file are stored as coefficients."""
    samples = BetonDataset([str(path)])
    count = 0 if samples.records is None else int(samples.records.sum())
    print(
        f"  {count:>7}  as coefficients; {len(samples) - count} as the file or pixels that they "
        "were: docs/coefficients.md says why"
    )


def _give_back(config: BetonConfig, path: pathlib.Path, folder: pathlib.Path, threads: int) -> int:
    """Write the images of a file to `folder`, and print what was left out; returns the exit code.
    FAILURE where an image is damaged."""
    began = time.monotonic()
    written, bad = write_jpegs([str(path)], folder, threads=threads, progress=ProgressLines())
    quarantine = Quarantine(bad)
    if config.report is not None:
        quarantine.write(config.report)
    print(
        f"{folder}: {written} images of {path} in {duration(time.monotonic() - began)}; "
        f"{len(bad)} left out"
    )
    for reason, count in quarantine.by_reason().items():
        print(f"  {count:>7}  {reason}")
    return FAILURE if bad else SUCCESS

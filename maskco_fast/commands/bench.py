"""The `bench` command: throughput of our loaders beside other libraries' pipelines on your images.

Every row runs in a process of its own, in interleaved rounds. A row of ours is timed only when its
views pass the parity gate; a peer's row says how its recipe differs.
"""

import dataclasses
import pathlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from maskco_fast.bench.harness import machine
from maskco_fast.bench.report import table, write_results
from maskco_fast.bench.rows import ROWS
from maskco_fast.bench.setting import Setting
from maskco_fast.bench.stages import print_stages
from maskco_fast.bench.timing import time_rows
from maskco_fast.errors import FAILURE, SUCCESS, say
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.kernels.formats import FORMAT_NAMES
from maskco_fast.loaders.system.cpus import usable_cpus
from maskco_fast.pictures.bars import bench_picture

if TYPE_CHECKING:
    DtypeName = str
else:
    DtypeName = Literal[tuple(FORMAT_NAMES)]
    """A name in `FORMAT_NAMES`; `--help` lists them."""

DEFAULT_ROWS = "native,torchvision_pil,torchvision_v2,decode_only,cached_batch"


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Time loaders, ours and others', side by side on your shards."""

    shards: tuple[str, ...]
    """Tar shards: paths, globs, `{0000..0331}` ranges, or folders of images."""
    rows: str = DEFAULT_ROWS
    """Rows to time, separated by commas; "all" for every row, "help" to list them."""
    rounds: int = 5
    """Interleaved passes of each row, after one that is not counted. The median is reported."""
    images: int | None = None
    """Maximum images a round; None for all."""
    seconds: float | None = None
    """Approximate time limit of a row's round: a slow row then sees fewer images. None for no
    limit."""
    batch_size: int = 50
    """Images a batch."""
    size: int = 224
    """Side of the views, pixels."""
    workers: int | None = None
    """Threads of our loaders and worker processes of the others; None for one each usable CPU."""
    dtype: DtypeName = "float32"
    """Of our views."""
    decode: Literal["exact", "fast"] = "exact"
    """Of our rows native and ffcv. Fast decoding has no parity gate; the table shows its
    difference."""
    gpu_images_per_s: float = 2500.0
    """Throughput of one GPU's training step, for the count of cores that feed it (an assumption:
    pass your trainer's own figure)."""
    ffcv_ssl: pathlib.Path | None = None
    """A checkout of FFCV-SSL that has been built in place, for the row ffcv_ssl."""
    stages: bool = False
    """Also print the native path's milliseconds by stage."""
    json: pathlib.Path | None = None
    """Write the rows here as a JSON list."""
    picture: pathlib.Path | None = None
    """Write a bar chart of the two-view rows here (PNG)."""

    def __post_init__(self) -> None:
        for name in ("rounds", "batch_size", "size"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"`{name}` must be at least 1, got {getattr(self, name)}")

    @property
    def setting(self) -> Setting:
        """The setting that every row shares."""
        return Setting(
            shards=self.shards,
            batch_size=self.batch_size,
            size=self.size,
            workers=self.workers or usable_cpus(),
            dtype=self.dtype,
            decode=self.decode,
            images=self.images,
            ffcv_ssl=self.ffcv_ssl,
        )


def bench(config: BenchConfig) -> int:
    """Time the rows and print the table and its meaning.

    Returns 1 where a row of ours is red or no row could run, else 0: a row whose package is missing
    is one line of the table.
    """
    if config.rows == "help":
        print("\n".join(f"{name:18} {row.kind:6} {row.what}" for name, row in ROWS.items()))
        return SUCCESS
    names = parse_rows(config.rows)
    torch.set_num_threads(1)
    results = time_rows(
        names, config.setting, rounds=config.rounds, seconds=config.seconds, say=say
    )
    print(table(results, config.gpu_images_per_s))
    if config.stages:
        print_stages(config.setting)
    if config.json is not None:
        write_results(config.json, results)
        say(f"{config.json}: {len(results)} rows")
    if config.picture is not None:
        rows = [dataclasses.asdict(result) for result in results]
        bench_picture(rows, config.picture, title=machine())
    none_timed = not any(result.rounds for result in results)
    return FAILURE if none_timed or any(result.red for result in results) else SUCCESS


def parse_rows(text: str) -> list[str]:
    """The names in a comma-separated list, "all" for every row; `InvalidInput` for unknown ones."""
    if text == "all":
        return list(ROWS)
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in ROWS]
    if unknown or not names:
        raise InvalidInput(
            f"`rows` must be names of rows, got {text!r}; choose from {', '.join(ROWS)}"
        )
    return list(dict.fromkeys(names))

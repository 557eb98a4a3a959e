"""Opening, order, resuming and memory of data sets of many samples.

    python -m benchmarks.speed.many_samples [--shards 332]              # 3.3 M tiny images, 3.4 GB
    python -m benchmarks.speed.many_samples --synthetic --shards 100000 # a billion samples, 0.5 GB
    python -m benchmarks.speed.many_samples --remote [--synthetic …]    # from a server on this host

Real shards hold images of 16 x 16 pixels and are indexed as any others. Synthetic ones have a
single image each, which all of their samples share, and their table has holes that take no space on
the disk: only the rows that the run reads are filled in. Each rank is a process of its own; its
memory is what the system counts as its alone (USS), less that after the imports.
"""

import dataclasses
import io
import json
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator
from typing import Literal

import numpy as np
import tyro
from PIL import Image

from benchmarks.correctness.faulty_server import FaultyServer, tag_of
from maskco_fast.bench.harness import machine
from maskco_fast.kernels import headers
from maskco_fast.loaders.order import EpochOrder, rank_positions
from maskco_fast.loaders.remote.dataset import remote_stamp
from maskco_fast.loaders.remote.store import RemoteShard
from maskco_fast.loaders.shards.index import SAMPLE_DTYPE, ShardIndex
from maskco_fast.loaders.shards.index_cache import stamp_of, stamps_of, table_path
from maskco_fast.loaders.shards.names import expand
from maskco_fast.loaders.tables.columns import header_path, read_header
from maskco_fast.loaders.tables.table import SHARD_DTYPE, write_table

BLOCK = tarfile.BLOCKSIZE
SIDE = 16
"""Pixels of an image's side."""
RESUMED_AT = 0.6
"""Share of the epoch after which each rank resumes."""

CHILD = """
import json, os, sys, time, psutil
from maskco_fast.loaders import RemoteConfig, ViewConfig, make_loader, open_dataset
options = json.loads(sys.argv[1])
mine = psutil.Process()
facts = {}
def now():
    return time.perf_counter(), time.process_time()
def note(name, began):
    wall, processor = now()
    facts[name] = wall - began[0]
    facts[name + ", of which on a CPU"] = processor - began[1]
    facts[name + ", MB"] = (mine.memory_full_info().uss - imported) / 1e6
imported = mine.memory_full_info().uss
began = now()
remote = RemoteConfig(cache_folder=options["cache"])
dataset = open_dataset(options["shards"], index_folder=options["index"], remote=remote)
note("open", began)
began = now()
ranks = {"rank": options["rank"], "world_size": options["ranks"]}
views, block = ViewConfig.moco_v2(32), options["block"]
loader = make_loader(
    dataset, options["batch_size"], views=views, threads=1, shuffle_block=block, **ranks
)
iterator = iter(loader)
next(iterator)
note("first batch", began)
began = now()
for _ in range(options["batches"] - 1):
    next(iterator)
note("batches", began)
state = {**loader.state_dict(), "epoch": 0, "consumed": options["resumed"]}
loader.load_state_dict(state)
began = now()
iterator = iter(loader)
next(iterator)
note("first batch of a resumed run", began)
for _ in range(options["batches"] - 1):
    next(iterator)
note("end", began)
facts["block"] = loader.config.block
print(json.dumps(facts))
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Measure data sets of many samples."""

    shards: int = 332
    samples: int = 10_000
    """Of each shard."""
    synthetic: bool = False
    """Only tables of that size, not images."""
    remote: bool = False
    """Read the shards from a server."""
    ranks: int = 2
    """Processes at once."""
    batch_size: int = 256
    batches: int = 40
    """Batches of each rank, at the start and again after resuming."""
    shuffle_block: int | Literal["all"] | None = None
    """As of `make_loader`."""
    folder: pathlib.Path | None = None
    """Where the shards are written, to be removed at the end. None: the temporary folder."""


def tiny_jpeg(number: int) -> bytes:
    """A JPEG of at most a tar's block."""
    pixels = np.random.default_rng(number).integers(0, 255, (2, 2, 3), np.uint8)
    image = Image.fromarray(pixels).resize((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=40, optimize=True)
    assert len(buffer.getvalue()) <= BLOCK
    return buffer.getvalue()


def shard_bytes(samples: int) -> np.ndarray:
    """(samples, 2 * BLOCK) uint8: a tar's members, an image each, whose names begin with zeros."""
    images = [tiny_jpeg(number) for number in range(7)]
    members = np.zeros((samples, 2 * BLOCK), np.uint8)
    for number, member in enumerate(members):
        image = images[number % len(images)]
        info = tarfile.TarInfo(f"00009999/{number:06d}.jpg")
        info.size = len(image)
        data = info.tobuf(tarfile.USTAR_FORMAT).ljust(BLOCK, b"\0") + image
        member[: len(data)] = np.frombuffer(data, np.uint8)
    return members


def write_shards(folder: pathlib.Path, options: Options) -> None:
    """Write the shards, with keys that occur in one shard alone."""
    members = shard_bytes(1 if options.synthetic else options.samples)
    for shard in range(options.shards):
        # Number and complement have one sum of digits, so that the headers' checksums hold.
        prefix = f"{shard % 10000:04d}{9999 - shard % 10000:04d}".encode()
        members[:, : len(prefix)] = np.frombuffer(prefix, np.uint8)
        with (folder / f"{shard:06d}.tar").open("wb") as file:
            file.write(members.tobytes())
            file.write(bytes(2 * BLOCK))


def pattern(place: pathlib.Path | str, options: Options) -> str:
    """The shards' names in a folder or on a server."""
    return f"{place}/{{000000..{options.shards - 1:06d}}}.tar"


def remote_shard(folder: pathlib.Path, url: str) -> RemoteShard:
    """What the server says about a shard."""
    file = folder / url.rpartition("/")[2]
    return RemoteShard(url=url, size=file.stat().st_size, tag=tag_of(file))


def write_synthetic_table(folder: pathlib.Path, names: str, options: Options) -> None:
    """Write the table of the shards with holes for all samples but those that the ranks read."""
    paths = expand(names)
    table = table_path(paths, folder / "index", None, None, ())
    empty = np.empty(0, SAMPLE_DTYPE)
    remotes = {path: remote_shard(folder, path) for path in paths} if options.remote else {}

    def indexes() -> Iterator[ShardIndex]:
        for path in paths:
            remote = remotes.get(path)
            names = np.empty(0, "S10")
            yield ShardIndex(path=path, samples=empty, names=names, bad=(), remote=remote)

    def stamp(path: str) -> str:
        return remote_stamp(remotes[path]) if options.remote else stamp_of(path)

    write_table(table, indexes(), stamps_of(paths, None, (), 1, stamp))
    header = read_header(table)
    columns = table.with_name(header["folder"])
    rows = np.fromfile(columns / "shards", SHARD_DTYPE)
    rows["end"] = options.samples * np.arange(1, len(paths) + 1)
    rows["names_end"] = 10 * rows["end"]
    rows.tofile(columns / "shards")
    sizes = {"samples": SAMPLE_DTYPE.itemsize * rows["end"][-1], "names": rows["names_end"][-1]}
    for name, size in sizes.items():
        os.truncate(columns / name, int(size))
        header["columns"][name]["size"] = int(size)
    header["columns"]["shards"]["crc32"] = zlib.crc32(rows.tobytes())
    text = json.dumps(header)
    header_path(table).write_text(f"{zlib.crc32(text.encode()):08x}\n{text}")
    row = np.zeros(1, SAMPLE_DTYPE)
    row["offset"], row["size"], row["target"] = BLOCK, len(tiny_jpeg(0)), -1
    row["height"] = row["width"] = SIDE
    row["format"] = headers.JPEG
    with (columns / "samples").open("r+b") as file:
        for index in visited(options).tolist():
            row["sample_id"] = index
            file.seek(index * SAMPLE_DTYPE.itemsize)
            file.write(row.tobytes())


def resumed_at(options: Options) -> int:
    """The samples after which the ranks resume."""
    stride = options.ranks * options.batch_size
    return int(RESUMED_AT * options.shards * options.samples) // stride * stride


def visited(options: Options) -> np.ndarray:
    """The samples that the ranks read, with those that they prepare ahead."""
    order = EpochOrder(
        np.full(options.shards, options.samples),
        seed=0,
        epoch=0,
        block=options.shuffle_block or (16 if options.remote else "all"),
    )
    length = (options.batches + 8) * options.ranks * options.batch_size
    begins = (0, resumed_at(options))
    return np.concatenate([order.take(begin, begin + length) for begin in begins])


def time_order(options: Options) -> None:
    """Print what the order costs: processor time, which other programs do not change."""
    sizes = np.full(options.shards, options.samples)
    for block in (16, "all"):
        began = time.process_time()
        order = EpochOrder(sizes, seed=0, epoch=0, block=block)
        made = time.process_time()
        positions = rank_positions(0, 1 << 16, 0, options.batch_size, 0, 1)
        for begin in range(0, 20 * options.batch_size, options.batch_size):
            order.take(int(positions[begin]), int(positions[begin]) + options.batch_size)
        taken = time.process_time()
        print(
            f"order, block {block}: {made - began:.3f} s for an epoch, "
            f"{(taken - made) * 1e3:.1f} ms for the first 20 batches"
        )


def run(options: Options) -> None:
    """Write the shards, run the ranks and print what each has measured."""
    with (
        tempfile.TemporaryDirectory(dir=options.folder, prefix="many-samples-") as name,
        FaultyServer(pathlib.Path(name)) as server,
    ):
        folder = pathlib.Path(name)
        names = pattern(server.url if options.remote else folder, options)
        began = time.perf_counter()
        write_shards(folder, options)
        print(f"{options.shards} shards written in {time.perf_counter() - began:.0f} s", flush=True)
        if options.synthetic:
            write_synthetic_table(folder, names, options)
        facts = {
            "shards": names,
            "index": str(folder / "index"),
            "cache": str(folder / "cache"),
            "batch_size": options.batch_size,
            "batches": options.batches,
            "ranks": options.ranks,
            "resumed": resumed_at(options),
            "block": options.shuffle_block,
        }
        if not options.synthetic:  # the first opening, which indexes
            (first,) = _ranks({**facts, "batches": 1}, 1)
            print(f"indexed in {first['open']:.1f} s", flush=True)
        report(_ranks(facts, options.ranks))


def _ranks(facts: dict[str, object], count: int) -> list[dict[str, float]]:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, json.dumps({**facts, "rank": rank})],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit("a rank has failed")
    return [json.loads(output) for output in outputs]


def report(found: list[dict[str, float]]) -> None:
    """Print the table: a line for each step, a column for each rank."""
    for name in found[0]:
        values = "".join(
            f"{one[name]:>12.2f}" if isinstance(one[name], float) else f"{one[name]:>12}"
            for one in found
        )
        print(f"{name:44}{values}", flush=True)


def main(options: Options) -> None:
    """Print everything."""
    print(machine())
    print(f"{options.shards * options.samples} samples in {options.shards} shards")
    time_order(options)
    run(options)


if __name__ == "__main__":
    main(tyro.cli(Options))

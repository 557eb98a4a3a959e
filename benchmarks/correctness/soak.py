"""Many epochs of remote shards from servers that fail, in two processes that share a cache: what
grows?

    python benchmarks/soak.py --shards 'in1k-sample-{0000..0003}.tar' [--minutes 20] [--faults 0.05] [--json soak.json]

The shards are cut into smaller ones, served by an HTTP server and by an S3 API (moto's) behind
another, and read by two ranks through one cache that holds about half of them, so that every epoch
downloads and evicts. A share of all requests fails, in every way that `faulty_server` knows. Each
epoch's ids are held against those of the local shards. A line is printed for each interval: memory
and what the process has open, the larger of both ranks; images/s of both together.
"""

import ctypes
import gc
import json
import logging
import math
import multiprocessing
import os
import pathlib
import statistics
import tarfile
import tempfile
import threading
import time
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
import psutil
import tyro

from benchmarks.correctness.faulty_server import FaultyServer, at_random, put_into_s3
from maskco_fast.bench.harness import machine
from maskco_fast.kernels.views import ViewConfig
from maskco_fast.loaders import Dataset, RemoteConfig, make_loader, open_dataset
from maskco_fast.loaders.remote.dataset import RemoteDataset

RANKS = 2


@dataclass(frozen=True, kw_only=True)
class Options:
    """Read epoch after epoch while the servers fail."""

    shards: tuple[str, ...]
    """Tar shards of JPEGs on this machine."""
    minutes: float = 20.0
    interval: float = 60.0
    """Seconds a line."""
    faults: float = 0.05
    """Share of the requests that fail."""
    samples: int = 5
    """Samples a shard, after cutting: few, so that the 16 shards that are shuffled together are few
    of all."""
    size: int = 224
    """Side of the views, pixels."""
    batch_size: int = 16
    """Of each rank."""
    json: pathlib.Path | None = None
    """Write the lines here."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One rank at one time."""

    images: int
    epochs: int
    resident_mb: float
    allocated_mb: float
    """What the program holds of it by malloc; the rest is libraries, mapped shards and what malloc
    keeps free."""
    threads: int
    files: int
    """Open descriptors: files, sockets, pipes."""
    faults: int
    """Requests that failed here so far."""


def cut(dataset: Dataset, folder: pathlib.Path, samples: int) -> list[str]:
    """The dataset's members in shards of `samples` each."""
    paths = []
    for first in range(0, len(dataset), samples):
        path = folder / f"part-{first // samples:04d}.tar"
        with tarfile.open(path, "w") as archive:
            for index in range(first, min(first + samples, len(dataset))):
                shard, number = dataset.locate(index)
                start, size = (
                    int(dataset.samples["offset"][index]),
                    int(dataset.samples["size"][index]),
                )
                member = tarfile.TarInfo(f"{shard.key(number)}.jpg")
                member.size = size
                with open(shard.file(number), "rb") as file:
                    file.seek(start)
                    archive.addfile(member, file)
        paths.append(str(path))
    return paths


def serve(folder: str, share: float, connection: Connection) -> None:
    """The servers, in a process of their own: half of the shards by HTTP, half by S3, until the
    parent hangs up."""
    from moto.server import ThreadedMotoServer

    os.environ.update(
        AWS_ACCESS_KEY_ID="testing", AWS_SECRET_ACCESS_KEY="testing", AWS_DEFAULT_REGION="us-east-1"
    )
    paths = sorted(str(path) for path in pathlib.Path(folder).glob("part-*.tar"))
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    behind = f"http://{host}:{port}"
    names = put_into_s3(paths[1::2], behind, "soak")
    with (
        FaultyServer(pathlib.Path(folder), at_random(share, 1), remembered=1000) as web,
        FaultyServer(behind, at_random(share, 2), remembered=1000) as s3,
    ):
        web_names = [f"{web.url}/{os.path.basename(path)}" for path in paths[::2]]
        both = [name for pair in zip(web_names, names) for name in pair] + web_names[len(names) :]
        connection.send((both, s3.url))
        connection.recv()
        connection.send(dict(web.injected + s3.injected))
    moto.stop()


def allocated() -> int:
    """Bytes that malloc has given out and not got back; 0 where the C library is not glibc (2.33 or
    newer)."""
    names = (
        "arena",
        "ordblks",
        "smblks",
        "hblks",
        "hblkhd",
        "usmblks",
        "fsmblks",
        "uordblks",
        "fordblks",
        "keepcost",
    )

    class Mallinfo2(ctypes.Structure):
        _fields_ = tuple((name, ctypes.c_size_t) for name in names)

    try:
        mallinfo2 = ctypes.CDLL("libc.so.6").mallinfo2
    except (OSError, AttributeError):
        return 0
    mallinfo2.restype = Mallinfo2
    found = mallinfo2()
    return found.uordblks + found.hblkhd  # of the arenas, and mapped one by one


def read(
    rank: int,
    names: list[str],
    folder: str,
    endpoint: str,
    cache_gb: float,
    options: Options,
    line: Connection,
):
    """One rank: epochs until the parent says so, a `Reading` whenever it asks; then what it read of
    each epoch."""
    os.environ.update(
        AWS_ACCESS_KEY_ID="testing", AWS_SECRET_ACCESS_KEY="testing", AWS_DEFAULT_REGION="us-east-1"
    )
    config = RemoteConfig(
        cache_folder=f"{folder}/cache",
        cache_gb=cache_gb,
        s3_endpoint=endpoint,
        request_mb=0.5,
        timeout=5,
        backoff=0.1,
    )
    process, images, epochs, ended = psutil.Process(), 0, [], threading.Event()
    store = None

    def answer() -> None:
        while line.recv() == "read":
            gc.collect()
            line.send(
                Reading(
                    images=images,
                    epochs=len(epochs),
                    resident_mb=process.memory_info().rss / 1e6,
                    allocated_mb=allocated() / 1e6,
                    threads=process.num_threads(),
                    files=process.num_fds(),
                    faults=0 if store is None else sum(store.faults.values()),
                )
            )
        ended.set()

    threading.Thread(target=answer, daemon=True).start()
    options_of_loader = {
        "views": ViewConfig.maskco(options.size),
        "rank": rank,
        "world_size": RANKS,
        "threads": 1,
    }
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        with make_loader(
            names,
            options.batch_size,
            remote=config,
            index_folder=f"{folder}/index",
            **options_of_loader,
        ) as loader:
            if isinstance(loader.dataset, RemoteDataset):
                store = loader.dataset.cache.store
            while not ended.is_set():
                ids = []
                for batch in loader:
                    ids.append(batch.index.numpy().copy())
                    images += len(batch)
                    if ended.is_set():
                        break
                else:
                    epochs.append(np.concatenate(ids))
    line.send(
        (
            epochs,
            [str(warning.message) for warning in told][:5],
            dict(store.faults) if store else {},
        )
    )


def check(dataset: Dataset, epochs: list[list[np.ndarray]], options: Options) -> int:
    """Whole epochs that were read, every one in the order of the local shards; AssertionError where
    one was not."""
    whole = min(map(len, epochs))
    with make_loader(
        dataset, options.batch_size * RANKS, views=ViewConfig.maskco(options.size)
    ) as loader:
        for epoch in range(whole):
            loader.set_epoch(epoch)
            truth = np.concatenate(
                [request.indices for request in loader._requests(0, 1, len(loader))]
            )
            parts = [ids[epoch].reshape(-1, options.batch_size) for ids in epochs]
            assert (np.stack(parts, 1).ravel() == truth).all(), (
                f"epoch {epoch} is not the local one"
            )
    return whole


def main(options: Options) -> None:
    """Print the table and what it comes to."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        paths = cut(open_dataset(options.shards), pathlib.Path(folder), options.samples)
        local = open_dataset(paths)
        size = sum(os.path.getsize(path) for path in paths)
        cache_gb = size / 2 / 1e9
        servers, server_line = context.Pipe()
        serving = context.Process(
            target=serve, args=(folder, options.faults, server_line), daemon=True
        )
        serving.start()
        names, endpoint = servers.recv()
        lines, ranks = [], []
        for rank in range(RANKS):
            mine, theirs = context.Pipe()
            arguments = (rank, names, folder, endpoint, cache_gb, options, theirs)
            ranks.append(context.Process(target=read, args=arguments, daemon=True))
            ranks[-1].start()
            lines.append(mine)
        print(machine())
        print(
            f"{len(local)} images in {len(paths)} shards, {size / 1e6:.0f} MB; a cache of {1e3 * cache_gb:.0f} MB; "
            f"{options.faults:.0%} of the requests fail; {RANKS} ranks of one thread, views of {options.size} pixels\n"
        )
        table = watch(lines, pathlib.Path(folder, "cache"), options)
        for line in lines:
            line.send("end")
        ends = [line.recv() for line in lines]
        servers.send("end")
        injected = servers.recv()
        for process in ranks:
            process.join()
        whole = check(local, [epochs for epochs, _, _ in ends], options)
    print(f"\n{whole} whole epochs, each in the order of the local shards, every sample once")
    print("injected: " + ", ".join(f"{count} {name}" for name, count in sorted(injected.items())))
    for _, told, faults in ends:
        print(
            "met by a rank: "
            + ", ".join(f"{count} {name}" for name, count in sorted(faults.items()))
        )
        print("".join(f"  warned: {text}\n" for text in told), end="")
    print(growth(table))
    if options.json is not None:
        options.json.write_text(json.dumps(table, indent=1) + "\n")


def watch(lines: list[Connection], cache: pathlib.Path, options: Options) -> list[dict[str, float]]:
    """Print a line for each interval; returns them."""
    titles = (
        "minute",
        "images/s",
        "epochs",
        "resident MB",
        "allocated MB",
        "threads",
        "open files",
        "cache MB",
        "faults",
    )
    print("".join(f"{title:>13}" for title in titles))
    table: list[dict[str, float]] = []
    began = last = time.monotonic()
    before = 0
    for number in range(1, math.ceil(options.minutes * 60 / options.interval) + 1):
        time.sleep(max(began + number * options.interval - time.monotonic(), 0))
        for line in lines:
            line.send("read")
        readings = [line.recv() for line in lines]
        now, images = time.monotonic(), sum(reading.images for reading in readings)
        values = (
            (now - began) / 60,
            (images - before) / (now - last),
            min(reading.epochs for reading in readings),
            max(reading.resident_mb for reading in readings),
            max(reading.allocated_mb for reading in readings),
            max(reading.threads for reading in readings),
            max(reading.files for reading in readings),
            sum(file.stat().st_size for file in cache.iterdir()) / 1e6,
            sum(reading.faults for reading in readings),
        )
        last, before = now, images
        table.append(dict(zip(titles, values)))
        print(
            "".join(
                f"{value:13.1f}" if isinstance(value, float) else f"{value:13}" for value in values
            ),
            flush=True,
        )
    return table


def growth(table: list[dict[str, float]]) -> str:
    """The medians of the second and the last quarter of the lines, side by side."""
    quarter = max(len(table) // 4, 1)
    names = ("resident MB", "allocated MB", "threads", "open files", "images/s")
    parts = []
    for name in names:
        early = statistics.median(line[name] for line in table[quarter : 2 * quarter] or table)
        late = statistics.median(line[name] for line in table[-quarter:])
        parts.append(f"{name} {early:.0f} -> {late:.0f}")
    return "second quarter -> last quarter (medians): " + ", ".join(parts)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

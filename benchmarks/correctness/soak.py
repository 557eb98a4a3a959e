"""Soak test: many epochs of remote shards from failing servers, in two ranks that share a cache.

    python -m benchmarks.correctness.soak --shards 'in1k-sample-{0000..0003}.tar' [--minutes 20]
        [--faults 0.05] [--json soak.json]

The shards are split into small ones. Half of them are served over HTTP, half over S3 (moto). Two
ranks read them through one cache that holds half of the bytes, so every epoch downloads and evicts.
A random share of the requests fails, with every fault of `faulty_server`. Each epoch's ids must
equal those of the local shards. One line is printed in each interval: memory, threads and open
files of the larger rank; images/s and faults of both.
"""

import collections
import contextlib
import ctypes
import gc
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
import psutil  # declared in the dev extra
import tyro

from benchmarks.correctness.faulty_server import FaultyServer, at_random, put_into_s3
from maskco_fast.bench.harness import machine
from maskco_fast.kernels.views import ViewConfig
from maskco_fast.loaders import Dataset, Loader, RemoteConfig, make_loader, open_dataset
from maskco_fast.loaders.order import SHARDS_PER_BLOCK
from maskco_fast.loaders.remote.dataset import RemoteDataset
from maskco_fast.loaders.system.files import write_json

RANKS = 2
CONTEXT = multiprocessing.get_context("spawn")
"""Makes processes that share no memory with this one, so that a rank's memory is its own."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Read epochs for a set time while the servers fail."""

    shards: tuple[str, ...]
    """Tar shards of JPEGs on this machine."""
    minutes: float = 20.0
    """Duration of the test; each rank reads at least one whole epoch."""
    interval: float = 60.0
    """Seconds between printed lines."""
    faults: float = 0.05
    """Share of the requests that fail, 0 to 1."""
    timeout: float = 5.0
    """Seconds that a reader waits for an answer."""
    samples: int = 5
    """Samples in each small shard; the cache must hold the 16 shards of a shuffle block."""
    size: int = 224
    """Side of the views, pixels."""
    batch_size: int = 16
    """Images in a batch of each rank."""
    json: pathlib.Path | None = None
    """Also write the lines to this file."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Counters of one rank at one moment."""

    images: int
    epochs: int
    resident_mb: float
    allocated_mb: float
    """The part that the program holds through malloc; the rest is libraries, memory-mapped shards
    and free memory that malloc keeps."""
    threads: int
    files: int
    """Open descriptors: files, sockets, pipes."""
    faults: int
    """Failed requests so far."""


class Totals:
    """What one rank has read so far, shared by its reading and its answering thread."""

    def __init__(self) -> None:
        self.images = 0
        self.epochs: list[np.ndarray] = []
        """Sample indices of each whole epoch, in the order read."""
        self.faults: collections.Counter[str] = collections.Counter()
        self.ended = threading.Event()

    def reading(self) -> Reading:
        """The present counters, after a garbage collection."""
        gc.collect()
        process = psutil.Process()
        return Reading(
            images=self.images,
            epochs=len(self.epochs),
            resident_mb=process.memory_info().rss / 1e6,
            allocated_mb=allocated() / 1e6,
            threads=process.num_threads(),
            files=process.num_fds(),
            faults=sum(self.faults.values()),
        )

    def answer(self, line: Connection) -> None:
        """Send a reading for each "read" received; any other word ends the rank."""
        while line.recv() == "read":
            line.send(self.reading())
        self.ended.set()


def cut(dataset: Dataset, folder: pathlib.Path, samples: int) -> list[str]:
    """Write the dataset's images to shards of `samples` images each; returns their paths."""
    paths = []
    for first in range(0, len(dataset), samples):
        path = folder / f"part-{first // samples:04d}.tar"
        with tarfile.open(path, "w") as archive:
            for index in range(first, min(first + samples, len(dataset))):
                shard, number = dataset.locate(index)
                start = int(dataset.samples["offset"][index])
                size = int(dataset.samples["size"][index])
                member = tarfile.TarInfo(f"{shard.key(number)}.jpg")
                member.size = size
                with open(shard.file(number), "rb") as file:
                    file.seek(start)
                    archive.addfile(member, file)
        paths.append(str(path))
    return paths


def serve(folder: str, share: float, connection: Connection) -> None:
    """Serve half of the shards over HTTP and half over S3 until the parent sends a word.

    The work of the server process. Sends (names, S3 URL) at the start and the injected faults at
    the end.
    """
    from moto.server import ThreadedMotoServer

    os.environ.update(
        AWS_ACCESS_KEY_ID="testing", AWS_SECRET_ACCESS_KEY="testing", AWS_DEFAULT_REGION="us-east-1"
    )
    paths = sorted(str(path) for path in pathlib.Path(folder).glob("part-*.tar"))
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    upstream = f"http://{host}:{port}"
    names = put_into_s3(paths[1::2], upstream, "soak")
    with (
        FaultyServer(pathlib.Path(folder), at_random(share, 1), history=1000) as web,
        FaultyServer(upstream, at_random(share, 2), history=1000) as s3,
    ):
        web_names = [f"{web.url}/{os.path.basename(path)}" for path in paths[::2]]
        both = [name for pair in zip(web_names, names) for name in pair] + web_names[len(names) :]
        connection.send((both, s3.url))
        connection.recv()
        connection.send(dict(web.injected + s3.injected))
    moto.stop()


def allocated() -> int:
    """Bytes allocated through malloc; 0 where the C library is not glibc 2.33 or newer."""
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
    return found.uordblks + found.hblkhd  # in the arenas, and in separate mappings


def read(
    rank: int,
    names: list[str],
    folder: str,
    endpoint: str,
    cache_gb: float,
    options: Options,
    line: Connection,
) -> None:
    """Read epochs until the parent ends the rank; the work of one rank's process.

    Sends "ready" once all shards are indexed, a `Reading` whenever the parent asks, and at the end
    (epochs, warnings, faults by reason).
    """
    os.environ.update(
        AWS_ACCESS_KEY_ID="testing", AWS_SECRET_ACCESS_KEY="testing", AWS_DEFAULT_REGION="us-east-1"
    )
    config = RemoteConfig(
        cache_folder=f"{folder}/cache",
        cache_gb=cache_gb,
        s3_endpoint=endpoint,
        request_mb=0.5,
        timeout=options.timeout,
        backoff=0.1,
    )
    totals = Totals()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        with make_loader(
            names,
            options.batch_size,
            views=ViewConfig.maskco(options.size),
            remote=config,
            index_folder=f"{folder}/index",
            rank=rank,
            world_size=RANKS,
            threads=1,
        ) as loader:
            assert isinstance(loader.dataset, RemoteDataset)
            totals.faults = loader.dataset.cache.store.faults
            line.send("ready")
            threading.Thread(target=totals.answer, args=(line,), daemon=True).start()
            read_epochs(loader, totals)
    warned = [str(warning.message) for warning in caught][:5]
    line.send((totals.epochs, warned, dict(totals.faults)))


def read_epochs(loader: Loader, totals: Totals) -> None:
    """Read epochs into `totals` until it is ended, and at least one."""
    while not (totals.ended.is_set() and totals.epochs):
        indices = []
        for batch in loader:
            indices.append(batch.index.numpy().copy())
            totals.images += len(batch)
            if totals.ended.is_set() and totals.epochs:
                break
        else:
            totals.epochs.append(np.concatenate(indices))


def check(dataset: Dataset, epochs: list[list[np.ndarray]], options: Options) -> int:
    """The number of whole epochs; AssertionError where one differs from the local shards' order."""
    whole = min(map(len, epochs))
    with make_loader(
        dataset,
        options.batch_size * RANKS,
        views=ViewConfig.maskco(options.size),
        shuffle_block=SHARDS_PER_BLOCK,  # the default of remote shards
    ) as loader:
        for epoch in range(whole):
            loader.set_epoch(epoch)
            truth = np.concatenate(
                [request.indices for request in loader._requests(0, 1, len(loader))]
            )
            parts = [indices[epoch].reshape(-1, options.batch_size) for indices in epochs]
            same = np.array_equal(np.stack(parts, 1).ravel(), truth)
            assert same, f"epoch {epoch} differs from the local shards"
    return whole


def main(options: Options) -> None:
    """Print the table and the summary."""
    with tempfile.TemporaryDirectory() as folder:
        paths = cut(open_dataset(options.shards), pathlib.Path(folder), options.samples)
        local = open_dataset(paths)
        size = sum(os.path.getsize(path) for path in paths)
        cache_gb = size / 2 / 1e9
        servers, server_line = CONTEXT.Pipe()
        serving = CONTEXT.Process(
            target=serve, args=(folder, options.faults, server_line), daemon=True
        )
        serving.start()
        names, endpoint = servers.recv()
        lines = []
        ranks = []
        for rank in range(RANKS):
            mine, theirs = CONTEXT.Pipe()
            arguments = (rank, names, folder, endpoint, cache_gb, options, theirs)
            ranks.append(CONTEXT.Process(target=read, args=arguments, daemon=True))
            ranks[-1].start()
            lines.append(mine)
        for line in lines:
            assert line.recv() == "ready"
        print(machine())
        print(
            f"{len(local)} images in {len(paths)} shards, {size / 1e6:.0f} MB; a cache of "
            f"{1e3 * cache_gb:.0f} MB; {options.faults:.0%} of the requests fail; {RANKS} ranks of "
            f"one thread, views of {options.size} pixels\n"
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
    print(f"\n{whole} whole epochs, each in the order of the local shards, each sample once")
    print("injected: " + ", ".join(f"{count} {name}" for name, count in sorted(injected.items())))
    for _, warned, faults in ends:
        counts = ", ".join(f"{count} {name}" for name, count in sorted(faults.items()))
        print(f"counted by a rank: {counts}")
        print("".join(f"  warned: {text}\n" for text in warned), end="")
    print(growth(table))
    if options.json is not None:
        write_json(options.json, table)


def watch(lines: list[Connection], cache: pathlib.Path, options: Options) -> list[dict[str, float]]:
    """Print a line of readings in each interval; returns the lines as columns by title."""
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
        now = time.monotonic()
        images = sum(reading.images for reading in readings)
        values = (
            (now - began) / 60,
            (images - before) / (now - last),
            min(reading.epochs for reading in readings),
            max(reading.resident_mb for reading in readings),
            max(reading.allocated_mb for reading in readings),
            max(reading.threads for reading in readings),
            max(reading.files for reading in readings),
            bytes_in(cache) / 1e6,
            sum(reading.faults for reading in readings),
        )
        last = now
        before = images
        table.append(dict(zip(titles, values)))
        print(
            "".join(
                f"{value:13.1f}" if isinstance(value, float) else f"{value:13}" for value in values
            ),
            flush=True,
        )
    return table


def bytes_in(folder: pathlib.Path) -> int:
    """Bytes of the folder's files; a file removed meanwhile counts as empty."""
    total = 0
    for file in folder.iterdir() if folder.exists() else ():
        with contextlib.suppress(FileNotFoundError):
            total += file.stat().st_size
    return total


def growth(table: list[dict[str, float]]) -> str:
    """Medians of the second and of the last quarter of the lines, which show what grows."""
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

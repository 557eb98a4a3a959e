"""Server faults and their effect on an epoch: a table over HTTP and S3, cached and streamed.

    python -m benchmarks.correctness.faults [--shards 'in1k-sample-0000.tar' …] [--every 3]

Each row is one epoch that starts with an empty cache and an empty index folder. One in `every`
requests of a method for each shard meets the row's fault. The columns: faults injected, seconds
(the first row of a source has no faults), whether ids and pixels equal those of the local shards,
and the reasons that the reader counted. A second table holds the faults that never end, each with
the error that ends the run. Exit code 1 where a row differs from the local shards or an endless
fault raises no error.
"""

import contextlib
import logging
import os
import pathlib
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import tyro

from benchmarks.correctness.faulty_server import (
    BODY_FAULTS,
    HEAD_FAULTS,
    FaultPlan,
    FaultyServer,
    always,
    every,
    no_faults,
    put_into_s3,
)
from maskco_fast.bench.harness import machine
from maskco_fast.demo.shards import demo_shards
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.kernels.views import ViewConfig
from maskco_fast.loaders import Batch, RemoteConfig, make_loader, open_dataset
from maskco_fast.loaders.shards.names import expand

SOURCES = ("http", "s3", "http, stream", "s3, stream")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure the effect of each server fault on an epoch."""

    shards: tuple[str, ...] = ()
    """Tar shards on this machine, in one folder; by default the demo's scenes, drawn on the fly."""
    samples: int = 768
    """Scenes to draw where no shards are given."""
    sources: tuple[str, ...] = SOURCES
    """Sources to measure: http, s3, "http, stream", "s3, stream"."""
    every: int = 3
    """One in this many requests of a method for a shard fails."""
    stall: float = 5.0
    """Seconds that a stalled connection lasts."""
    timeout: float = 1.0
    """Seconds that the reader waits for an answer."""
    patience: float = 2.0
    """Seconds of an endless fault before the run must end."""
    size: int = 96
    """Side of the views, pixels."""
    batch_size: int = 32
    """Images in a batch."""

    def __post_init__(self) -> None:
        unknown = sorted({*self.sources} - {*SOURCES})
        if unknown:
            raise InvalidInput(f"sources must be among {', '.join(SOURCES)}, got {unknown[0]!r}.")


@dataclass
class Source:
    """A server of the shards, the shards' names there, and how they are read."""

    server: FaultyServer
    names: list[str]
    mode: Literal["cache", "stream"]
    endpoint: str | None
    """URL of the S3 API."""

    def epoch(
        self, plan: FaultPlan, options: Options, samples: int, **changes: float
    ) -> tuple[list[Batch], str, float]:
        """Read an epoch: its batches, the failures that the reader counted, and the seconds."""
        self.server.plan = plan
        self.server.injected.clear()
        with tempfile.TemporaryDirectory() as folder:
            settings = {
                "request_mb": 0.2,
                "timeout": options.timeout,
                "backoff": 0.05,
                "patience": 30.0,
                **changes,
            }
            config = RemoteConfig(
                mode=self.mode,
                cache_folder=f"{folder}/cache",
                s3_endpoint=self.endpoint,
                epoch_samples=samples if self.mode == "stream" else None,
                **settings,  # type: ignore[arg-type]
            )
            began = time.monotonic()
            with make_loader(
                self.names,
                options.batch_size,
                views=ViewConfig.maskco(options.size),
                remote=config,
                index_folder=f"{folder}/index",
            ) as loader:
                batches = list(loader)
                dataset = loader.dataset
                store = dataset.store if self.mode == "stream" else dataset.cache.store  # type: ignore[attr-defined]
                counted = ", ".join(
                    f"{count} {reason}" for reason, count in sorted(store.faults.items())
                )
            return batches, counted, time.monotonic() - began


def same(mine: list[Batch], theirs: list[Batch]) -> bool:
    """Whether ids and pixels are equal in every batch."""
    return len(mine) == len(theirs) and all(
        torch.equal(one.sample_id, other.sample_id)
        and all(map(torch.equal, one.views, other.views))
        for one, other in zip(mine, theirs)
    )


@contextlib.contextmanager
def serve(paths: list[str], stall: float) -> Iterator[dict[str, Source]]:
    """Serve the shards over HTTP and S3 while the block runs; yields a source for each name."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    os.environ.update(
        AWS_ACCESS_KEY_ID="testing", AWS_SECRET_ACCESS_KEY="testing", AWS_DEFAULT_REGION="us-east-1"
    )
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    upstream = f"http://{host}:{port}"
    s3_names = put_into_s3(paths, upstream, "faults")
    with (
        FaultyServer(pathlib.Path(paths[0]).parent, stall=stall) as web,
        FaultyServer(upstream, stall=stall) as s3,
    ):
        names = [f"{web.url}/{os.path.basename(path)}" for path in paths]
        yield {
            "http": Source(web, names, "cache", None),
            "s3": Source(s3, s3_names, "cache", s3.url),
            "http, stream": Source(web, names, "stream", None),
            "s3, stream": Source(s3, s3_names, "stream", s3.url),
        }
    moto.stop()


def local_epoch(paths: list[str], options: Options, mode: str, samples: int) -> list[Batch]:
    """The expected batches: the same epoch from the local files."""
    config = RemoteConfig(mode="stream", epoch_samples=samples) if mode == "stream" else None
    with make_loader(
        paths, options.batch_size, views=ViewConfig.maskco(options.size), remote=config
    ) as loader:
        return list(loader)


def endless(name: str) -> list[tuple[str, FaultPlan]]:
    """(label, fault plan) of the faults of shard `name` that no retry overcomes."""
    return [
        ("missing shard (404)", always("missing", name)),
        ("refused (403)", always("refused", name)),
        ("endless 503", always("503", name, method="GET")),
        ("endless stall", always("stall", name, method="GET")),
        ("endless truncated", always("truncated", name, method="GET")),
        ("endless short", always("short", name, method="GET")),
    ]


def main(options: Options) -> int:
    """Print both tables; returns 0, or 1 where a row is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        if not options.shards:
            drawn = demo_shards(folder, samples=options.samples, shards=min(4, options.samples))
        paths = expand(options.shards or drawn)
        samples = len(open_dataset(paths))
        print(machine())
        print(
            f"{samples} images in {len(paths)} shards; one in {options.every} requests of a method "
            "for a shard fails\n"
        )
        # the table holds the failures that warnings would report
        with warnings.catch_warnings(), serve(paths, options.stall) as served:
            warnings.simplefilter("ignore", UserWarning)
            chosen = {name: served[name] for name in options.sources}
            good = print_passing(chosen, paths, options, samples)
            print()
            good = print_endless(chosen, paths, options, samples) and good
    return 0 if good else 1


def print_passing(
    served: dict[str, Source], paths: list[str], options: Options, samples: int
) -> bool:
    """Print a row for each source and fault; whether all rows equal the local shards."""
    print(
        f"{'source':<14}{'method':<7}{'fault':<22}{'injected':>9}{'seconds':>9}  same as local  "
        "counted by the reader as"
    )
    good = True
    for name, source in served.items():
        rows: list[tuple[str, str, FaultPlan]] = [("", "none", no_faults)]
        rows += [("GET", fault, every(options.every, "GET", fault)) for fault in BODY_FAULTS]
        rows += [("HEAD", fault, every(options.every, "HEAD", fault)) for fault in HEAD_FAULTS]
        truth = local_epoch(paths, options, source.mode, samples)
        for method, fault, plan in rows:
            mine, counted, seconds = source.epoch(plan, options, samples)
            agree = same(mine, truth)
            good = good and agree
            injected = sum(source.server.injected.values())
            print(
                f"{name:<14}{method:<7}{fault:<22}{injected:9}{seconds:9.1f}  "
                f"{'yes' if agree else 'NO':<14} {counted or '-'}",
                flush=True,
            )
    return good


def print_endless(
    served: dict[str, Source], paths: list[str], options: Options, samples: int
) -> bool:
    """Print the error of each source and endless fault; whether every one raised an error."""
    good = True
    for name, source in served.items():
        for fault, plan in endless(os.path.basename(paths[-1])):
            try:
                source.epoch(plan, options, samples, patience=options.patience)
                outcome = "NO ERROR"
                good = False
            except OSError as error:
                outcome = f"{type(error).__name__}: {error}"
            print(f"{name:<14}{fault:<22}{outcome}", flush=True)
    return good


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))

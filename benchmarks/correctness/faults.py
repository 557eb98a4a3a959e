"""What each fault of a server does to an epoch: the matrix, over HTTP and over an S3 API, cached
and streamed.

    python benchmarks/faults.py [--shards 'in1k-sample-0000.tar' …] [--every 3]

Every row is one epoch from an empty cache and an empty index folder, in which every so many-th
request of a method for a shard meets the fault. Printed: how many did, how long the epoch took (the
first row, without faults, for comparison), whether the ids and the pixels are those of the local
shards, and what the reader took the faults for. Then the faults that do not end, with the error
that ends the run.
"""

import contextlib
import logging
import os
import pathlib
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

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
from maskco_fast.kernels.views import ViewConfig
from maskco_fast.loaders import Batch, RemoteConfig, make_loader, open_dataset
from maskco_fast.loaders.shards.names import expand

SAMPLES, SHARDS = 768, 4
"""Scenes drawn, where no shards are given."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Show what each fault does."""

    shards: tuple[str, ...] = ()
    """Tar shards on this machine; none: scenes drawn for the purpose."""
    every: int = 3
    """Every so many-th request of the kind for a shard fails."""
    size: int = 96
    """Side of the views, pixels."""
    batch_size: int = 32


@dataclass
class Source:
    """Where the shards are served, and by which name."""

    server: FaultyServer
    names: list[str]
    mode: str
    endpoint: str | None

    def epoch(
        self, plan: FaultPlan, options: Options, samples: int, **changes: float
    ) -> tuple[list[Batch], str, float]:
        """The batches, what the reader met, and the seconds that it took."""
        self.server.plan = plan
        self.server.injected.clear()
        with tempfile.TemporaryDirectory() as folder:
            settings = {
                "request_mb": 0.2,
                "timeout": 1.0,
                "backoff": 0.05,
                "patience": 30.0,
                **changes,
            }
            config = RemoteConfig(
                mode="stream" if self.mode == "stream" else "cache",
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
                met = ", ".join(
                    f"{count} {reason}" for reason, count in sorted(store.faults.items())
                )
            return batches, met, time.monotonic() - began


def same(mine: list[Batch], theirs: list[Batch]) -> bool:
    """Whether ids and pixels agree, batch for batch."""
    return len(mine) == len(theirs) and all(
        torch.equal(one.sample_id, other.sample_id)
        and all(map(torch.equal, one.views, other.views))
        for one, other in zip(mine, theirs)
    )


@contextlib.contextmanager
def sources(paths: list[str]) -> Iterator[dict[str, Source]]:
    """The shards behind servers of every kind."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    os.environ.update(
        AWS_ACCESS_KEY_ID="testing", AWS_SECRET_ACCESS_KEY="testing", AWS_DEFAULT_REGION="us-east-1"
    )
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    behind = f"http://{host}:{port}"
    s3_names = put_into_s3(paths, behind, "faults")
    with (
        FaultyServer(pathlib.Path(paths[0]).parent, stall=5.0) as web,
        FaultyServer(behind, stall=5.0) as s3,
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
    """The truth: the same epoch from the files."""
    config = RemoteConfig(mode="stream", epoch_samples=samples) if mode == "stream" else None
    with make_loader(
        paths, options.batch_size, views=ViewConfig.maskco(options.size), remote=config
    ) as loader:
        return list(loader)


def endless(name: str) -> list[tuple[str, Callable[[], FaultPlan], dict[str, float]]]:
    """Faults of one shard that no repetition mends."""
    return [
        ("missing shard (404)", lambda: always("missing", name), {}),
        ("refused (403)", lambda: always("refused", name), {}),
        ("503, for ever", lambda: always("503", name, method="GET"), {"patience": 2.0}),
        (
            "stall, for ever",
            lambda: always("stall", name, method="GET"),
            {"patience": 2.0, "timeout": 0.5},
        ),
        ("truncated, for ever", lambda: always("truncated", name, method="GET"), {"patience": 2.0}),
        ("short, for ever", lambda: always("short", name, method="GET"), {"patience": 2.0}),
    ]


def main(options: Options) -> None:
    """Print the matrix for the shards given, or for some drawn here."""
    with tempfile.TemporaryDirectory() as folder:
        drawn = [] if options.shards else demo_shards(folder, samples=SAMPLES, shards=SHARDS)
        matrix(expand(options.shards or drawn), options)


def matrix(paths: list[str], options: Options) -> None:
    """Print it for these shards, which lie in one folder."""
    samples = len(open_dataset(paths))
    print(machine())
    print(
        f"{samples} images in {len(paths)} shards; one in {options.every} requests of the method for a shard fails\n"
    )
    print(
        f"{'source':<14}{'method':<7}{'fault':<22}{'injected':>9}{'seconds':>9}  same as local  met by the reader as"
    )
    warnings.simplefilter("ignore", UserWarning)  # of long trouble: the matrix tells of it
    with sources(paths) as served:
        for name, source in served.items():
            truth = local_epoch(paths, options, source.mode, samples)
            rows = [("", "none", no_faults)]
            rows += [("GET", fault, every(options.every, "GET", fault)) for fault in BODY_FAULTS]
            rows += [("HEAD", fault, every(options.every, "HEAD", fault)) for fault in HEAD_FAULTS]
            for method, fault, plan in rows:
                mine, met, seconds = source.epoch(plan, options, samples)
                agree = "yes" if same(mine, truth) else "NO"
                count = sum(source.server.injected.values())
                print(
                    f"{name:<14}{method:<7}{fault:<22}{count:9}{seconds:9.1f}  {agree:<14} {met or '-'}",
                    flush=True,
                )
        print()
        for name, source in served.items():
            for fault, make_plan, changes in endless(os.path.basename(paths[-1])):
                try:
                    source.epoch(make_plan(), options, samples, **changes)
                    told = "NO ERROR"
                except OSError as error:
                    told = f"{type(error).__name__}: {error}"
                print(f"{name:<14}{fault:<22}{told}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

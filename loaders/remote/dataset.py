"""`RemoteDataset`: shards on servers, read in exact order through the shard cache.

The order is global, so every shard must be indexed before the first batch. The first opening
downloads each shard, indexes it, and stores the index in the index folder. The index remains there
when the shard is removed to make room. Later openings only check that the server's shards are
unchanged.
"""

import bisect
import dataclasses
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ..config import LoaderConfig
from ..shards.build_index import index_shard, unusable
from ..shards.dataset import Dataset
from ..shards.index import ShardIndex
from ..shards.index_cache import (
    FORMAT_VERSION,
    cache_file,
    full_stamp,
    index_shards,
    load_or_index,
    read_cached,
    write_cached,
)
from ..shards.labels import LabelSource
from ..shards.names import is_remote, redact_url
from ..system.cpus import usable_cpus
from ..system.progress import Progress, no_progress
from .cache import Pin, ShardCache
from .config import RemoteConfig
from .errors import ShardChanged, ShardTooLarge
from .prefetch import ShardPrefetcher
from .store import RemoteShard

INDEX_ATTEMPTS = 5
"""Attempts to index a shard that changes during the attempt."""


class RemoteDataset(Dataset):
    """A `Dataset` with some or all shards remote, prefetched for one loader at a time."""

    def __init__(
        self,
        shards: Sequence[ShardIndex],
        cache: ShardCache,
        *,
        labels: LabelSource | None = None,
        classes: Sequence[str] | None = None,
        fields: tuple[str, ...] = (),
    ) -> None:
        super().__init__(shards, labels=labels, classes=classes, fields=fields)
        self.cache = cache
        self._prefetcher: ShardPrefetcher | None = None
        self._stop = threading.Event()
        self._interrupted = False

    @classmethod
    def index(
        cls,
        paths: Sequence[str],
        config: RemoteConfig,
        *,
        labels: LabelSource | None = None,
        classes: Sequence[str] | None = None,
        fields: tuple[str, ...] = (),
        index_folder: str | os.PathLike[str] | None = None,
        threads: int | None = None,
        progress: Progress = no_progress,
    ) -> "RemoteDataset":
        """Open shards, downloading and indexing those that have no index yet.

        `threads`: shards looked up and indexed at once (default: the CPUs that this process may
        use), at least `config.downloads`. Raises FileNotFoundError naming missing shards,
        RemoteError naming a shard that cannot be read, and as `Dataset`.
        """
        cache = ShardCache(config)
        threads = max(threads or usable_cpus(), config.downloads)
        found = _look_up_all([path for path in paths if is_remote(path)], cache, threads)

        def load(
            path: str, folder: Path, labels: LabelSource | None, fields: tuple[str, ...]
        ) -> ShardIndex:
            if path in found:
                return _load_or_index(found[path], folder, cache, labels, fields)
            return load_or_index(path, folder, labels, fields)

        indexes = index_shards(
            paths,
            labels=labels,
            fields=fields,
            folder=index_folder,
            threads=threads,
            progress=progress,
            load=load,
        )
        return cls(indexes, cache, labels=labels, classes=classes, fields=fields)

    def batches(
        self,
        config: LoaderConfig,
        *,
        epoch: int,
        consumed: int,
        rank: int,
        world_size: int,
        count: int,
    ) -> Iterator[np.ndarray]:
        """As `Dataset.batches`; prefetches the shards in the order in which batches use them."""
        self.cancel_reads()
        batches = list(
            super().batches(
                config,
                epoch=epoch,
                consumed=consumed,
                rank=rank,
                world_size=world_size,
                count=count,
            )
        )
        indices = np.concatenate([np.empty(0, np.int64), *batches])
        self._stop = threading.Event()
        if self._interrupted:  # perhaps while the new event replaced the old one
            self._stop.set()
        remotes = [shard.remote for shard in self.shards]
        prefetcher = ShardPrefetcher(self.cache, remotes, self._ends, indices, self._stop)
        self._prefetcher = prefetcher
        in_flight = config.prefetch + 1
        for number, batch in enumerate(batches):
            prefetcher.advance((number - in_flight) * config.batch_size)
            yield batch

    def read(self, index: int) -> bytes:
        """As `Dataset.read`; waits for the shard's download.

        Raises FileNotFoundError, RemoteError or ShardChanged, naming the shard.
        """
        number = bisect.bisect_right(self._ends, index)
        shard = self.shards[number].remote
        if shard is None:
            return super().read(index)
        offset = int(self.samples[index]["offset"])
        size = int(self.samples[index]["size"])
        prefetcher = self._prefetcher  # `cancel_reads` may clear the attribute in another thread
        data = prefetcher.read(number, index, offset, size) if prefetcher is not None else None
        if data is not None:
            return data
        # outside the order: a substitute for a bad sample, or a single read
        with self.cache.acquire(shard, stop=self._stop) as pin:
            return pin.read(offset, size)

    def read_fields(self, index: int) -> list[bytes | None]:
        """As `Dataset.read_fields`; waits for the shard's download."""
        number = bisect.bisect_right(self._ends, index)
        shard, row = self.locate(index)
        if shard.remote is None:
            return super().read_fields(index)
        if shard.fields is None:
            return [None] * len(self.fields)
        places = shard.fields.places[row]
        prefetcher = self._prefetcher
        pin = prefetcher.retain(number) if prefetcher is not None else None
        with pin or self.cache.acquire(shard.remote, stop=self._stop) as held:
            return [None if at < 0 else held.read(at, size) for at, size in places.tolist()]

    def __getstate__(self) -> dict[str, Any]:
        """Without prefetching, which a copy begins anew."""
        return {**vars(self), "_prefetcher": None, "_stop": None, "_interrupted": False}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._stop = threading.Event()

    def cancel_reads(self) -> None:
        """Cancel prefetching and outstanding reads; called when an iterator closes."""
        self._stop.set()
        prefetcher = self._prefetcher
        self._prefetcher = None
        if prefetcher is not None:
            prefetcher.close()

    def interrupt(self) -> None:
        """As `Dataset.interrupt`; shards in the cache can still be read."""
        self._interrupted = True
        self._stop.set()

    def close(self) -> None:
        """Cancel downloads and close the open files. Idle connections time out after seconds."""
        self.cancel_reads()
        self._interrupted = False
        super().close()


def _look_up_all(urls: Sequence[str], cache: ShardCache, threads: int) -> dict[str, RemoteShard]:
    """Sizes and tags of all shards by URL; raises FileNotFoundError naming the missing ones."""

    def look_up(url: str) -> RemoteShard | FileNotFoundError:
        try:
            return cache.store.look_up(url)
        except FileNotFoundError as error:
            return error

    with ThreadPoolExecutor(threads, thread_name_prefix="remote") as pool:
        answers = dict(zip(urls, pool.map(look_up, urls)))
    missing = [url for url, answer in answers.items() if isinstance(answer, FileNotFoundError)]
    if missing:
        listed = ", ".join(map(redact_url, missing[:5])) + (
            f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        )
        raise FileNotFoundError(
            f"{len(missing)} of {len(urls)} remote shards do not exist: {listed}. "
            "Put them back, or take them out of --shards"
        )
    return {url: answer for url, answer in answers.items() if isinstance(answer, RemoteShard)}


def _load_or_index(
    shard: RemoteShard,
    folder: Path,
    cache: ShardCache,
    labels: LabelSource | None,
    fields: tuple[str, ...],
) -> ShardIndex:
    """The stored index of a remote shard, or a new one, which is stored in `folder`."""
    file = cache_file(shard.url, folder, labels, fields)
    for attempts_left in reversed(range(INDEX_ATTEMPTS)):
        stamp = full_stamp(f"{FORMAT_VERSION} remote {shard.size} {shard.tag}", labels, fields)
        index = read_cached(file, stamp, shard.url)
        if index is not None:
            return index
        # No index vouches for the size, and a server may report a wrong one.
        confirmed = cache.store.look_up(shard.url, confirm=True)
        if confirmed != shard:
            shard = confirmed
            continue
        try:
            pin = cache.acquire(shard)
        except ShardTooLarge as error:
            warnings.warn(str(error), stacklevel=2)
            return unusable(shard.url, "larger than the shard cache may be", labels)
        except ShardChanged:  # during the download, or the reported size was wrong
            if not attempts_left:
                raise
            shard = cache.store.look_up(shard.url, confirm=True)
            continue
        with pin:
            # Request one byte past the reported length, which catches a server that under-reports.
            if cache.store.ends_at_size(shard):
                index = _as_remote(index_shard(str(pin.path), labels, fields), shard, pin)
                write_cached(file, stamp, index)
                return index
        shard = cache.store.look_up(shard.url, confirm=True)
    raise ShardChanged(
        f"{redact_url(shard.url)}: the server must report the same length and tag each time, and "
        f"{INDEX_ATTEMPTS} attempts to index the shard met different ones. Wait until the upload "
        "of the shard is complete, then run the same command again"
    )


def _as_remote(index: ShardIndex, shard: RemoteShard, pin: Pin) -> ShardIndex:
    """The index of a cached file, renamed to the remote shard that the file holds."""
    return dataclasses.replace(
        index,
        path=shard.url,
        bad=tuple(dataclasses.replace(entry, shard=shard.url) for entry in index.bad),
        remote=dataclasses.replace(shard, size=pin.path.stat().st_size, digest=pin.digest()),
    )

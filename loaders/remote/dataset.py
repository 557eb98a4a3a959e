"""The samples of shards that lie on a server, read through the shard cache.

The order is global, so every shard must have been looked through before the first batch. That is
done once: the first opening downloads each shard, indexes it and keeps the index (a few per cent of
a per cent of its bytes) in the index folder, where it stays when the shard itself is removed to
make room. Later openings only ask the server whether the shards are still the same.
"""

import bisect
import dataclasses
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..config import LoaderConfig
from ..shards.build_index import index_shard
from ..shards.dataset import Dataset
from ..shards.index import ShardIndex
from ..shards.index_cache import (
    FORMAT_VERSION,
    cache_file,
    index_shards,
    load_or_index,
    read_cached,
    write_cached,
)
from ..shards.names import is_remote, redact_url
from ..system.cpus import usable_cpus
from ..system.progress import Progress, no_progress
from .cache import Pin, ShardCache
from .config import RemoteConfig
from .errors import ShardChanged
from .prefetch import ShardPrefetcher
from .store import RemoteShard

TRIES = 5
"""Times that a shard is indexed which changes meanwhile."""


class RemoteDataset(Dataset):
    """As `Dataset`, some or all of its shards remote. One loader at a time gets its shards ahead of
    their turn."""

    def __init__(self, shards: Sequence[ShardIndex], cache: ShardCache) -> None:
        super().__init__(shards)
        self.cache = cache
        self._ahead: ShardPrefetcher | None = None
        self._stop = threading.Event()
        self._interrupted = False

    @classmethod
    def index(
        cls,
        paths: Sequence[str],
        config: RemoteConfig,
        *,
        index_folder: str | os.PathLike[str] | None = None,
        threads: int | None = None,
        progress: Progress = no_progress,
    ) -> "RemoteDataset":
        """Index what is not yet indexed, downloading it. FileNotFoundError, RemoteError name a
        shard that fails."""
        cache = ShardCache(config)
        threads = max(threads or usable_cpus(), config.downloads)
        facts = _look_up_all([path for path in paths if is_remote(path)], cache, threads)

        def load(path: str, folder: Path) -> ShardIndex:
            return (
                _load_or_index(facts[path], folder, cache)
                if path in facts
                else load_or_index(path, folder)
            )

        return cls(
            index_shards(paths, folder=index_folder, threads=threads, progress=progress, load=load),
            cache,
        )

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
        """As `Dataset.batches`; the shards are downloaded in the order in which the batches need
        them."""
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
        if self._interrupted:  # before or while the new event took the old one's place
            self._stop.set()
        remotes = [shard.remote for shard in self.shards]
        ahead = self._ahead = ShardPrefetcher(self.cache, remotes, self._ends, indices, self._stop)
        in_work = config.prefetch + 1
        for number, batch in enumerate(batches):
            ahead.passed((number - in_work) * config.batch_size)
            yield batch

    def read(self, index: int) -> bytes:
        """As `Dataset.read`; waits for the shard. FileNotFoundError, RemoteError, ShardChanged name
        what fails."""
        number = bisect.bisect_right(self._ends, index)
        shard, sample = self.shards[number].remote, self.samples[index]
        if shard is None:
            return super().read(index)
        place = int(sample["offset"]), int(sample["size"])
        data = self._ahead.read(number, index, *place) if self._ahead is not None else None
        if data is None:  # not in the order: a sample in place of a bad one, or one by itself
            pin = self.cache.acquire(shard, stop=self._stop)
            data = pin.read(*place)
            pin.release()
        return data

    def cancel_reads(self) -> None:
        """End the downloads ahead. Until the next `batches`, reading waits for nothing."""
        self._stop.set()
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.close()

    def interrupt(self) -> None:
        """As `Dataset.interrupt`; shards that are in the cache are still read."""
        self._interrupted = True
        self._stop.set()

    def close(self) -> None:
        """End the downloads and let go of the open files. Idle connections close by themselves
        after some seconds."""
        self.cancel_reads()
        self._interrupted = False
        super().close()


def _look_up_all(urls: Sequence[str], cache: ShardCache, threads: int) -> dict[str, RemoteShard]:
    """What the servers tell of the shards; FileNotFoundError names those that are missing."""

    def look_up(url: str) -> RemoteShard | FileNotFoundError:
        try:
            return cache.store.look_up(url)
        except FileNotFoundError as error:
            return error

    with ThreadPoolExecutor(threads, thread_name_prefix="remote") as pool:
        found = dict(zip(urls, pool.map(look_up, urls)))
    missing = [url for url, facts in found.items() if isinstance(facts, FileNotFoundError)]
    if missing:
        listed = ", ".join(map(redact_url, missing[:5])) + (
            f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        )
        raise FileNotFoundError(
            f"{len(missing)} of {len(urls)} remote shards do not exist: {listed}; put them back, or take them out of "
            "--shards"
        )
    return {url: facts for url, facts in found.items() if isinstance(facts, RemoteShard)}


def _load_or_index(shard: RemoteShard, folder: Path, cache: ShardCache) -> ShardIndex:
    """The index of a remote shard from the folder, or made now of the shard and kept there."""
    file = cache_file(shard.url, folder)
    for tries_left in reversed(range(TRIES)):
        stamp = f"{FORMAT_VERSION} remote {shard.size} {shard.tag}"
        index = read_cached(file, stamp, shard.url)
        if index is not None:
            return index
        sure = cache.store.look_up(shard.url, sure=True)  # nothing known to hold the answer against
        if sure != shard:
            shard = sure
            continue
        try:
            pin = cache.acquire(shard)
        except ShardChanged:  # while it was downloaded, or the server was wrong about it
            if not tries_left:
                raise
            shard = cache.store.look_up(shard.url, sure=True)
            continue
        if not cache.store.ends(shard):  # the server told too short a length, twice
            pin.release()
            shard = cache.store.look_up(shard.url, sure=True)
            continue
        index = _of_url(index_shard(str(pin.path)), shard, pin)
        pin.release()
        write_cached(file, stamp, index)
        return index
    raise ShardChanged(
        f"{redact_url(shard.url)}: the server tells another length or tag of it each time; start again"
    )


def _of_url(index: ShardIndex, shard: RemoteShard, pin: Pin) -> ShardIndex:
    """The index of the cached file as that of the shard that it is."""
    return dataclasses.replace(
        index,
        path=shard.url,
        bad=tuple(dataclasses.replace(entry, shard=shard.url) for entry in index.bad),
        remote=dataclasses.replace(shard, size=pin.path.stat().st_size, digest=pin.digest()),
    )

"""`RemoteDataset`: shards on servers, read in exact order through the shard cache.

The order is global, so every shard must be indexed before the first batch. The first opening
downloads each shard, indexes it, and stores the index in the index folder. The index remains there
when the shard is removed to make room. Later openings only check that the server's shards are
unchanged.
"""

import contextlib
import dataclasses
import os
import random
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ...kernels.compiler.cache import cache_folder
from ...kernels.reading import Encoded
from ..config import LoaderConfig
from ..order import rank_positions
from ..shards.build_index import index_shard, unusable
from ..shards.dataset import Dataset
from ..shards.index import ShardIndex
from ..shards.index_cache import (
    FORMAT_VERSION,
    cache_file,
    fresh_table,
    full_stamp,
    load_or_index,
    open_table,
    read_cached,
    stamp_of,
    stamps_of,
    table_path,
    write_cached,
)
from ..shards.labels import LabelSource
from ..shards.names import is_remote, redact_url
from ..shards.reader import ReadMemory
from ..system.cpus import usable_cpus
from ..system.progress import Progress, no_progress
from ..tables.table import MappedTable, ShardTable
from .cache import Pin, ShardCache
from .config import RemoteConfig
from .errors import ShardChanged, ShardTooLarge
from .prefetch import ShardPrefetcher
from .store import RemoteShard

INDEX_ATTEMPTS = 5
"""Attempts to index a shard that changes during the attempt."""
LOOKED_UP = 512
"""Shards that an opening asks the server about, at most: of more, a random choice. A change of
another one is found when the shard is downloaded."""


class RemoteDataset(Dataset):
    """A `Dataset` with some or all shards remote, prefetched for one loader at a time."""

    def __init__(
        self,
        table: ShardTable,
        cache: ShardCache,
        *,
        labels: LabelSource | None = None,
        fields: tuple[str, ...] = (),
    ) -> None:
        super().__init__(table, labels=labels, fields=fields)
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
        urls = [path for path in paths if is_remote(path)]
        if len(urls) > LOOKED_UP:
            where = Path(index_folder) if index_folder is not None else cache_folder("index")
            table = _spot_checked(
                paths,
                table_path(paths, where, labels, classes, fields),
                labels,
                fields,
                cache,
                threads,
            )
            if table is not None:
                return cls(table, cache, labels=labels, fields=fields)
        found = _look_up_all(urls, cache, threads)

        def load(
            path: str, folder: Path, labels: LabelSource | None, fields: tuple[str, ...]
        ) -> ShardIndex:
            if path in found:
                return _load_or_index(found[path], folder, cache, labels, fields)
            return load_or_index(path, folder, labels, fields)

        table = open_table(
            paths,
            labels=labels,
            classes=classes,
            fields=fields,
            folder=index_folder,
            threads=threads,
            progress=progress,
            stamp=lambda path: remote_stamp(found[path]) if path in found else stamp_of(path),
            load=load,
        )
        return cls(table, cache, labels=labels, fields=fields)

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
        self._stop = threading.Event()
        if self._interrupted:  # perhaps while the new event replaced the old one
            self._stop.set()
        order = self._order(config, epoch)
        size = config.batch_size
        left = min(count * world_size * size, len(order) - consumed)

        def parts() -> Iterator[np.ndarray]:
            """This rank's samples, a block of the order at a time."""
            begin, end = consumed, consumed + left
            for block, block_end in enumerate(order.block_ends.tolist()):
                if begin < min(end, block_end):
                    here = rank_positions(
                        begin, min(end, block_end), consumed, size, rank, world_size
                    )
                    begin = block_end
                    yield order.select(block, here)

        # The shards of a block are what is needed at the same time, at most. Where that is too much
        # the order decides, before the first download.
        blocks = range(len(order.block_ends))
        bytes_of = np.maximum(self.shards.remote_sizes, 0)
        most = max(int(bytes_of[order.shards_of(block)].sum()) for block in blocks)
        prefetcher = ShardPrefetcher(
            self.cache,
            _Remotes(self.shards),
            self.shards.ends,
            parts(),
            self._stop,
            planned=1 if most <= self.cache.limit else len(self),
        )
        self._prefetcher = prefetcher
        in_flight = config.prefetch + 1
        batches = super().batches(
            config,
            epoch=epoch,
            consumed=consumed,
            rank=rank,
            world_size=world_size,
            count=count,
        )
        for number, batch in enumerate(batches):
            prefetcher.advance((number - in_flight) * size)
            prefetcher.plan((number + 1) * size)
            yield batch

    def _is_distant(self) -> bool:
        return True

    def read(self, index: int) -> bytes:
        """As `Dataset.read`; waits for the shard's download.

        Raises FileNotFoundError, RemoteError or ShardChanged, naming the shard.
        """
        number, _ = self._place(index)
        if self.shards.remote_sizes[number] < 0:
            return super().read(index)
        with self._noticing_changes():
            return self._read_remote(number, index)

    def _read_remote(self, number: int, index: int) -> bytes:
        offset = int(self.samples[index]["offset"])
        size = int(self.samples[index]["size"])
        prefetcher = self._prefetcher  # `cancel_reads` may clear the attribute in another thread
        data = prefetcher.read(number, index, offset, size) if prefetcher is not None else None
        if data is not None:
            return data
        # outside the order: a substitute for a bad sample, or a single read
        shard = self.shards.remote(number)
        assert shard is not None
        with self.cache.acquire(shard, stop=self._stop) as pin:
            return pin.read(offset, size)

    def read_stored(self, indices: Sequence[int], memory: ReadMemory) -> Sequence[Encoded]:
        """As `Dataset.read_stored`; each waits for its shard's download."""
        return [self.read(index) for index in indices]

    def read_fields(self, index: int) -> list[bytes | None]:
        """As `Dataset.read_fields`; waits for the shard's download."""
        number, row = self._place(index)
        shard = self.shards[number]
        if shard.remote is None:
            return super().read_fields(index)
        if shard.fields is None:
            return [None] * len(self.fields)
        places = shard.fields.places[row]
        prefetcher = self._prefetcher
        with self._noticing_changes():
            pin = prefetcher.retain(number) if prefetcher is not None else None
            with pin or self.cache.acquire(shard.remote, stop=self._stop) as held:
                return [None if at < 0 else held.read(at, size) for at, size in places.tolist()]

    @contextlib.contextmanager
    def _noticing_changes(self) -> Iterator[None]:
        """Context of reading: where a shard has changed, the next opening indexes it again."""
        try:
            yield
        except ShardChanged:
            self.shards.forget()
            raise

    def __getstate__(self) -> dict[str, Any]:
        """Without prefetching, which a copy begins anew."""
        return {**super().__getstate__(), "_prefetcher": None, "_stop": None, "_interrupted": False}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
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


class _Remotes(Sequence[RemoteShard | None]):
    """The remote shards of a table, None for each local one."""

    def __init__(self, table: ShardTable) -> None:
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, number: Any) -> Any:
        return self._table.remote(number)


def _spot_checked(
    paths: Sequence[str],
    path: Path,
    labels: LabelSource | None,
    fields: tuple[str, ...],
    cache: ShardCache,
    threads: int,
) -> MappedTable | None:
    """The table `path` of many shards, if it is there and `LOOKED_UP` of them are unchanged."""
    here = [name for name in paths if not is_remote(name)]
    stamps = stamps_of(here, labels, fields, threads, stamp_of)
    table = fresh_table(path, {"local": stamps["local"]})
    if table is None:
        return None
    remote = np.flatnonzero(table.remote_sizes >= 0).tolist()
    chosen = [table.remote(number) for number in random.sample(remote, min(LOOKED_UP, len(remote)))]
    recorded = {shard.url: shard for shard in chosen if shard is not None}
    found = _look_up_all(list(recorded), cache, threads)
    changed = any(
        remote_stamp(found[url]) != remote_stamp(shard) for url, shard in recorded.items()
    )
    return None if changed else table


def remote_stamp(shard: RemoteShard) -> str:
    """The state of a remote shard, before and after its index has found a command's length."""
    size = -1 if shard.is_pipe else shard.size
    return f"{FORMAT_VERSION} remote {size} {shard.tag}"


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
        stamp = full_stamp(remote_stamp(shard), labels, fields)
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
            reason = "larger than the shard cache may be"
            return unusable(shard.url, reason, labels, lasting=False)
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

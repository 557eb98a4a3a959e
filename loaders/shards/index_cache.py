"""The index cache: a shard is indexed once; its index is reused until the shard changes.

A change is recognised by size and modification time. Index files lie in the cache folder: one for
each shard, whatever data sets it is part of, and for each data set that was opened a table of all
of its shards (`table`), which is what loaders read.
"""

import collections
import contextlib
import functools
import hashlib
import itertools
import json
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ...kernels.compiler.cache import cache_folder
from ..quarantine import BadSample
from ..remote.store import RemoteShard
from ..system.arrays import read_arrays
from ..system.cpus import usable_cpus
from ..system.files import write_atomically
from ..system.portable import lock
from ..system.progress import Progress, no_progress
from ..tables.table import MappedTable, read_table, write_table
from .build_index import index_shard, unusable
from .index import SAMPLE_DTYPE, ShardFields, ShardIndex, ShardLabels
from .labels import LabelSource
from .names import image_files, is_remote, redact_url

Load = Callable[..., ShardIndex]
"""`load(path, folder, labels, fields)`: as `load_or_index`."""

FORMAT_VERSION = 2
"""Bump when the format changes; older files are rebuilt."""

LABELS_VERSION = 1
"""As `FORMAT_VERSION`, of indexes with labels: bump when labels are read differently."""

FIELDS_VERSION = 1
"""As `LABELS_VERSION`, of indexes with fields."""

_STAMPED = 256
"""Shards whose state a thread looks up at a time."""


def open_table(
    paths: Sequence[str],
    *,
    labels: LabelSource | None = None,
    classes: Sequence[str] | None = None,
    fields: tuple[str, ...] = (),
    folder: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    progress: Progress = no_progress,
    stamp: Callable[[str], str] | None = None,
    load: Load | None = None,
) -> MappedTable:
    """Map the table of shards `paths`; it is written first where it is missing or out of date.

    One process of those that need the table writes it, and the others wait. Shards are indexed in
    parallel where their own index is missing, too. `labels`, `classes`, `fields`: see
    `open_dataset`. `folder`: where index files are kept (default: the cache folder). `progress` is
    called after each shard. `stamp(path)` returns the state of a shard (default: `stamp_of`), and
    `load(path, folder, labels, fields)` its index (default: `load_or_index`).
    """
    where = Path(folder) if folder is not None else cache_folder("index")
    indexes = Indexes(paths, where, labels, fields, threads or usable_cpus(), progress, load)
    path = table_path(paths, where, labels, classes, fields)
    stamps = stamps_of(paths, labels, fields, indexes.threads, stamp or stamp_of)
    table = fresh_table(path, stamps)
    if table is None:
        with _sole_writer(path):
            table = fresh_table(path, stamps)  # another process may have written it meanwhile
            if table is None:
                write_table(path, indexes, stamps, source=labels, classes=classes, fields=fields)
                return read_table(path)
    progress(f"shards indexed, {len(table.samples)} samples", len(paths), len(paths))
    return table


class Indexes:
    """The indexes of shards in their order, made or read while they are iterated, a few at once."""

    def __init__(
        self,
        paths: Sequence[str],
        folder: Path,
        labels: LabelSource | None = None,
        fields: tuple[str, ...] = (),
        threads: int = 1,
        progress: Progress = no_progress,
        load: Load | None = None,
    ) -> None:
        """As `open_table`."""
        self.threads = threads
        self._paths = paths
        self._progress = progress
        self._load = functools.partial(
            load or load_or_index, folder=folder, labels=labels, fields=fields
        )

    def __iter__(self) -> Iterator[ShardIndex]:
        progress, self._progress = self._progress, no_progress  # of the first time alone
        samples = 0
        pending: collections.deque[Future[ShardIndex]] = collections.deque()
        paths = iter(self._paths)
        with ThreadPoolExecutor(self.threads, thread_name_prefix="index") as pool:
            try:
                for done in range(1, len(self._paths) + 1):
                    for path in itertools.islice(paths, 4 * self.threads - len(pending)):
                        pending.append(pool.submit(self._load, path))
                    index = pending.popleft().result()
                    samples += len(index.samples)
                    progress(f"shards indexed, {samples} samples", done, len(self._paths))
                    yield index
            finally:
                for future in pending:
                    future.cancel()


def table_path(
    paths: Sequence[str],
    folder: Path,
    labels: LabelSource | None,
    classes: Sequence[str] | None,
    fields: tuple[str, ...],
) -> Path:
    """The table of these shards, in this order, with these options."""
    name = hashlib.sha256()
    for path in paths:
        known = os.path.isabs(path) or is_remote(path)
        name.update(os.fsencode(path if known else os.path.abspath(path)) + b"\n")
    options = [str(labels) if labels else None, None if classes is None else list(classes), fields]
    name.update(json.dumps(options).encode())
    return folder / f"table-{name.hexdigest()[:32]}"


def fresh_table(path: Path, stamps: dict[str, str]) -> MappedTable | None:
    """The table, if it is there and was written with these stamps, or with these among others.

    A damaged one counts as none, with a warning.
    """
    try:
        table = read_table(path)
        return table if stamps.items() <= table.stamps.items() else None
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever damage makes of it
        warnings.warn(
            f"the index of the data set, {path}, is unreadable ({error}); it is rebuilt",
            stacklevel=2,
        )
        return None


@contextlib.contextmanager
def _sole_writer(path: Path) -> Iterator[None]:
    """Context in which no other process of this host writes the table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("ab") as file:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            lock(file.fileno())
        yield


def stamps_of(
    paths: Sequence[str],
    labels: LabelSource | None,
    fields: tuple[str, ...],
    threads: int,
    stamp: Callable[[str], str],
) -> dict[str, str]:
    """The state of the shards, in a hash of those on this machine and one of the remote ones."""

    def states(some: Sequence[str]) -> list[str]:
        return [stamp(path) for path in some]

    digests = {False: hashlib.sha256(), True: hashlib.sha256()}
    suffix = full_stamp("", labels, fields)
    parts = [paths[first : first + _STAMPED] for first in range(0, len(paths), _STAMPED)]
    with ThreadPoolExecutor(threads) as pool:
        for some, found in zip(parts, pool.map(states, parts)):
            for path, one in zip(some, found):
                line = f"{one}{suffix}\n".encode("utf-8", "surrogateescape")
                digests[is_remote(path)].update(line)
    return {"local": digests[False].hexdigest(), "remote": digests[True].hexdigest()}


def load_or_index(
    path: str,
    folder: Path | None = None,
    labels: LabelSource | None = None,
    fields: tuple[str, ...] = (),
) -> ShardIndex:
    """Return the index of one local shard: from the cache folder, or built now and stored there.

    A shard that cannot be read has an index without samples, which is not stored.
    """
    if os.path.isdir(path):
        fields = ()  # which lie beside the images
    file = cache_file(path, folder or cache_folder("index"), labels, fields)
    try:
        stamp = full_stamp(_state_of_shard(path), labels, fields)
        index = read_cached(file, stamp, path)
        if index is not None:
            return index
        index = index_shard(path, labels, fields)
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}"
        return unusable(path, reason, labels, lasting=False)
    write_cached(file, stamp, index)
    return index


def cache_file(
    path: str, folder: Path, labels: LabelSource | None = None, fields: tuple[str, ...] = ()
) -> Path:
    """The index file of a shard in `folder`; each source of labels and each choice of fields has
    files of its own."""
    name = path if is_remote(path) else os.path.abspath(path)
    name += f"\nlabels {labels}" if labels else ""
    name += f"\nfields {' '.join(fields)}" if fields else ""
    return folder / (hashlib.sha256(os.fsencode(name)).hexdigest()[:32] + ".npz")


def full_stamp(stamp: str, labels: LabelSource | None, fields: tuple[str, ...] = ()) -> str:
    """The stamp of a shard's index with labels of this source and with these fields."""
    if labels:
        stamp += f" labels {LABELS_VERSION} {labels}"
    if fields:
        stamp += f" fields {FIELDS_VERSION} {' '.join(fields)}"
    return stamp


def stamp_of(path: str) -> str:
    """The state of a local shard, also of one that cannot be read."""
    try:
        return _state_of_shard(path)
    except OSError:
        return "unreadable"


def _state_of_shard(path: str) -> str:
    """The state of a local shard: an index with another stamp is rebuilt."""
    facts = os.stat(path)
    if not stat.S_ISDIR(facts.st_mode):
        return f"{FORMAT_VERSION} {facts.st_size} {facts.st_mtime_ns}"
    names, rejected = image_files(path)
    files = [f"{name} {_state(os.path.join(path, name))}" for name in names]
    listing = "\n".join([*files, *map(str, rejected)]).encode("utf-8", "surrogateescape")
    return f"{FORMAT_VERSION} folder {hashlib.sha256(listing).hexdigest()}"


def _state(path: str) -> str:
    """Size and modification time of a file; empty where it has vanished."""
    try:
        facts = os.stat(path)
    except OSError:
        return ""
    return f"{facts.st_size} {facts.st_mtime_ns}"


def read_cached(file: Path, stamp: str, path: str) -> ShardIndex | None:
    """Read the stored index of shard `path`; None without one or where its stamp differs.

    A damaged file counts as none, with a warning.
    """
    try:
        stored = read_arrays(file, _ARRAYS)
        return _unpack(stored, path) if str(stored["stamp"]) == stamp else None
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever damage makes of it
        warnings.warn(
            f"the index file {file} of {redact_url(path)} is unreadable ({error}); the index is "
            "rebuilt",
            stacklevel=2,
        )
        return None


_ARRAYS = ("stamp", "samples", "names", "bad", "remote", "labels", "codes", "fields", "places")
"""Names of the arrays in an index file."""


def _unpack(stored: dict[str, np.ndarray], path: str) -> ShardIndex:
    """The index that `write_cached` stored."""
    samples, names = stored["samples"], stored["names"]
    if samples.dtype != SAMPLE_DTYPE or names.dtype.kind != "S" or len(samples) != len(names):
        raise ValueError("its arrays do not fit together")
    remote = None
    if "remote" in stored:
        remote = RemoteShard(url=path, **json.loads(str(stored["remote"])))
    labels = None
    if "labels" in stored:
        facts = json.loads(str(stored["labels"]))
        labels = ShardLabels(
            source=facts["source"],
            names=tuple(facts["names"]),
            codes=stored["codes"],
            reasons=tuple(facts["reasons"]),
        )
    fields = None
    if "fields" in stored:
        names_of_fields = tuple(json.loads(str(stored["fields"])))
        places = stored["places"]
        if places.dtype != np.int64 or places.shape != (len(samples), len(names_of_fields), 2):
            raise ValueError("its fields do not fit its samples")
        fields = ShardFields(names=names_of_fields, places=places)
    return ShardIndex(
        path=path,
        samples=samples,
        names=names,
        bad=tuple(
            BadSample(**{**entry, "shard": path}) for entry in json.loads(str(stored["bad"]))
        ),
        labels=labels,
        fields=fields,
        remote=remote,
    )


def write_cached(file: Path, stamp: str, index: ShardIndex) -> None:
    """Store an index in `file`, with the stamp that `read_cached` compares."""
    bad = [{"key": entry.key, "reason": entry.reason, "found": entry.found} for entry in index.bad]
    arrays = {
        "stamp": np.array(stamp),
        "samples": index.samples,
        "names": index.names,
        "bad": np.array(json.dumps(bad)),
    }
    if index.remote is not None:
        facts = {"size": index.remote.size, "tag": index.remote.tag, "digest": index.remote.digest}
        arrays["remote"] = np.array(json.dumps(facts))
    if index.labels is not None:
        mine = index.labels
        texts = {"source": mine.source, "names": mine.names, "reasons": mine.reasons}
        arrays["labels"], arrays["codes"] = np.array(json.dumps(texts)), mine.codes
    if index.fields is not None:
        arrays["fields"] = np.array(json.dumps(index.fields.names))
        arrays["places"] = index.fields.places
    with write_atomically(file) as out:
        np.savez(out, **arrays)  # type: ignore[arg-type]

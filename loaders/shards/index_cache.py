"""The index cache: a shard is indexed once; its index is reused until the shard changes.

A change is recognised by size and modification time. Index files lie in the cache folder.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ...kernels.compiler.cache import cache_folder
from ..quarantine import BadSample
from ..remote.store import RemoteShard
from ..system.arrays import read_arrays
from ..system.cpus import usable_cpus
from ..system.files import write_atomically
from ..system.progress import Progress, no_progress
from .build_index import index_shard, unusable
from .index import SAMPLE_DTYPE, ShardFields, ShardIndex, ShardLabels
from .labels import LabelSource
from .names import image_files, is_remote, redact_url

FORMAT_VERSION = 2
"""Bump when the format changes; older files are rebuilt."""

LABELS_VERSION = 1
"""As `FORMAT_VERSION`, of indexes with labels: bump when labels are read differently."""

FIELDS_VERSION = 1
"""As `LABELS_VERSION`, of indexes with fields."""


def index_shards(
    paths: Sequence[str],
    *,
    labels: LabelSource | None = None,
    fields: tuple[str, ...] = (),
    folder: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    progress: Progress = no_progress,
    load: Callable[[str, Path, LabelSource | None, tuple[str, ...]], ShardIndex] | None = None,
) -> list[ShardIndex]:
    """Return the indexes of all shards, in the order of `paths`, built in parallel where missing.

    `folder`: where index files are kept (default: the cache folder). `progress` is called after
    each shard. `load(path, folder, labels, fields)` returns one index (default: `load_or_index`).
    """
    where = Path(folder) if folder is not None else cache_folder("index")
    load = load or load_or_index
    done: list[ShardIndex] = []
    samples = 0
    with ThreadPoolExecutor(threads or usable_cpus(), thread_name_prefix="index") as pool:
        for index in pool.map(lambda path: load(path, where, labels, fields), paths):
            done.append(index)
            samples += len(index.samples)
            progress(f"shards indexed, {samples} samples", len(done), len(paths))
    return done


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
        stamp = full_stamp(_stamp(path), labels, fields)
        index = read_cached(file, stamp, path)
        if index is not None:
            return index
        index = index_shard(path, labels, fields)
    except OSError as error:
        return unusable(path, f"cannot be read: {error.strerror or error}", labels)
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


def _stamp(path: str) -> str:
    """The state of a local shard: an index with another stamp is rebuilt."""
    if os.path.isdir(path):
        names, rejected = image_files(path)
        facts = [f"{name} {_state(os.path.join(path, name))}" for name in names]
        listing = "\n".join([*facts, *map(str, rejected)]).encode("utf-8", "surrogateescape")
        return f"{FORMAT_VERSION} folder {hashlib.sha256(listing).hexdigest()}"
    stat = os.stat(path)
    return f"{FORMAT_VERSION} {stat.st_size} {stat.st_mtime_ns}"


def _state(path: str) -> str:
    """Size and modification time of a file; empty where it has vanished."""
    try:
        stat = os.stat(path)
    except OSError:
        return ""
    return f"{stat.st_size} {stat.st_mtime_ns}"


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

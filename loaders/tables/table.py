"""The table of a dataset: its shards' indexes one behind the other, in memory or mapped from files.

The mapped form is what all processes of a host share, whatever its size: opening it reads a few
bytes a shard, and a sample's row is read when the sample is.
"""

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from ...kernels.errors import InvalidInput
from ..quarantine import BadSample
from ..remote.store import RemoteShard
from ..shards.index import SAMPLE_DTYPE, ShardFields, ShardIndex
from ..shards.labels import LabelSource, choose_classes, class_numbers, set_targets
from .columns import (
    ColumnWriter,
    DamagedColumns,
    MappedColumns,
    header_path,
    read_header,
    write_columns,
)
from .sample_ids import keys_repeat, shard_codes, sketch

VERSION = 1
"""Bump when the columns change; older tables are made anew."""

SHARD_DTYPE = np.dtype(
    [
        ("end", np.int64),
        ("names_end", np.int64),
        ("path_end", np.int64),
        ("remote_end", np.int64),
        ("bad_end", np.int64),
        ("bad_count", np.int64),
        ("size", np.int64),
        ("name_size", np.int32),
        ("folder", np.bool_),
    ]
)
"""A shard in a table: behind its last sample, and its last byte in the columns `names`, `paths`,
`remotes` and `bad`; bad samples of this shard and those before it; bytes of a remote shard, -1 of a
local one; bytes of each of its names; whether it is a folder of images."""

SHARDS_KEPT = 4096
"""Shards of a mapped table whose `ShardIndex` and path are kept."""


class ShardTable(Sequence[ShardIndex]):
    """A dataset's shards and the columns of their samples, in memory."""

    samples: np.ndarray
    """(n,) SAMPLE_DTYPE, shard after shard; `target` is a position in `classes`, if there are."""
    sizes: np.ndarray
    """(shards,) int64: usable samples of each shard."""
    ends: np.ndarray
    """(shards,) int64: the number behind each shard's last sample."""
    bad: Sequence[BadSample]
    """The samples that the index excluded."""
    classes: tuple[str, ...] | None
    fingerprint: str
    """Hash of the samples' keys and their order, 16 hex digits."""
    keys_repeat: bool
    """See `sample_ids.keys_repeat`."""

    def __init__(
        self,
        shards: Iterable[ShardIndex],
        source: LabelSource | None = None,
        classes: Sequence[str] | None = None,
        repeat: bool | None = None,
    ) -> None:
        """`source`, `classes`: see `choose_classes`; None without labels. `repeat`: `keys_repeat`
        where it is known."""
        self._shards = list(shards)
        self.classes = None
        if source is not None:
            self.classes = choose_classes(self._shards, source, classes)
            numbers = class_numbers(self.classes)
            self._shards = [set_targets(shard, numbers) for shard in self._shards]
        self.sizes = np.array([len(shard.samples) for shard in self._shards], np.int64)
        self.ends = np.cumsum(self.sizes)
        parts = [shard.samples for shard in self._shards]
        self.samples = np.concatenate([np.empty(0, SAMPLE_DTYPE), *parts])
        self.bad = [entry for shard in self._shards for entry in shard.bad]
        ids = np.ascontiguousarray(self.samples["sample_id"])
        self.fingerprint = hashlib.blake2b(ids.tobytes(), digest_size=8).hexdigest()
        if repeat is None:
            repeat = keys_repeat(sketch(part["sample_id"]) for part in parts)
        self.keys_repeat = repeat

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, number: int) -> ShardIndex: ...
    @overload
    def __getitem__(self, number: slice) -> list[ShardIndex]: ...
    def __getitem__(self, number: int | slice) -> ShardIndex | list[ShardIndex]:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        return self._shard(number % len(self))

    def _shard(self, number: int) -> ShardIndex:
        return self._shards[number]

    def path(self, number: int) -> str:
        """The address of shard `number`."""
        return self[number].path

    def file(self, number: int, sample: int) -> str:
        """The path of the file that holds usable sample `sample` of shard `number`."""
        return self[number].file(sample)

    def remote(self, number: int) -> RemoteShard | None:
        """The version of shard `number` that was indexed; None for a local one."""
        return self[number].remote

    @functools.cached_property
    def remote_sizes(self) -> np.ndarray:
        """(shards,) int64: bytes of each remote shard, -1 of a local one."""
        return np.array([-1 if one.remote is None else one.remote.size for one in self], np.int64)

    @functools.cached_property
    def codes(self) -> np.ndarray:
        """`sample_ids.shard_codes` of the shards."""
        return shard_codes([self.path(number) for number in range(len(self))])

    def release(self) -> None:
        """Give back memory that the system can find again; called every few batches."""

    def forget(self) -> None:
        """Have the next opening look at every shard anew: one has changed."""


class MappedTable(ShardTable):
    """A table that was written by `write_table`."""

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        """`header`: of `read_header(path)`. Raises as `MappedColumns`."""
        columns = MappedColumns(path, header, frozenset({"shards", "paths", "remotes"}))
        self._path, self._header, self._columns = path, header, columns
        self.stamps: dict[str, str] = header["stamps"]
        """What `write_table` was given."""
        self._rows = _column(columns, "shards").view(SHARD_DTYPE)
        self._field_names = tuple(header["fields"])
        self.samples = _column(columns, "samples").view(SAMPLE_DTYPE)
        self.ends = np.ascontiguousarray(self._rows["end"])
        self.sizes = np.diff(self.ends, prepend=0)
        self.bad = _BadSamples(self)
        self.classes = None if header["classes"] is None else tuple(header["classes"])
        self.fingerprint = header["fingerprint"]
        self.keys_repeat = header["keys_repeat"]
        self._require_fit()
        self._kept = functools.lru_cache(SHARDS_KEPT)(self._load)
        self._paths = functools.lru_cache(SHARDS_KEPT)(self._load_path)
        self._folders = frozenset(np.flatnonzero(self._rows["folder"]).tolist())

    def _require_fit(self) -> None:
        """Raise DamagedColumns unless the columns have the lengths that the shards give."""
        rows, columns = self._rows, self._columns
        places = 2 * 8 * len(self._field_names)
        if not (
            len(self.samples) == (self.ends[-1] if len(rows) else 0)
            and (self.sizes >= 0).all()
            and np.array_equal(
                self.sizes * rows["name_size"], np.diff(rows["names_end"], prepend=0)
            )
            and len(_column(columns, "places")) == places * len(self.samples)
            and all(
                len(_column(columns, name)) == (rows[end][-1] if len(rows) else 0)
                for name, end in (
                    ("names", "names_end"),
                    ("paths", "path_end"),
                    ("remotes", "remote_end"),
                    ("bad", "bad_end"),
                )
            )
        ):
            raise DamagedColumns("its columns do not fit together")

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy maps the same files."""
        return _mapped_again, (self._path, self._header["folder"])

    def _shard(self, number: int) -> ShardIndex:
        return self._kept(number)

    def _load(self, number: int) -> ShardIndex:
        """The index of a shard; its arrays are parts of the columns."""
        path, begin, end = self.path(number), *self._range(number)
        fields = None
        if self._field_names and number not in self._folders:
            places = _column(self._columns, "places").view(np.int64)
            places = places.reshape(-1, len(self._field_names), 2)[begin:end]
            fields = ShardFields(names=self._field_names, places=places)
        size = int(self._rows["name_size"][number])
        names = self._bytes("names", "names_end", number)
        return ShardIndex(
            path=path,
            samples=self.samples[begin:end],
            names=names.view(f"S{size}") if len(names) else np.empty(0, "S1"),
            bad=tuple(self.bad_of(number)),
            fields=fields,
            remote=self.remote(number),
        )

    def _range(self, number: int) -> tuple[int, int]:
        """Numbers of a shard's first sample and behind its last."""
        end = int(self.ends[number])
        return end - int(self.sizes[number]), end

    def _bytes(self, column: str, end: str, number: int) -> np.ndarray:
        """A shard's part of a column, (size,) uint8."""
        ends = self._rows[end]
        return _column(self._columns, column)[ends[number - 1] if number else 0 : ends[number]]

    def path(self, number: int) -> str:
        """As `ShardTable.path`."""
        return self._paths(number)

    def _load_path(self, number: int) -> str:
        return os.fsdecode(self._bytes("paths", "path_end", number).tobytes())

    def file(self, number: int, sample: int) -> str:
        """As `ShardTable.file`."""
        return self[number].file(sample) if number in self._folders else self._paths(number)

    def remote(self, number: int) -> RemoteShard | None:
        """As `ShardTable.remote`."""
        text = self._bytes("remotes", "remote_end", number).tobytes()
        return RemoteShard(url=self.path(number), **json.loads(text)) if text else None

    @property
    def remote_sizes(self) -> np.ndarray:  # type: ignore[override]
        """As `ShardTable.remote_sizes`."""
        return self._rows["size"]

    def bad_of(self, number: int) -> Iterator[BadSample]:
        """The samples of a shard that the index excluded."""
        for line in self._bytes("bad", "bad_end", number).tobytes().splitlines():
            yield BadSample(shard=self.path(number), **json.loads(line))

    @property
    def bad_counts(self) -> np.ndarray:
        """(shards,) int64: bad samples of each shard and those before it."""
        return self._rows["bad_count"]

    def release(self) -> None:
        """As `ShardTable.release`."""
        self._columns.release()

    def forget(self) -> None:
        """As `ShardTable.forget`."""
        header_path(self._path).unlink(missing_ok=True)


class _BadSamples(Sequence[BadSample]):
    """The bad samples of a mapped table, read when they are asked for."""

    def __init__(self, table: MappedTable) -> None:
        self._table = table

    def __len__(self) -> int:
        counts = self._table.bad_counts
        return int(counts[-1]) if len(counts) else 0

    def __iter__(self) -> Iterator[BadSample]:
        counts = np.diff(self._table.bad_counts, prepend=0)
        for number in np.flatnonzero(counts).tolist():
            yield from self._table.bad_of(number)

    @overload
    def __getitem__(self, index: int) -> BadSample: ...
    @overload
    def __getitem__(self, index: slice) -> list[BadSample]: ...
    def __getitem__(self, index: int | slice) -> BadSample | list[BadSample]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        counts = self._table.bad_counts
        number = int(np.searchsorted(counts, index, side="right"))
        before = int(counts[number - 1]) if number else 0
        return list(self._table.bad_of(number))[index - before]


def _column(columns: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """A column's bytes; those of one to which nothing was written are none."""
    return columns.get(name, np.empty(0, np.uint8))


def _mapped_again(path: Path, folder: str) -> MappedTable:
    """Another process's copy of a table."""
    header = read_header(path)
    if header["folder"] != folder:
        raise InvalidInput(
            "the shards or their index have changed since the dataset was opened: open it again"
        )
    return MappedTable(path, header)


def read_table(path: Path) -> MappedTable:
    """Map the table `path`. FileNotFoundError where there is none, DamagedColumns (a ValueError),
    or another exception that damage makes, where it is damaged or of another version."""
    for attempts_left in reversed(range(3)):
        header = read_header(path)
        if header.get("table") != VERSION:
            raise FileNotFoundError(path)
        try:
            return MappedTable(path, header)
        except FileNotFoundError as error:  # replaced meanwhile
            if not attempts_left:
                raise DamagedColumns("its folder lacks files") from error
    raise AssertionError


def write_table(
    path: Path,
    shards: Iterable[ShardIndex],
    stamps: dict[str, str],
    *,
    source: LabelSource | None = None,
    classes: Sequence[str] | None = None,
    fields: Sequence[str] = (),
) -> None:
    """Write the table of `shards`, which are iterated once, and with a `source` twice.

    `stamps`: kept as `MappedTable.stamps`; none are kept where a shard could not be read, which has
    to be tried again. `source`, `classes`: see `choose_classes`, which raises InvalidInput.
    """
    numbers: dict[str, int] | None = None
    if source is not None:
        classes = choose_classes(shards, source, classes)
        numbers = class_numbers(classes)
    digest = hashlib.blake2b(digest_size=8)
    sketches: list[np.ndarray] = []
    row = np.zeros(1, SHARD_DTYPE)
    facts: dict[str, Any] = {"table": VERSION, "stamps": stamps, "fields": list(fields)}
    with write_columns(path, facts) as columns:
        for shard in shards:
            if numbers is not None:
                shard = set_targets(shard, numbers)
            if not shard.lasting:
                facts["stamps"] = {}
            _append(columns, row, shard, len(fields))
            ids = np.ascontiguousarray(shard.samples["sample_id"])
            digest.update(ids.tobytes())
            sketches.append(sketch(ids))
        facts["classes"] = None if source is None else classes
        facts["fingerprint"] = digest.hexdigest()
        facts["keys_repeat"] = keys_repeat(sketches)


def _append(columns: ColumnWriter, row: np.ndarray, shard: ShardIndex, fields: int) -> None:
    """Append a shard to the columns; `row` (1,) SHARD_DTYPE is the last one's and becomes its."""
    bad = [
        json.dumps({"key": one.key, "reason": one.reason, "found": one.found}) for one in shard.bad
    ]
    remote = b""
    if shard.remote is not None:
        facts = {"size": shard.remote.size, "tag": shard.remote.tag, "digest": shard.remote.digest}
        remote = json.dumps(facts).encode()
    texts = {
        "names": shard.names.tobytes(),
        "paths": os.fsencode(shard.path),
        "remotes": remote,
        "bad": "".join(line + "\n" for line in bad).encode(),
    }
    row["end"] += len(shard.samples)
    for name, end in (
        ("names", "names_end"),
        ("paths", "path_end"),
        ("remotes", "remote_end"),
        ("bad", "bad_end"),
    ):
        row[end] += len(texts[name])
        columns.append(name, texts[name])
    row["bad_count"] += len(bad)
    row["size"] = -1 if shard.remote is None else shard.remote.size
    row["name_size"] = shard.names.dtype.itemsize
    row["folder"] = shard.remote is None and shard.is_folder
    if fields:
        lacking = np.full((len(shard.samples), fields, 2), -1, np.int64)
        columns.append("places", lacking if shard.fields is None else shard.fields.places)
    columns.append("samples", shard.samples)
    columns.append("shards", row)

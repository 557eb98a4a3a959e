"""The scan index of a dataset: finds, keeps and supplies the checkpoints of its JPEGs.

The first epoch finds them, or `scan_dataset` does it ahead; later epochs then read only the parts
of a JPEG that its crops need. `scan_file` describes the files. Ranks and jobs share them: each
appends what it has found and reads what any of them has.
"""

import functools
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...kernels import headers
from ...kernels.compiler.cache import cache_folder
from ...kernels.jpeg.checkpoints import CHECKPOINT_DTYPE, Checkpoints, checksum
from ...kernels.reading import Encoded
from ..config import LoaderConfig
from ..shards.dataset import Dataset
from ..shards.reader import ReadMemory, ShardReader
from ..system.files import bytes_text, free_bytes
from .scan_file import (
    ENTRY_DTYPE,
    MOST_CHECKPOINTS,
    SUFFIX,
    ScanFile,
    Scanned,
    State,
    entry_checksum,
    entry_offset,
)

PENDING_BYTES = 4 << 20
"""Checkpoints that wait in memory before they are written: those of 2 500 images of ImageNet. While
another thread writes, twice as many may wait; more are dropped, and found in a later epoch."""
LEAST_PIXELS = 128 * 128
"""Smaller images are read as fast from their beginning."""
RECOUNT_SECONDS = 60.0
"""Seconds after which the bytes of all scan files are counted anew: other processes write too."""
RESERVE_BYTES = 1 << 30
"""Free bytes that are left on the disk."""
KEPT_FILES = 4096
"""Shards whose file names and headers are kept, half a kilobyte each."""
_NO_ROWS = np.empty(0, CHECKPOINT_DTYPE)
_ZERO = np.zeros(1, np.int64)


class ScanIndex:
    """Checkpoints of a dataset's JPEGs, used from any thread.

    A folder that cannot be written or is full is announced once; what it holds is used all the
    same, and so are files with damaged parts.
    """

    def __init__(self, dataset: Dataset, *, limit: float) -> None:
        """`limit`: most bytes of all scan files in the folder of the indexes. Opens nothing."""
        opened = dataset.opened_with or {}
        folder = opened.get("index_folder")
        self.folder = Path(folder) if folder is not None else cache_folder("index")
        self._dataset = dataset
        self._limit = limit
        self._file = functools.lru_cache(maxsize=KEPT_FILES)(self._make_file)
        self._states = bytearray(len(dataset.shards))
        """A `State` for each shard."""
        self._reader = ShardReader()
        self._pending: dict[int, list[tuple[int, Scanned]]] = {}
        self._pending_bytes = 0
        self._warned = False
        self._lock = threading.Lock()
        """Held while `_pending`, `_pending_bytes` or `_warned` changes."""
        self._writing = threading.Lock()
        """Held while files are written, and for what follows."""
        self._writes = True
        self._used = 0
        self._counted = -RECOUNT_SECONDS
        """Bytes of all scan files in the folder, and when they were counted."""

    @classmethod
    def of(cls, dataset: Dataset, config: LoaderConfig) -> "ScanIndex | None":
        """The scan index that a loader uses; None where it is switched off, or for a stream."""
        if not config.scan_index_gb or not len(dataset.shards):
            return None
        return cls(dataset, limit=config.scan_index_gb * 1e9)

    @property
    def writes(self) -> bool:
        """Whether new checkpoints are stored; finding them is of no use otherwise."""
        return self._writes

    def covers(self, index: int) -> bool:
        """Whether checkpoints pay for sample `index`: a JPEG that is not tiny, nor stored as
        coefficients, which are read from any place."""
        if self._dataset.records is not None and self._dataset.records[index]:
            return False
        sample = self._dataset.samples[index]
        pixels = int(sample["height"]) * int(sample["width"])
        return bool(sample["format"] == headers.JPEG) and pixels >= LEAST_PIXELS

    def read(self, indices: Sequence[int]) -> Checkpoints | None:
        """The checkpoints of samples `indices` for a kernel's call; None where none has any. A
        sample that is not scanned has a length of 0, and so has one whose entry is damaged."""
        places = [self._dataset._place(index) for index in indices]
        present = [
            n
            for n, (shard, _) in enumerate(places)
            if (self._states[shard] or self._look_up(shard)) == State.PRESENT
        ]
        if not present:
            return None
        found = self._read([places[n] for n in present])
        if len(present) < len(places):
            found = _spread(found, present, len(places))
        return found if found.lengths.any() else None

    def lacks(self, indices: Sequence[int], checkpoints: Checkpoints | None) -> bool:
        """Whether checkpoints of samples `indices` are to be found and stored; `checkpoints`: what
        `read` has returned for them. A JPEG that has changed under its checkpoints keeps them: it
        is read from its beginning, and to look for such costs every call more Python."""
        if not self._writes:
            return False
        lengths = [0] * len(indices) if checkpoints is None else checkpoints.lengths.tolist()
        return any(self.covers(index) for index, length in zip(indices, lengths) if not length)

    def read_each(self, indices: Sequence[int]) -> list[Scanned | None]:
        """The checkpoints of each of samples `indices`; None where it is not scanned, or they are
        damaged."""
        found = self.read(indices)
        if found is None:
            return [None] * len(indices)
        return [
            Scanned(length, checksum, found.rows[begin:end].tobytes()) if length else None
            for length, checksum, begin, end in zip(
                found.lengths.tolist(),
                found.checksums.tolist(),
                found.begins[:-1].tolist(),
                found.begins[1:].tolist(),
            )
        ]

    def _read(self, places: Sequence[tuple[int, int]]) -> Checkpoints:
        """The checkpoints at (shard, number) in files that were present."""
        try:
            return self._read_together(places)
        except OSError as error:  # a file is gone
            if len(places) > 1:
                return _joined([self._read([place]) for place in places])
            self._warn_of_damage(places[0][0], error.strerror or str(error))
            none = np.zeros(1, np.int64)
            return Checkpoints(_NO_ROWS.copy(), np.zeros(2, np.int64), none, none.astype(np.uint32))

    def _read_together(self, places: Sequence[tuple[int, int]]) -> Checkpoints:
        """`_read` in two calls without the GIL: for the entries, and for what they point at."""
        paths = [self._file(shard).path for shard, _ in places]
        offsets = np.array([entry_offset(number) for _, number in places], np.int64)
        size = ENTRY_DTYPE.itemsize
        parts = self._reader.read_parts(
            paths, offsets, np.full(len(places), size, np.int64), ReadMemory()
        )
        cut = [len(part) < size for part in parts]
        if any(cut):
            parts = [np.zeros(size, np.uint8) if short else part for short, part in zip(cut, parts)]
            self._warn_of_damage(places[cut.index(True)][0], "it is cut short")
        entries = np.concatenate(parts).view(ENTRY_DTYPE)
        sound = (entries["checkpoints"] <= MOST_CHECKPOINTS) & (entries["begin"] < 1 << 62)
        if not sound.all():
            self._warn_of_damage(places[int(sound.argmin())][0], "an entry is out of range")
            entries[~sound] = 0
        # The entry of a sample that has not been scanned is all zeros.
        here = np.flatnonzero(entries.view(np.uint8).reshape(-1, size).any(1))
        chosen = entries[here]
        rows = self._reader.read_parts(
            [paths[n] for n in here.tolist()],
            chosen["begin"].astype(np.int64),
            chosen["checkpoints"].astype(np.int64) * CHECKPOINT_DTYPE.itemsize,
            ReadMemory(),
        )
        data = memoryview(chosen.tobytes())
        for k, (n, stored) in enumerate(zip(here.tolist(), chosen["stored"].tolist())):
            shard, number = places[n]
            # Rows that are cut short fail it too.
            if entry_checksum(number, data[size * k : size * (k + 1)], rows[k].data) != stored:
                self._warn_of_damage(shard, "a checksum differs")
                entries[n] = 0
                rows[k] = rows[k][:0]
        return Checkpoints(
            # Writable, as the kernels are compiled for.
            rows=np.concatenate(rows).view(CHECKPOINT_DTYPE) if rows else _NO_ROWS.copy(),
            begins=np.concatenate([_ZERO, entries["checkpoints"].cumsum(dtype=np.int64)]),
            lengths=entries["length"].astype(np.int64),
            checksums=entries["checksum"].astype(np.uint32),
        )

    def add(
        self,
        indices: Sequence[int],
        files: Sequence[Encoded],
        checkpoints: Sequence[np.ndarray | None],
        *,
        wait: bool = False,
    ) -> None:
        """Store the checkpoints, of CHECKPOINT_DTYPE, that were found in the samples' JPEGs: None
        for a JPEG without new ones, an empty array for one that cannot have any.

        `wait`: where another thread is writing, wait for it instead of going on, which may drop
        some.
        """
        full = False
        for index, data, rows in zip(indices, files, checkpoints):
            if rows is not None and self.covers(index):
                scanned = Scanned(len(data), checksum(data), rows.tobytes())
                full = self._add_one(index, scanned) or full
        if full and self._writing.acquire(blocking=wait):
            try:
                self._write_pending()
            finally:
                self._writing.release()

    def close(self) -> None:
        """Write what waits in memory and close the files, which the next use opens again."""
        if sys.is_finalizing():  # of a loader that was never closed; a later epoch finds it again
            return
        with self._writing:
            self._write_pending()
        self._reader.close()

    def _make_file(self, shard: int) -> ScanFile:
        return ScanFile(self._dataset.shards[shard], self.folder)

    def _look_up(self, shard: int) -> State:
        """The state of shard number `shard`, which was unknown."""
        state = self._file(shard).state()
        self._states[shard] = state
        if state == State.DAMAGED:
            self._warn_of_damage(shard, "its header differs from its checksum")
        return state

    def _add_one(self, index: int, scanned: Scanned) -> bool:
        """Let checkpoints wait to be written; whether it is time to write them."""
        shard, number = self._dataset._place(index)
        with self._lock:
            if not self._writes or self._pending_bytes > 2 * PENDING_BYTES:
                return False
            self._pending.setdefault(shard, []).append((number, scanned))
            self._pending_bytes += len(scanned.rows)
            return self._pending_bytes > PENDING_BYTES

    def _write_pending(self) -> None:
        """Append what waits to its files, with `_writing` held."""
        with self._lock:
            pending, size = self._pending, self._pending_bytes
            self._pending, self._pending_bytes = {}, 0
        if not pending or not self._writes:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)  # .beton files have no index there
            if not self._has_room(size):
                return
            for shard, found in pending.items():
                replace = (self._states[shard] or self._look_up(shard)) != State.PRESENT
                if self._file(shard).append(found, replace=replace):
                    self._states[shard] = State.PRESENT  # otherwise they are found again later
        except OSError as error:
            self._stop_writing(
                f"the scan index in {self.folder} cannot be written ({error.strerror or error}), "
                "so JPEGs that it lacks are decoded from their beginning: make the folder "
                "writable, choose another `index_folder`, or set `scan_index_gb` to 0"
            )

    def _has_room(self, size: int) -> bool:
        """Whether `size` more bytes may be written; counts them."""
        now = time.monotonic()
        if now - self._counted > RECOUNT_SECONDS:
            self._counted = now
            self._used = _bytes_of_scan_files(self.folder)
        self._used += size
        if self._used > self._limit:
            self._stop_writing(
                f"the scan index is full: {bytes_text(self._used - size)} of the "
                f"{bytes_text(int(self._limit))} of `scan_index_gb` are used in {self.folder}, so "
                "JPEGs that it lacks are decoded from their beginning: raise `scan_index_gb`, or "
                f"remove the *{SUFFIX} files there that are no longer needed"
            )
        elif free_bytes(self.folder / "any") < size + RESERVE_BYTES:
            self._stop_writing(
                f"the disk of {self.folder} has less than {bytes_text(RESERVE_BYTES)} left, so "
                "the scan index does not grow and JPEGs that it lacks are decoded from their "
                "beginning: free space there, or choose another `index_folder`"
            )
        return self._writes

    def _stop_writing(self, reason: str) -> None:
        self._writes = False
        warnings.warn(reason, stacklevel=2)

    def _warn_of_damage(self, shard: int, reason: str) -> None:
        """Warn once: one event may damage many entries."""
        with self._lock:
            if self._warned:
                return
            self._warned = True
        warnings.warn(
            f"the scan file {self._file(shard).path} is damaged ({reason}): its JPEGs are decoded "
            "from their beginning, to the same pixels, and scanned anew",
            stacklevel=2,
        )


def _bytes_of_scan_files(folder: Path) -> int:
    """Bytes of the scan files in a folder; 0 where there is none."""
    total = 0
    try:
        for file in folder.glob(f"*{SUFFIX}"):
            total += file.stat().st_size
    except OSError:  # the folder is absent, or a file has just vanished
        pass
    return total


def _spread(found: Checkpoints, numbers: Sequence[int], count: int) -> Checkpoints:
    """Checkpoints of samples `numbers` of `count`, the others without any."""
    counts = np.zeros(count, np.int64)
    lengths, checksums = np.zeros(count, np.int64), np.zeros(count, np.uint32)
    counts[numbers] = np.diff(found.begins)
    lengths[numbers], checksums[numbers] = found.lengths, found.checksums
    return Checkpoints(found.rows, np.concatenate([_ZERO, counts.cumsum()]), lengths, checksums)


def _joined(parts: Sequence[Checkpoints]) -> Checkpoints:
    """The checkpoints of several calls as those of one."""
    return Checkpoints(
        rows=np.concatenate([_NO_ROWS, *(part.rows for part in parts)]),
        begins=np.concatenate([_ZERO, *(np.diff(part.begins) for part in parts)]).cumsum(),
        lengths=np.concatenate([part.lengths for part in parts]),
        checksums=np.concatenate([part.checksums for part in parts]),
    )

"""The scan index of a dataset: finds, keeps and supplies the checkpoints of its JPEGs.

The first epoch finds them, or `scan_dataset` does it ahead; later epochs then read only the parts
of a JPEG that its crops need. `scan_file` describes the files. Ranks and jobs share them: each
appends what it has found and reads what any of them has.
"""

import functools
import itertools
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

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
    ENTRY_SIZE,
    SUFFIX,
    DamagedEntry,
    Entry,
    ScanFile,
    Scanned,
    State,
    entry_offset,
)

T = TypeVar("T")

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
        """The checkpoints of samples `indices` for a kernel's call; None where none has any."""
        found = self.read_each(indices)
        if not any(found):
            return None
        counts = [len(one.rows) // CHECKPOINT_DTYPE.itemsize if one else 0 for one in found]
        # Writable, as the kernels are compiled for.
        rows = bytearray().join(one.rows for one in found if one)
        return Checkpoints(
            rows=np.frombuffer(rows, CHECKPOINT_DTYPE),
            begins=np.array([0, *itertools.accumulate(counts)], np.int64),
            lengths=np.array([one.length if one else 0 for one in found], np.int64),
            checksums=np.array([one.checksum if one else 0 for one in found], np.uint32),
        )

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
        places = [self._dataset._place(index) for index in indices]
        found: list[Scanned | None] = [None] * len(places)
        present = [
            n
            for n, (shard, _) in enumerate(places)
            if (self._states[shard] or self._look_up(shard)) == State.PRESENT
        ]
        for n, scanned in zip(present, self._read([places[n] for n in present])):
            found[n] = scanned
        return found

    def _read(self, places: Sequence[tuple[int, int]]) -> list[Scanned | None]:
        """The checkpoints at (shard, number) in files that were present."""
        try:
            return self._read_together(places) if places else []
        except OSError as error:  # a file is gone
            if len(places) > 1:
                return [one for place in places for one in self._read([place])]
            self._warn_of_damage(places[0][0], error.strerror or str(error))
            return [None]

    def _read_together(self, places: Sequence[tuple[int, int]]) -> list[Scanned | None]:
        """`_read` in two calls without the GIL: for the entries, and for what they point at."""
        paths = [self._file(shard).path for shard, _ in places]
        offsets = [entry_offset(number) for _, number in places]
        found: list[Scanned | None] = [None] * len(places)
        entries = []
        parts = self._parts(paths, offsets, [ENTRY_SIZE] * len(places))
        for n, ((shard, number), data) in enumerate(zip(places, parts)):
            entry = self._undamaged(shard, Entry.parse, number, data)
            if entry is not None:
                entries.append((n, shard, entry))
        rows = self._parts(
            [paths[n] for n, _, _ in entries],
            [entry.begin for _, _, entry in entries],
            [entry.size for _, _, entry in entries],
        )
        for (n, shard, entry), data in zip(entries, rows):
            found[n] = self._undamaged(shard, entry.with_checkpoints, data)
        return found

    def _parts(
        self, paths: Sequence[str], offsets: Sequence[int], sizes: Sequence[int]
    ) -> list[bytes]:
        """Parts of scan files, as far as they are there."""
        parts = self._reader.read_parts(
            paths, np.array(offsets, np.int64), np.array(sizes, np.int64), ReadMemory()
        )
        return [part.tobytes() for part in parts]

    def _undamaged(self, shard: int, read: Callable[..., T], *arguments: Any) -> T | None:
        """What `read` returns; None, and a warning, where it finds damage."""
        try:
            return read(*arguments)
        except DamagedEntry as error:
            self._warn_of_damage(shard, str(error))
            return None

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

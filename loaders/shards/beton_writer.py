"""Writes tar shards or folders into one .beton: in parallel, resumable, the original JPEG bytes
kept.

Threads read and encode; the calling thread writes in the samples' order. So the file is the same
whatever the number of threads, and nothing waits for a worker that died.
"""

import collections
import itertools
import json
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import simplejpeg
from PIL import Image

from ...kernels import headers
from ...kernels.errors import InvalidInput
from ..quarantine import BadSample
from ..system.cpus import usable_cpus
from ..system.progress import Progress, no_progress
from .beton import (
    ALLOCATION_DTYPE,
    FIELDS,
    HEAD_SIZE,
    JPEG_MODE,
    MAX_SIDE,
    RAW_MODE,
    BetonDataset,
    beton_head,
    pack_block,
    row_dtype,
    without,
)
from .dataset import Dataset
from .decode import BadImage, Decoder

CHUNK = 64
"""Samples a task: about 7 MB of ImageNet."""
COMMIT_BYTES = 256 << 20
"""Bytes written between two syncs; an interrupted writer repeats at most these."""
MIN_PAGE_SIZE = 1 << 23
"""FFCV's default page: 8 MiB. Larger where one sample needs more."""
PROBES = 32
"""Samples that the estimate encodes."""


class BetonMismatch(InvalidInput):
    """The file written does not hold the shards' bytes."""


@dataclass(frozen=True, kw_only=True)
class BetonOptions:
    """How images are stored."""

    max_side: int | None = None
    """Longest side, pixels; larger images are shrunk and encoded anew. None keeps every JPEG's
    original bytes."""
    quality: int = 90
    """JPEG quality of what is encoded anew, 1..100 (FFCV's default)."""

    def __post_init__(self) -> None:
        if self.max_side is not None and not 16 <= self.max_side <= MAX_SIDE:
            raise InvalidInput(f"max_side is {self.max_side}; it wants 16..{MAX_SIDE} pixels")
        if not 1 <= self.quality <= 100:
            raise InvalidInput(f"quality is {self.quality}; it wants 1..100")


@dataclass(frozen=True)
class Estimate:
    """What writing will take."""

    samples: int
    bytes: int
    seconds: float
    """From encoding a few samples; the disk's share is not known beforehand."""


@dataclass(frozen=True)
class Stored:
    """One sample as it is stored."""

    mode: int
    height: int
    width: int
    data: bytes


def store(dataset: Dataset, index: int, options: BetonOptions, decoder: Decoder) -> Stored:
    """Sample `index` as the options want it. BadImage where it cannot be stored.

    JPEGs of one or three components keep their bytes; what FFCV's decoder does not take (PNG, CMYK,
    …) becomes pixels.
    """
    sample = dataset.samples[index]
    height, width = int(sample["height"]), int(sample["width"])
    data = dataset.read(index)
    shrunk = options.max_side is not None and max(height, width) > options.max_side
    if not shrunk and max(height, width) > MAX_SIDE:
        raise BadImage("side above 65535 pixels")
    if not shrunk and sample["format"] == headers.JPEG:
        return Stored(JPEG_MODE, height, width, data)
    image = decoder.decode(data, sample)
    if image.shape[:2] != (height, width):
        raise BadImage("size differs from the header")
    if not shrunk:
        return Stored(RAW_MODE, height, width, image.tobytes())
    scale = (options.max_side or 1) / max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    encoded = simplejpeg.encode_jpeg(np.ascontiguousarray(resized), options.quality, "RGB", "420")
    return Stored(JPEG_MODE, size[1], size[0], encoded)


def estimate(dataset: Dataset, options: BetonOptions, threads: int) -> Estimate:
    """Size and time, from samples spread evenly over the shards, of which a few that do not decode
    are left out."""
    decoder = Decoder()
    began, measured, size = time.perf_counter(), 0, 0
    for index in np.linspace(0, len(dataset) - 1, min(PROBES, len(dataset))).astype(int).tolist():
        try:
            size += len(store(dataset, index, options, decoder).data)
            measured += 1
        except BadImage:  # the writer itself quarantines it
            continue
    seconds = (time.perf_counter() - began) / max(measured, 1)
    if options.max_side is None and bool((dataset.samples["format"] == headers.JPEG).all()):
        total = int(dataset.samples["size"].sum())
    else:
        total = size * len(dataset) // max(measured, 1)
    return Estimate(len(dataset), total, seconds * len(dataset) / threads)


def write_beton(
    dataset: Dataset,
    path: str | os.PathLike[str],
    options: BetonOptions | None = None,
    *,
    threads: int | None = None,
    check: bool = True,
    progress: Progress = no_progress,
) -> list[BadSample]:
    """Write the dataset to `path` and return the samples left out. An interrupted call is taken up
    by the next.

    `check`: read the file again and compare what kept its bytes with the shards; BetonMismatch
    where it differs. `progress("written" or "checked", samples done, samples)` after every chunk.
    OSError where the disk is too small, TooManyBadSamples never: what is left out is returned, and
    stands in the file's quarantine.
    """
    writer = _Writer(dataset, Path(path), options or BetonOptions())
    threads = threads or usable_cpus()
    with ThreadPoolExecutor(threads, thread_name_prefix="beton") as pool:
        bad = writer.write(pool, 2 * threads, progress)
    if check:
        check_beton(dataset, path, progress)
    return bad


def check_beton(
    dataset: Dataset, path: str | os.PathLike[str], progress: Progress = no_progress
) -> int:
    """Compare every original JPEG in the file with the shards, and return how many; BetonMismatch
    where one differs.

    A sample that was encoded anew is told by its size in pixels or its format.
    """
    beton = BetonDataset([os.fspath(path)])
    same, source = 0, -1
    for index, mine in enumerate(beton.samples):
        source += 1
        while source < len(dataset) and dataset.samples["sample_id"][source] != mine["sample_id"]:
            source += 1  # left out
        if source == len(dataset):
            raise BetonMismatch(
                f"{path}: row {index} is not in its place among the shards' samples"
            )
        theirs = dataset.samples[source]
        original = (
            theirs["format"] == headers.JPEG == mine["format"]
            and mine["height"] == theirs["height"]
        )
        if original and mine["width"] == theirs["width"]:
            if beton.read(index) != dataset.read(source):
                shard, number = dataset.locate(source)
                raise BetonMismatch(
                    f"{path}: row {index} differs from {shard.key(number)} in {shard.path}"
                )
            same += 1
        if index % CHUNK == CHUNK - 1 or index == len(beton) - 1:
            progress("checked", index + 1, len(beton))
    beton.reader.close()
    return same


class _Writer:
    """One file in the making: `NAME.partial` holds rows and data, `NAME.journal` what of it is
    complete."""

    def __init__(self, dataset: Dataset, path: Path, options: BetonOptions) -> None:
        self._dataset = dataset
        self._path = path
        self._options = options
        self._partial = path.with_name(path.name + ".partial")
        self._journal = path.with_name(path.name + ".journal")
        samples = dataset.samples
        pixels = 3 * int((samples["height"].astype(np.int64) * samples["width"]).max())
        largest = max(
            int(samples["size"].max()), pixels if (samples["format"] != headers.JPEG).any() else 0
        )
        if options.max_side is not None:
            largest = max(largest, 2 * 3 * options.max_side**2)
        self._page = MIN_PAGE_SIZE
        while self._page < largest:
            self._page *= 2
        self._row_dtype = row_dtype(list(FIELDS.values()))
        data_begin = HEAD_SIZE + len(dataset) * self._row_dtype.itemsize
        self._cursor = -(-data_begin // self._page) * self._page
        self._sizes: list[int] = []
        self._pointers: list[int] = []
        self._kept: list[int] = []
        self._bad: list[tuple[int, str]] = []

    @property
    def _settings(self) -> dict[str, Any]:
        """What must agree for a partial file to be taken up."""
        options = self._options
        return {
            "dataset": self._dataset.fingerprint,
            "bytes": int(self._dataset.samples["size"].sum()),
            "page": self._page,
            "max_side": options.max_side,
            "quality": options.quality,
        }

    def write(self, pool: ThreadPoolExecutor, ahead: int, progress: Progress) -> list[BadSample]:
        """Encode in `pool`, `ahead` chunks at a time, and write; the finished file takes the
        partial one's place."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        begin = self._take_up()
        self._check_space(begin)
        with (
            self._partial.open("r+b" if begin else "w+b") as file,
            self._journal.open("a") as journal,
        ):
            if not begin:
                journal.write(json.dumps(self._settings) + "\n")
            lines: list[str] = []
            written = 0
            try:
                for first, chunk in self._encoded(pool, ahead, begin):
                    before = self._cursor
                    lines.append(self._write_chunk(file.fileno(), first, chunk))
                    written += self._cursor - before
                    if written >= COMMIT_BYTES:
                        self._commit(file.fileno(), journal, lines)
                        written = 0
                    progress("written", first + len(chunk), len(self._dataset))
            finally:
                self._commit(file.fileno(), journal, lines)
            bad = self._finish(file.fileno())
        os.replace(self._partial, self._path)
        self._journal.unlink()
        return bad

    def _check_space(self, begin: int) -> None:
        """OSError before anything is written, where the images' own bytes would not fit."""
        if self._options.max_side is None:
            needed = int(self._dataset.samples["size"][begin:].sum())
            free = shutil.disk_usage(self._path.parent).free
            if needed > free:
                raise OSError(
                    f"{self._path} needs {needed / 1e9:.1f} GB and {self._path.parent} has {free / 1e9:.1f}"
                )

    def _take_up(self) -> int:
        """The first sample that is still to be written: 0 where there is nothing to go on with."""
        try:
            lines = self._journal.read_text().splitlines()
            written = self._partial.stat().st_size
            whole = [json.loads(line) for line in lines[1:-1]]
            if (
                not lines
                or json.loads(lines[0]) != self._settings
                or (whole and whole[-1]["cursor"] > written)
            ):
                raise InvalidInput("made of other shards, with other options, or cut short")
        except (FileNotFoundError, ValueError):  # begin anew
            self._journal.unlink(missing_ok=True)
            return 0
        done = 0
        for line in lines[1:]:
            try:
                entry = json.loads(line)
            except ValueError:  # the line at which the writer was killed
                break
            done = entry["done"]
            self._cursor = entry["cursor"]
            self._kept += entry["kept"]
            self._pointers += entry["pointers"]
            self._sizes += entry["sizes"]
            self._bad += [(index, reason) for index, reason in entry["bad"]]
        self._journal.write_text("\n".join([lines[0], *lines[1 : 1 + -(-done // CHUNK)]]) + "\n")
        return done

    def _encoded(
        self, pool: ThreadPoolExecutor, ahead: int, begin: int
    ) -> Iterator[tuple[int, list[Stored | BadImage]]]:
        """(first sample, its chunk as stored), in order; what a thread raises is raised here."""
        pending: collections.deque[tuple[int, Future[list[Stored | BadImage]]]] = (
            collections.deque()
        )
        firsts = iter(range(begin, len(self._dataset), CHUNK))
        try:
            for first in firsts:
                pending.append((first, pool.submit(self._encode, first)))
                if len(pending) >= ahead:
                    done, future = pending.popleft()
                    yield done, future.result()
            while pending:
                done, future = pending.popleft()
                yield done, future.result()
        finally:
            for _, future in pending:
                future.cancel()

    def _encode(self, first: int) -> list[Stored | BadImage]:
        decoder = Decoder()
        chunk: list[Stored | BadImage] = []
        for index in range(first, min(first + CHUNK, len(self._dataset))):
            try:
                chunk.append(store(self._dataset, index, self._options, decoder))
            except BadImage as reason:
                chunk.append(reason)
        return chunk

    def _write_chunk(self, file: int, first: int, chunk: list[Stored | BadImage]) -> str:
        """Write a chunk's data and rows; its line for the journal."""
        row, bad = len(self._kept), len(self._bad)
        rows = np.zeros(len(chunk), self._row_dtype)
        count = 0
        for index, stored in zip(itertools.count(first), chunk):
            if isinstance(stored, BadImage):
                self._bad.append((index, str(stored)))
                continue
            size = len(stored.data)
            if self._cursor % self._page + size > self._page:  # FFCV reads page by page
                self._cursor += self._page - self._cursor % self._page
            _write_all(file, stored.data, self._cursor)
            sample = self._dataset.samples[index]
            image = (stored.mode, stored.width, stored.height, self._cursor)
            rows[count] = (image, sample["target"], sample["sample_id"])
            self._kept.append(index)
            self._pointers.append(self._cursor)
            self._sizes.append(size)
            self._cursor += size
            count += 1
        _write_all(file, rows[:count].tobytes(), HEAD_SIZE + row * self._row_dtype.itemsize)
        return json.dumps(
            {
                "done": first + len(chunk),
                "cursor": self._cursor,
                "kept": self._kept[row:],
                "pointers": self._pointers[row:],
                "sizes": self._sizes[row:],
                "bad": self._bad[bad:],
            }
        )

    @staticmethod
    def _commit(file: int, journal: TextIO, lines: list[str]) -> None:
        """Data first, then the journal that vouches for it."""
        os.fdatasync(file)
        journal.write("".join(line + "\n" for line in lines))
        journal.flush()
        lines.clear()

    def _finish(self, file: int) -> list[BadSample]:
        """Our block, the allocation table, and at last the header."""
        shards, bad, at = [], [], 0
        kept = np.array(self._kept, np.int64)
        for shard in self._dataset.shards:
            end = at + len(shard.samples)
            mine = kept[(kept >= at) & (kept < end)] - at
            reasons = [(index - at, reason) for index, reason in self._bad if at <= index < end]
            left_out = [
                BadSample(shard=shard.path, key=shard.key(number), reason=reason, found="decode")
                for number, reason in reasons
            ]
            shards.append(without(shard, mine, left_out))
            bad += left_out
            at = end
        if not len(kept):
            raise InvalidInput(
                f"not one of {len(self._dataset)} samples can be stored; the first: {self._bad[0][1]}"
            )
        block = pack_block(shards)
        _write_all(file, block, self._cursor)
        table = np.zeros(len(kept), ALLOCATION_DTYPE)
        table["sample_id"], table["ptr"], table["size"] = (
            np.arange(len(kept)),
            self._pointers,
            self._sizes,
        )
        table_at = self._cursor + len(block)
        _write_all(file, table.tobytes(), table_at)
        os.ftruncate(file, table_at + table.nbytes)
        _write_all(file, beton_head(len(kept), self._page, table_at, (self._cursor, len(block))), 0)
        os.fsync(file)
        return bad


def _write_all(file: int, data: bytes, offset: int) -> None:
    """`os.pwrite`, which may write less than it is given, until all is written."""
    view = memoryview(data)
    while len(view):
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written

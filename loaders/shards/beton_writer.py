"""Write a dataset into one .beton file: in parallel, resumable, keeping the original JPEG bytes.
And back: give the images of .beton files as tar shards, JPEGs byte for byte, pixels as PNG files.

Threads read and encode; the calling thread writes in the samples' order. The file is therefore the
same for any number of threads.
"""

import collections
import functools
import hashlib
import io
import itertools
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from PIL import Image

from ...kernels import headers
from ...kernels.coefficients.record import VERSION as RECORD_VERSION
from ...kernels.coefficients.record import BadRecord, read_header
from ...kernels.errors import InvalidInput
from ..quarantine import BadSample
from ..system.cpus import usable_cpus
from ..system.files import publish, staged, write_atomically
from ..system.portable import sync_data, write_at_offset
from ..system.progress import Progress, no_progress
from .beton import (
    ALLOCATION_DTYPE,
    FIELDS,
    HEAD_SIZE,
    RECORD_MODES,
    RECORDS_VERSION,
    VERSION,
    BetonDataset,
    BetonShard,
    beton_head,
    pack_block,
    row_dtype,
    without,
)
from .beton_encode import RECORD_GROWTH, BetonOptions, Encoder, Stored, store
from .dataset import Dataset
from .decode import BadImage, decode_pillow
from .index import ShardIndex
from .names import redact_url

CHUNK = 64
"""Samples per task; about 7 MB of ImageNet."""
COMMIT_BYTES = 256 << 20
"""Bytes written between two syncs: the most that an interrupted writer repeats."""
MIN_PAGE_SIZE = 1 << 23
"""FFCV's default page, 8 MiB; pages are larger where one sample needs more."""


class BetonMismatch(InvalidInput):
    """The written file does not hold the shards' bytes."""


def write_beton(
    dataset: Dataset,
    path: str | os.PathLike[str],
    options: BetonOptions | None = None,
    *,
    threads: int | None = None,
    check: bool = True,
    progress: Progress = no_progress,
) -> list[BadSample]:
    """Write the dataset to `path`; return the samples left out, which the file's quarantine lists.

    The next call with the same arguments continues an interrupted one. `threads` defaults to the
    CPUs that this process may use. `check`: run `check_beton` on the file. `progress` is called
    with "written" or "checked" after each chunk. Raises OSError where the disk is too small,
    InvalidInput where no sample can be stored.
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
    """Compare every original JPEG in the file with the shards; return the number compared.

    Re-encoded samples, recognised by their size in pixels or their format, are skipped. Raises
    BetonMismatch where a byte differs.
    """
    beton = BetonDataset([os.fspath(path)])
    same = 0
    source = -1  # sample of `dataset`; the file may have left some out
    for index, mine in enumerate(beton.samples):
        source += 1
        while source < len(dataset) and dataset.samples["sample_id"][source] != mine["sample_id"]:
            source += 1  # left out
        if source == len(dataset):
            raise BetonMismatch(
                f"{path}: row {index} has no counterpart in the shards: write the file again"
            )
        theirs = dataset.samples[source]
        original = (
            theirs["format"] == mine["format"] in (headers.JPEG, headers.JPEG_CMYK)
            and mine["height"] == theirs["height"]
        )
        if original and mine["width"] == theirs["width"]:
            if not _is_same(beton, index, dataset, source):
                shard, number = dataset.locate(source)
                raise BetonMismatch(
                    f"{path}: row {index} differs from {shard.key(number)} in "
                    f"{redact_url(shard.path)}: write the file again"
                )
            same += 1
        if index % CHUNK == CHUNK - 1 or index == len(beton) - 1:
            progress("checked", index + 1, len(beton))
    beton.reader.close()
    return same


def _is_same(beton: BetonDataset, index: int, dataset: Dataset, source: int) -> bool:
    """Whether a row of a file has the bytes of a sample. A record was held to them when it was
    written; here its checksum and the length of its JPEG are."""
    if beton.records is None or not beton.records[index]:
        return beton.read(index) == dataset.read(source)
    try:
        header = read_header(beton.read_record(index))
    except BadRecord:
        return False
    return int(header["jpeg_size"]) == int(dataset.samples["size"][source])


class _Writer:
    """Writes `NAME.partial`, with the complete chunks listed in `NAME.journal`, then renames it."""

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
        if options.form == "coefficients":
            largest *= RECORD_GROWTH
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
        self._records = 0

    @property
    def _settings(self) -> dict[str, Any]:
        """Settings and labels that must agree for a partial file to be continued."""
        options = self._options
        settings: dict[str, Any] = {
            "dataset": self._dataset.fingerprint,
            "bytes": int(self._dataset.samples["size"].sum()),
            "page": self._page,
            "max_side": options.max_side,
            "quality": options.quality,
        }
        if options.form != "jpeg":
            settings["form"] = options.form
            settings["record"] = RECORD_VERSION
        if self._dataset.classes is not None:
            settings["labels"] = self._dataset.labels
            targets = hashlib.blake2b(self._dataset.samples["target"].tobytes(), digest_size=8)
            targets.update(json.dumps(self._dataset.classes).encode())
            settings["targets"] = targets.hexdigest()
        return settings

    def write(self, pool: ThreadPoolExecutor, ahead: int, progress: Progress) -> list[BadSample]:
        """Encode in `pool`, `ahead` chunks at once, write, and rename the finished file."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        begin = self._resume()
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
        publish(self._partial, self._path)
        self._journal.unlink()
        return bad

    def _check_space(self, begin: int) -> None:
        """Raise OSError before anything is written if the original bytes do not fit on the disk."""
        if self._options.max_side is None:
            needed = int(self._dataset.samples["size"][begin:].sum())
            free = shutil.disk_usage(self._path.parent).free
            if needed > free:
                raise OSError(
                    f"{self._path} needs {needed / 1e9:.1f} GB, but {self._path.parent} has only "
                    f"{free / 1e9:.1f} GB free: free some space, or set max_side to shrink images"
                )

    def _resume(self) -> int:
        """Read the journal; return the first sample to write, 0 where nothing can be continued."""
        try:
            lines = self._journal.read_text().splitlines()
            written = self._partial.stat().st_size
            whole = [json.loads(line) for line in lines[1:-1]]
            if (
                not lines
                or json.loads(lines[0]) != self._settings
                or (whole and whole[-1]["cursor"] > written)
            ):
                raise InvalidInput("other shards or options, or cut short")
        except (FileNotFoundError, ValueError, KeyError, TypeError):  # start over
            self._journal.unlink(missing_ok=True)
            return 0
        done = 0
        for line in lines[1:]:
            try:
                entry = json.loads(line)
            except ValueError:  # the writer was killed within this line
                break
            done = entry["done"]
            self._cursor = entry["cursor"]
            self._kept += entry["kept"]
            self._pointers += entry["pointers"]
            self._sizes += entry["sizes"]
            self._bad += [(index, reason) for index, reason in entry["bad"]]
            self._records = entry.get("records", 0)
        with write_atomically(self._journal, "w") as journal:
            journal.write("\n".join(lines[: 1 + -(-done // CHUNK)]) + "\n")
        return done

    def _encoded(
        self, pool: ThreadPoolExecutor, ahead: int, begin: int
    ) -> Iterator[tuple[int, list[Stored | BadImage]]]:
        """Yield (first sample, encoded chunk) in order; raises what a thread raised."""
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
        encoder = Encoder()
        chunk: list[Stored | BadImage] = []
        for index in range(first, min(first + CHUNK, len(self._dataset))):
            try:
                chunk.append(store(self._dataset, index, self._options, encoder))
            except BadImage as reason:
                chunk.append(reason)
        return chunk

    def _write_chunk(self, file: int, first: int, chunk: list[Stored | BadImage]) -> str:
        """Write a chunk's data and rows; return its line for the journal."""
        row, bad = len(self._kept), len(self._bad)
        rows = np.zeros(len(chunk), self._row_dtype)
        count = 0
        for index, stored in zip(itertools.count(first), chunk):
            if isinstance(stored, BadImage):
                self._bad.append((index, str(stored)))
                continue
            size = len(stored.data)
            if self._cursor % self._page + size > self._page:  # no sample may span two pages
                self._cursor += self._page - self._cursor % self._page
            _write_all(file, stored.data, self._cursor)
            sample = self._dataset.samples[index]
            image = (stored.mode, stored.width, stored.height, self._cursor)
            rows[count] = (image, sample["target"], sample["sample_id"])
            self._kept.append(index)
            self._pointers.append(self._cursor)
            self._sizes.append(size)
            self._records += stored.mode in RECORD_MODES
            self._cursor += size
            count += 1
        _write_all(file, rows[:count].tobytes(), HEAD_SIZE + row * self._row_dtype.itemsize)
        entry = {
            "done": first + len(chunk),
            "cursor": self._cursor,
            "kept": self._kept[row:],
            "pointers": self._pointers[row:],
            "sizes": self._sizes[row:],
            "bad": self._bad[bad:],
        }
        if self._records:
            entry["records"] = self._records  # so far
        return json.dumps(entry)

    @staticmethod
    def _commit(file: int, journal: TextIO, lines: list[str]) -> None:
        """Sync the data, then append the journal lines that declare it complete."""
        sync_data(file)
        journal.write("".join(line + "\n" for line in lines))
        journal.flush()
        lines.clear()

    def _finish(self, file: int) -> list[BadSample]:
        """Write the block, the allocation table and the header; return the samples left out."""
        shards: list[ShardIndex] = []
        bad: list[BadSample] = []
        at = 0
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
                f"none of the {len(self._dataset)} samples can be stored; the first: "
                f"{self._bad[0][1]}. Check the shards with `maskco-fast index`"
            )
        dataset = self._dataset
        block = pack_block(shards, dataset.labels, dataset.classes, dataset.keys_repeat)
        _write_all(file, block, self._cursor)
        table = np.zeros(len(kept), ALLOCATION_DTYPE)
        table["sample_id"] = np.arange(len(kept))
        table["ptr"] = self._pointers
        table["size"] = self._sizes
        table_at = self._cursor + len(block)
        _write_all(file, table.tobytes(), table_at)
        os.ftruncate(file, table_at + table.nbytes)
        # The header comes last: without it the file is not a .beton.
        version = RECORDS_VERSION if self._records else VERSION
        places = table_at, (self._cursor, len(block))
        _write_all(file, beton_head(len(kept), self._page, *places, version), 0)
        return bad


def _write_all(file: int, data: bytes, offset: int) -> None:
    """Repeat `write_at_offset`, which may write less than it is given, until all is written."""
    view = memoryview(data)
    while len(view):
        written = write_at_offset(file, view, offset)
        view, offset = view[written:], offset + written


def write_jpegs(
    paths: list[str],
    folder: str | os.PathLike[str],
    *,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> tuple[int, list[BadSample]]:
    """Write a tar of each shard that the files were made from into `folder`: (images, those left
    out).

    Members have their original names, PNG images in place of pixels the suffix .png. A sample's
    label is a .cls member: its text, or the number where the file has no class list. Damaged
    records are left out. Raises InvalidInput where a tar is there already, OSError where one cannot
    be written.
    """
    dataset = BetonDataset(paths)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = _tar_names([str(shard.path) for shard in dataset.shards])
    existing = [name for name in names if (folder / name).exists()]
    if existing:
        raise InvalidInput(
            f"{folder / existing[0]} is there already: choose another folder, or remove it"
        )
    bad: list[BadSample] = []
    written = begin = 0
    threads = threads or usable_cpus()
    read = functools.partial(_read, dataset)
    with ThreadPoolExecutor(threads, thread_name_prefix="jpegs") as pool:
        for shard, name in zip(dataset.shards, names):
            assert isinstance(shard, BetonShard)
            end = begin + len(shard.samples)
            with staged(folder / name) as partial, tarfile.open(partial, "w") as archive:
                for first in range(begin, end, CHUNK):
                    numbers = range(first, min(first + CHUNK, end))
                    for index, image in zip(numbers, pool.map(read, numbers)):
                        if isinstance(image, BadImage):
                            key = shard.key(index - begin)
                            bad.append(
                                BadSample(
                                    shard=shard.path, key=key, reason=str(image), found="decode"
                                )
                            )
                            continue
                        _add(archive, dataset, shard, index, index - begin, image)
                        written += 1
                    progress("given back", numbers[-1] + 1, len(dataset))
            begin = end
    dataset.close()
    return written, bad


def _read(dataset: BetonDataset, index: int) -> bytes | BadImage:
    """The file of a sample, or why there is none."""
    try:
        data = dataset.read(index)
        if dataset.samples["format"][index] == headers.OTHER:
            buffer = io.BytesIO()
            Image.fromarray(decode_pillow(data)).save(buffer, "PNG")
            return buffer.getvalue()
    except BadImage as reason:
        return reason
    return data


def _tar_names(paths: list[str]) -> list[str]:
    """A file name for each shard, its own where that is unique."""
    stems = [Path(path).name.removesuffix(".tar") or "shard" for path in paths]
    seen: collections.Counter[str] = collections.Counter()
    names = []
    for stem in stems:
        number = seen[stem]
        seen[stem] += 1
        names.append(f"{stem}.{number}.tar" if number else f"{stem}.tar")
    return names


def _add(
    archive: tarfile.TarFile,
    dataset: BetonDataset,
    shard: BetonShard,
    index: int,
    number: int,
    image: bytes,
) -> None:
    """Add a sample's members to the tar."""
    name = os.fsdecode(shard.names[number])
    if dataset.samples["format"][index] == headers.OTHER:
        name = f"{shard.exact_key(number)}.png"
    members = {name: image}
    target = int(dataset.samples["target"][index])
    if target >= 0:
        label = dataset.classes[target] if dataset.classes is not None else str(target)
        members[f"{shard.exact_key(number)}.cls"] = label.encode()
    for member, data in members.items():
        info = tarfile.TarInfo(member)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))

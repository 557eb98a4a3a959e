"""Columns: a folder of arrays in files that grow while they are written and are mapped to be read.

All processes of a host that map a column share its pages, which the system drops and reads again as
it needs memory. A folder `NAME.HASH/` holds a file for each column; the file `NAME.json`, written
last, names the folder, the length of each column and what else there is to know. So readers see the
old columns or the new ones, never a part.
"""

import contextlib
import json
import mmap
import os
import secrets
import shutil
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..system.files import name_full_disk, write_atomically

RANDOM_FROM = 1 << 30
"""Bytes from which on a column is read a page at a time: with each page the system reads 31 of its
neighbours, which is of use only where memory may hold the whole column."""
VERSION = 1
"""Bump when the layout of the files changes; older columns are written anew."""


class DamagedColumns(ValueError):
    """The files are not what was written."""


class ColumnWriter:
    """Appends to the columns of a folder that nobody reads yet; see `write_columns`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, IO[bytes]] = {}
        self._checksums: dict[str, int] = {}

    def append(self, name: str, values: np.ndarray | bytes) -> None:
        """Append the bytes of `values` to a column."""
        data = values if isinstance(values, bytes) else np.ascontiguousarray(values).tobytes()
        if name not in self._files:
            self._files[name] = (self.folder / name).open("wb", buffering=1 << 20)
        self._files[name].write(data)
        self._checksums[name] = zlib.crc32(data, self._checksums.get(name, 0))

    def close(self) -> dict[str, dict[str, int]]:
        """Sync and close the files; returns size and checksum of each."""
        facts = {}
        for name, file in self._files.items():
            with file:
                file.flush()
                os.fsync(file.fileno())
                facts[name] = {"size": file.tell(), "crc32": self._checksums[name]}
        self._files.clear()
        return facts


@contextlib.contextmanager
def write_columns(path: Path, facts: dict[str, Any]) -> Iterator[ColumnWriter]:
    """Context of writing the columns called `path`, whose facts may change until it ends.

    On exit they replace the former ones, whose folder is removed; so are those of writers that were
    killed. The caller sees to it that one process writes at a time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = ColumnWriter(path.with_name(f"{path.name}.{secrets.token_hex(8)}"))
    writer.folder.mkdir()
    try:
        with name_full_disk(path):
            yield writer
            columns = writer.close()
    except BaseException:
        writer.close()
        shutil.rmtree(writer.folder, ignore_errors=True)
        raise
    content = {"version": VERSION, "folder": writer.folder.name, "columns": columns, **facts}
    text = json.dumps(content)
    with write_atomically(header_path(path), "w") as file:
        file.write(f"{zlib.crc32(text.encode()):08x}\n{text}")
    for other in path.parent.glob(f"{path.name}.*"):
        if other.is_dir() and other != writer.folder:
            shutil.rmtree(other, ignore_errors=True)


def header_path(path: Path) -> Path:
    """The file that names the present folder of the columns `path`."""
    return path.with_name(f"{path.name}.json")


def read_header(path: Path) -> dict[str, Any]:
    """The facts of the columns `path`. FileNotFoundError without any, DamagedColumns if damaged."""
    checksum, _, text = header_path(path).read_text("utf-8").partition("\n")
    if checksum != f"{zlib.crc32(text.encode()):08x}":
        raise DamagedColumns("its checksum differs")
    return json.loads(text)


class MappedColumns(Mapping[str, np.ndarray]):
    """The columns of a header, each (size,) uint8, mapped read-only.

    A process that reads at random keeps in its page table whatever it has touched, which counts as
    its memory although it is the system's: `release` empties the table.
    """

    def __init__(self, path: Path, header: dict[str, Any], checked: frozenset[str]) -> None:
        """`checked`: the columns whose checksums are compared, which reads them.

        Raises DamagedColumns where a column lacks or differs, FileNotFoundError where the folder
        was replaced meanwhile.
        """
        folder = path.with_name(header["folder"])
        self._maps: dict[str, mmap.mmap] = {}
        self._arrays: dict[str, np.ndarray] = {}
        for name, facts in header["columns"].items():
            with (folder / name).open("rb") as file:
                if os.fstat(file.fileno()).st_size != facts["size"]:
                    raise DamagedColumns(f"{name} must have {facts['size']} bytes")
                if facts["size"]:  # nothing cannot be mapped
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                    self._maps[name] = mapped
                    if facts["size"] > RANDOM_FROM and hasattr(mmap, "MADV_RANDOM"):
                        mapped.madvise(mmap.MADV_RANDOM)
            array = np.frombuffer(self._maps.get(name, b""), np.uint8)
            if name in checked and zlib.crc32(array.data) != facts["crc32"]:
                raise DamagedColumns(f"the checksum of {name} differs")
            self._arrays[name] = array

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def release(self) -> None:
        """Empty this process's page table of the columns; their pages are found again at once."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for one in self._maps.values():
                one.madvise(mmap.MADV_DONTNEED)

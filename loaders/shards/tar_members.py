"""The members of a tar shard: names, what links lead to, and why a member cannot be read.

`kernels.tar` finds where members lie. Names are read here, by the rules of GNU tar and POSIX: PAX
records, GNU long names, then the header's own fields. Damaged records are passed over.
"""

import posixpath
from dataclasses import dataclass

import numpy as np

from ...kernels import tar
from .names import MAX_NAME

MAX_DESCRIPTION = 1 << 20
"""Bytes of an extended header that are read."""
MAX_IMAGE_BYTES = 1 << 30
"""Largest image file that is used, four times the pixels of the largest image."""
_MAX_LINKS = 8
"""Links that may follow each other."""
_BATCH = 1 << 16
"""Headers gathered at once."""


@dataclass(frozen=True)
class Members:
    """The members of a shard except its folders, one list entry each, in the shard's order."""

    names: list[str]
    """Bytes that are not UTF-8 are surrogates."""
    offsets: list[int]
    sizes: list[int]
    problems: dict[int, str]
    """Why the members of these numbers cannot be read."""


def list_members(data: np.ndarray, table: np.ndarray) -> Members:
    """Name the members of `table` (members, 5), made by `walk_tar` of `data` (bytes,) uint8."""
    names = _header_names(data, table)
    links: dict[int, str] = {}
    problems: dict[int, str] = {}
    special = (
        (table[:, tar.EXTENDED] >= 0)
        | ~np.isin(table[:, tar.KIND], _REGULAR)
        | (table[:, tar.SIZE] < 0)
    )
    special |= table[:, tar.SIZE] > MAX_IMAGE_BYTES
    for number in np.flatnonzero(special).tolist():
        described = _describe(data, table[number])
        names[number] = described.name or names[number]
        size, kind = int(table[number, tar.SIZE]), int(table[number, tar.KIND])
        problem = member_problem(kind, size, described.sparse) or name_problem(names[number])
        names[number] = shortened(names[number])
        if problem is not None:
            problems[number] = problem
        elif table[number, tar.KIND] in (tar.HARD_LINK, tar.SYMBOLIC_LINK):
            links[number] = described.link
    offsets, sizes = table[:, tar.DATA].tolist(), table[:, tar.SIZE].tolist()
    if links:
        _follow_links(names, links, table, offsets, sizes, problems)
    folders = (table[:, tar.KIND] == tar.DIRECTORY).tolist()
    kept = [n for n, name in enumerate(names) if not (folders[n] or name.endswith("/"))]
    if len(kept) == len(names):
        return Members(names, offsets, sizes, problems)
    return Members(
        names=[names[n] for n in kept],
        offsets=[offsets[n] for n in kept],
        sizes=[sizes[n] for n in kept],
        problems={now: problems[n] for now, n in enumerate(kept) if n in problems},
    )


@dataclass
class Description:
    """What a member's extended headers say."""

    name: str = ""
    link: str = ""
    sparse: bool = False

    def read(self, records: dict[bytes, bytes]) -> None:
        """Take over the records of a PAX header."""
        self.name = decoded(records.get(b"path", b"")) or self.name
        self.link = decoded(records.get(b"linkpath", b"")) or self.link
        if any(name.startswith(b"GNU.sparse.") for name in records):
            self.sparse = True
            self.name = decoded(records.get(b"GNU.sparse.name", b"")) or self.name


def name_problem(name: str) -> str | None:
    """Why a member of this name cannot be used; None where it can."""
    if len(name) <= MAX_NAME and len(_encoded(name)) <= MAX_NAME:
        return None
    return f"its name has more than {MAX_NAME} bytes"


def shortened(name: str) -> str:
    """The name, if it is not too long to be used; else its begin and end, for reports."""
    return name if name_problem(name) is None else f"{name[:200]}…{name[-50:]}"


def kind_of_file(start: bytes) -> str:
    """Why a file that is no tar archive cannot be read, by its first bytes."""
    for magic, kind, command in _COMPRESSED:
        if start.startswith(magic):
            return f"compressed by {kind}: unpack it, or read 'pipe:{command} FILE'"
    return "not a tar archive"


_COMPRESSED = (
    (b"\x1f\x8b", "gzip", "gzip -dc"),
    (b"BZh", "bzip2", "bzip2 -dc"),
    (b"\xfd7zXZ", "xz", "xz -dc"),
    (b"\x28\xb5\x2f\xfd", "zstd", "zstd -dc"),
    (b"\x04\x22\x4d\x18", "lz4", "lz4 -dc"),
)
"""First bytes of compressed files, the format, and the command that unpacks one."""


_REGULAR = (tar.REGULAR, tar.OLD_REGULAR, tar.CONTIGUOUS)


def member_problem(kind: int, size: int, sparse: bool) -> str | None:
    """Why a member cannot be read; None where it can, or is a link or a folder.

    `size`: bytes, negative where the header states none that is possible. `sparse`: whether an
    extended header says that it is a sparse file.
    """
    if size < 0:
        return "damaged tar header"
    if kind == tar.GNU_SPARSE or sparse:
        return "stored as a sparse file"
    if size > MAX_IMAGE_BYTES:
        return "more than 1 GiB"
    if kind in (tar.HARD_LINK, tar.SYMBOLIC_LINK, tar.DIRECTORY, *_REGULAR):
        return None
    return "not a regular file"


def _header_names(data: np.ndarray, table: np.ndarray) -> list[str]:
    """The names in the members' own headers: 100 bytes at 0, in ustar's with a prefix at 345."""
    names: list[str] = []
    for begin in range(0, len(table), _BATCH):
        headers = table[begin : begin + _BATCH, tar.HEADER]
        fields = _field(data, headers, 0, 100)
        prefixed = np.flatnonzero(
            (_field(data, headers, 257, 6) == b"ustar") & (data[headers + 345] != 0)
        )
        found = [field.partition(b"\0")[0] for field in fields.tolist()]
        prefixes = _field(data, headers[prefixed], 345, 155).tolist()
        for number, prefix in zip(prefixed.tolist(), prefixes):
            found[number] = prefix.partition(b"\0")[0] + b"/" + found[number]
        names += [decoded(name) for name in found]
    return names


def _field(data: np.ndarray, headers: np.ndarray, at: int, size: int) -> np.ndarray:
    """(members,) bytes: the `size` bytes at `at` of each header, without zeros at their end."""
    places = headers[:, None] + np.arange(at, at + size)
    return np.ascontiguousarray(data[places]).view(f"S{size}")[:, 0]


def _describe(data: np.ndarray, row: np.ndarray) -> Description:
    """Read the extended headers before a member, and the link in its own."""
    header, at = int(row[tar.HEADER]), int(row[tar.EXTENDED])
    described = Description()
    records: dict[bytes, bytes] = {}
    while 0 <= at < header:
        size = header_number(data[at + 124 : at + 136].tobytes()) or 0  # which the walk has checked
        content = data[at + tar.BLOCK : at + tar.BLOCK + min(size, MAX_DESCRIPTION)].tobytes()
        kind = int(data[at + 156])
        if kind == tar.GNU_LONG_NAME:
            described.name = decoded(content.partition(b"\0")[0])
        elif kind == tar.GNU_LONG_LINK:
            described.link = decoded(content.partition(b"\0")[0])
        elif kind in (tar.PAX, tar.SOLARIS_PAX):
            records.update(pax_records(content))
        at += tar.BLOCK + -(-size // tar.BLOCK) * tar.BLOCK
    described.read(records)  # which come before GNU's names
    if not described.link:
        described.link = decoded(data[header + 157 : header + 257].tobytes().partition(b"\0")[0])
    return described


def pax_records(content: bytes) -> dict[bytes, bytes]:
    """The records "LENGTH NAME=VALUE\\n" up to the first damaged one; values end at a zero byte."""
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(content):
        digits, space, _ = content[at : at + 11].partition(b" ")
        if not space or not digits.isdigit():
            break
        end = at + int(digits)
        name, equals, value = content[at + len(digits) + 1 : end - 1].partition(b"=")
        if not equals or content[end - 1 : end] != b"\n":
            break
        records[name] = value.partition(b"\0")[0]
        at = end
    return records


def header_number(field: bytes) -> int | None:
    """A header's number, octal or GNU's base 256; None where it is neither, or negative."""
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big") if field[0] == 0x80 else None
    digits = field.replace(b"\0", b" ").split()
    if not digits:
        return 0
    return int(digits[0], 8) if set(digits[0]) <= set(b"01234567") else None


def _follow_links(
    names: list[str],
    links: dict[int, str],
    table: np.ndarray,
    offsets: list[int],
    sizes: list[int],
    problems: dict[int, str],
) -> None:
    """Give each link the place of what it leads to in the shard, or a problem."""
    places: dict[str, int] = {}
    folders = (table[:, tar.KIND] == tar.DIRECTORY).tolist()
    for number, name in enumerate(names):
        if not folders[number]:
            places[posixpath.normpath(name)] = number
    for number in links:
        at: int | None = number
        for _ in range(_MAX_LINKS):
            if at not in links:
                break
            target = links[at]
            if table[at, tar.KIND] == tar.SYMBOLIC_LINK:
                target = posixpath.join(posixpath.dirname(names[at]), target)
            found = places.get(posixpath.normpath(target))
            at = None if found == at else found
        if at is None or at in links:
            problems[number] = "links to a file that the shard does not hold"
        elif at in problems:
            problems[number] = problems[at]
        else:
            offsets[number], sizes[number] = offsets[at], sizes[at]


def decoded(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")

"""Read the members of a tar archive from a file that cannot seek, one after another.

The plain twin of `kernels.tar` and `tar_members`: total like them, and used where a shard's bytes
pass by once. What needs the whole archive it names: links, and headers off the blocks' grid.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from ...kernels import tar
from ..shards.tar_members import (
    MAX_DESCRIPTION,
    MAX_IMAGE_BYTES,
    Description,
    decoded,
    header_number,
    kind_of_file,
    member_problem,
    name_problem,
    pax_records,
    shortened,
)

MAX_GAP = 1 << 30
"""Bytes without a header after which a shard has ended: a command may write for ever."""


class Readable(Protocol):
    """A file that gives `size` bytes, and fewer only at its end."""

    def read(self, size: int) -> bytes: ...


@dataclass(frozen=True)
class StreamedMember:
    """A member, or a damaged part of the archive, whose name is empty."""

    name: str
    data: bytes = b""
    """Its bytes, where `wanted` them."""
    problem: str | None = None
    """Why it cannot be read."""


def stream_members(file: Readable, wanted: Callable[[str], bool]) -> Iterator[StreamedMember]:
    """The members of the archive but its folders; `wanted(name)`: whether its bytes are needed.

    Errors of `file` are raised; all else is reported in `StreamedMember.problem`.
    """
    described = Description()
    pax_size: int | None = None
    first = True
    headers = 0
    gap = 0
    ended = damaged = False
    while gap < MAX_GAP and len(block := file.read(tar.BLOCK)) == tar.BLOCK:
        gap += tar.BLOCK
        start, first = (block if first else b""), False
        if not any(block):
            ended = True
            continue
        size = header_number(block[124:136])
        if not _is_header(block):
            if not headers and start and kind_of_file(start) != kind_of_file(b""):
                yield StreamedMember("", problem=kind_of_file(start))
                return
            damaged = True
            continue
        headers += 1
        gap = 0
        if damaged:
            yield StreamedMember("", problem="part of the shard is damaged")
        ended = damaged = False
        kind = block[156]
        if kind in b"xXgLK":
            if size is None or size > MAX_IMAGE_BYTES:
                continue
            content = _read(file, min(size, MAX_DESCRIPTION))
            if not _skip(file, -(-size // tar.BLOCK) * tar.BLOCK - len(content)):
                break
            if kind == tar.GNU_LONG_NAME:
                described.name = decoded(content.partition(b"\0")[0])
            elif kind in (tar.PAX, tar.SOLARIS_PAX):
                records = pax_records(content)
                described.read(records)
                stated = records.get(b"size", b"")
                pax_size = int(stated) if stated.isdigit() and len(stated) < 19 else None
            continue
        name = shortened(described.name or _name(block))
        size = pax_size if pax_size is not None else size
        problem = member_problem(
            kind, -1 if size is None else size, described.sparse
        ) or name_problem(described.name)
        described, pax_size = Description(), None
        if tar.HARD_LINK <= kind <= tar.FIFO:
            if kind != tar.DIRECTORY:
                linked = kind in (tar.HARD_LINK, tar.SYMBOLIC_LINK)
                problem = "a link, which a stream cannot follow" if linked else "not a regular file"
                yield StreamedMember(name, problem=problem)
            continue
        if size is None or size > MAX_IMAGE_BYTES:  # wrong, or too much to pass over
            yield StreamedMember(name, problem=problem)
            continue
        if kind == tar.GNU_SPARSE and block[482]:
            while (more := _read(file, tar.BLOCK)) and more[504:505] not in (b"", b"\0"):
                pass
        padding = -size % tar.BLOCK
        is_folder = name.endswith("/")  # of old tars, which have no type for them
        if problem is None and not is_folder and wanted(name):
            data = _read(file, size)
            if len(data) < size:
                yield StreamedMember(name, problem="shard cut short")
                return
            yield StreamedMember(name, data)
            whole = _skip(file, padding)
        else:
            whole = _skip(file, size + padding)
            if not is_folder:
                yield StreamedMember(name, problem=problem)
        if not whole:
            break
    if damaged and not headers:
        yield StreamedMember("", problem=kind_of_file(b""))
    elif damaged and not ended:
        yield StreamedMember("", problem="shard damaged from here on")
    elif not ended:
        yield StreamedMember("", problem="shard cut short" if headers else "empty file")


def _read(file: Readable, size: int) -> bytes:
    """Up to `size` bytes, fewer at the end of the file."""
    parts = []
    while size and (part := file.read(min(size, 1 << 20))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _skip(file: Readable, size: int) -> bool:
    """Pass over `size` bytes; whether there were as many."""
    while size > 0 and (part := file.read(min(size, 1 << 20))):
        size -= len(part)
    return size <= 0


def _is_header(block: bytes) -> bool:
    """Whether the checksum fits, of unsigned bytes or, in old tars, of signed ones."""
    stated = header_number(block[148:156])
    others = block[:148] + b" " * 8 + block[156:]
    total = sum(others)
    return bool(stated) and stated in (total, total - 256 * sum(byte >> 7 for byte in others))


def _name(block: bytes) -> str:
    """The name in a member's own header."""
    name = block[:100].partition(b"\0")[0]
    if block[257:263] == b"ustar\0" and block[345]:
        name = block[345:500].partition(b"\0")[0] + b"/" + name
    return decoded(name)

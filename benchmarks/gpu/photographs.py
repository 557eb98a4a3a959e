"""A few photographs as many shards: copies under other keys, so that plans and order differ."""

import pathlib
from collections.abc import Iterator

BLOCK = 512
"""Bytes of a tar's header, to a multiple of which a member's contents are padded."""


def copy_shards(source: pathlib.Path, target: pathlib.Path, copies: int) -> str:
    """Write `copies` shards from those in `source` into `target`; returns their pattern.

    Only names change: the members' bytes stay. FileNotFoundError where `source` holds no tar.
    """
    shards = sorted(source.glob("*.tar"))
    if not shards:
        raise FileNotFoundError(f"{source} holds no .tar file")
    target.mkdir(parents=True, exist_ok=True)
    for number in range(copies):
        data = shards[number % len(shards)].read_bytes()
        prefix = b"c%03d-" % number
        members = b"".join(_renamed(header, prefix) + rest for header, rest in _members(data))
        (target / f"copy-{number:04d}.tar").write_bytes(members + bytes(2 * BLOCK))
    return str(target / "copy-*.tar")


def _members(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(header, contents with padding) of every member of a plain tar."""
    at = 0
    while at + BLOCK <= len(data) and data[at] != 0:
        size = int(data[at + 124 : at + 135].split(b"\0")[0].strip() or b"0", 8)
        end = at + BLOCK + -(-size // BLOCK) * BLOCK
        yield data[at : at + BLOCK], data[at + BLOCK : end]
        at = end


def _renamed(header: bytes, prefix: bytes) -> bytes:
    """The header of a regular file with `prefix` before its name, and a checksum that fits."""
    folder, slash, base = header[:100].rstrip(b"\0").rpartition(b"/")
    name = (folder + slash + prefix + base)[:100].ljust(100, b"\0")
    blank = name + header[100:148] + b" " * 8 + header[156:]
    return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:]

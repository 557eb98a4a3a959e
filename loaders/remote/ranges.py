"""Reads of bounded length, whatever a server sends."""

import re
from collections.abc import AsyncIterator

from .errors import WrongLength

UNRANGED = 256 << 20
"""Bytes kept of the answer of a server that ignores ranges and sends the whole shard."""


async def read_range(
    blocks: AsyncIterator[bytes],
    start: int,
    end: int,
    size: int,
    *,
    partial: bool,
    content_range: str,
) -> bytes:
    """Bytes `start` to `end` of a file of `size` bytes; fewer where the answer ends earlier.

    `blocks`: the body of the answer. `partial`: whether it holds the range that was asked for
    (status 206), which the header `content_range` confirms, or the whole file: then up to
    `UNRANGED` bytes from `start` on are returned. Raises WrongLength for an answer that is longer,
    or is another range.
    """
    at, last = 0, max(end, min(size, start + UNRANGED))
    if partial:
        at, last = start, end
        stated = re.match(r"bytes (\d+)-", content_range)
        if stated and int(stated[1]) != start:
            raise WrongLength(f"the bytes from {stated[1]} on arrived, not those from {start}")
    data = bytearray()
    async for block in blocks:
        data += block[max(start - at, 0) : max(last - at, 0)]
        at += len(block)
        if at > last:
            if partial or last == size:
                raise WrongLength(f"more than {last} bytes arrived")
            break
    return bytes(data)

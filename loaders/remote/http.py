"""HTTP: a session that honours the environment, and reads of bounded length."""

import re
from typing import Any

from .config import RemoteConfig
from .errors import WrongLength

UNRANGED = 256 << 20
"""Bytes kept of the answer of a server that ignores ranges and sends the whole shard."""


def open_http(config: RemoteConfig) -> Any:
    """The fsspec file system of http:// and https://, with `config.headers`.

    HTTP_PROXY, HTTPS_PROXY, NO_PROXY and ~/.netrc (or $NETRC) apply. Bodies are not unpacked: a
    small one may claim to be compressed and unpack to gigabytes.
    """
    import aiohttp
    from fsspec.implementations.http import HTTPFileSystem

    return HTTPFileSystem(
        client_kwargs={
            "timeout": aiohttp.ClientTimeout(total=None),  # `RemoteStore` sets a limit
            "trust_env": True,
            "auto_decompress": False,
            "headers": config.http_headers(),
        },
        use_listings_cache=False,
        skip_instance_cache=True,
    )


async def read_range(system: Any, url: str, start: int, end: int, size: int) -> bytes:
    """Bytes `start` to `end` of a file of `size` bytes; fewer where the answer ends earlier.

    Of a server that ignores ranges, up to `UNRANGED` bytes from `start` on. Never keeps more than
    is asked for, whatever the server sends. Raises WrongLength for an answer that is longer, or is
    another range, and what fsspec raises for an error status.
    """
    session = await system.set_session()
    headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
    async with session.get(system.encode_url(url), headers=headers) as answer:
        system._raise_not_found_for_status(answer, url)
        at, last = 0, max(end, min(size, start + UNRANGED))
        if answer.status == 206:
            at, last = start, end
            stated = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
            if stated and int(stated[1]) != start:
                raise WrongLength(f"the bytes from {stated[1]} on arrived, not those from {start}")
        data = bytearray()
        async for block in answer.content.iter_any():
            data += block[max(start - at, 0) : max(last - at, 0)]
            at += len(block)
            if at > last:
                if answer.status == 206 or last == size:
                    raise WrongLength(f"more than {last} bytes arrived")
                break
        return bytes(data)

"""File systems of fsspec by protocol: HTTP and S3 by our own settings, others by their defaults.

Requests are coroutines that run in fsspec's loop; file systems without any run in threads.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

from ...kernels.errors import InvalidInput, MissingPackage
from ..shards.names import redact_url
from .config import RemoteConfig
from .errors import ServiceError, WrongLength
from .http import open_http, read_http
from .s3 import open_s3, read_s3, s3_info


def protocol_of(url: str) -> str:
    """The protocol of a URL, such as "s3"."""
    return url.partition("://")[0]


def open_system(url: str, config: RemoteConfig) -> Any:
    """The file system that reads the URL, with its own retries off.

    Raises MissingPackage where its package is not installed, InvalidInput for an unknown protocol.
    """
    protocol = protocol_of(url)
    try:
        import fsspec

        if protocol in ("http", "https"):
            return open_http(config)
        if protocol == "s3":
            return open_s3(config)
        return fsspec.filesystem(protocol, skip_instance_cache=True)
    except ImportError as error:
        if protocol in ("http", "https", "s3") or error.name == "fsspec":
            package = "'maskco-fast[remote]'"
        else:
            from fsspec.registry import known_implementations

            package = known_implementations[protocol]["class"].partition(".")[0]
        raise MissingPackage(
            f"{redact_url(url)}: reading {protocol}:// needs a package that is not installed: "
            f"pip install {package}"
        ) from error
    except ValueError:  # fsspec does not know the protocol
        raise InvalidInput(
            f"{redact_url(url)}: {protocol}:// is no protocol that fsspec reads: pass a path, a "
            "URL such as http://, s3://, gs://, az:// or hf://, or 'pipe:COMMAND'"
        ) from None


def loop_of(system: Any) -> Any:
    """The event loop in which the system's requests run."""
    from fsspec.asyn import get_loop

    return system.loop if system.async_impl else get_loop()


def info(system: Any, url: str) -> Coroutine[Any, Any, dict[str, Any]]:
    """A request for the facts about a file."""
    if protocol_of(url) in ("http", "https"):
        return system._info(url)
    if protocol_of(url) == "s3":
        return s3_info(system, url)
    return _guarded(system._info(url) if system.async_impl else asyncio.to_thread(system.info, url))


def read(system: Any, url: str, start: int, end: int, size: int) -> Coroutine[Any, Any, bytes]:
    """A request for bytes `start` to `end` of a file of `size` bytes.

    A server that ignores ranges may give more, see `read_range`. Raises WrongLength for an answer
    that is longer.
    """
    if protocol_of(url) in ("http", "https"):
        return read_http(system, url, start, end, size)
    if protocol_of(url) == "s3":
        return read_s3(system, url, start, end, size)
    return _read_other(system, url, start, end)


async def _read_other(system: Any, url: str, start: int, end: int) -> bytes:
    """`read` by another file system, which alone bounds how much it reads at a time."""
    request = (
        system._cat_file(url, start=start, end=end)
        if system.async_impl
        else asyncio.to_thread(system.cat_file, url, start=start, end=end)
    )
    data = await _guarded(request)
    if len(data) > end - start:
        raise WrongLength(f"{len(data)} bytes arrived where {end - start} were requested")
    return data


async def _guarded(request: Coroutine[Any, Any, Any]) -> Any:
    """Await a request of another file system, any of whose errors may be worth a retry."""
    try:
        return await request
    except (OSError, asyncio.TimeoutError):
        raise
    except Exception as error:
        raise ServiceError(type(error).__name__) from error

"""File systems of fsspec by protocol: HTTP and S3 by our own settings, others by their defaults.

Requests are coroutines that run in fsspec's loop; file systems without any run in threads.
"""

import asyncio
import os
from collections.abc import Coroutine
from typing import Any

from ...kernels.errors import InvalidInput, MissingPackage
from ..shards.names import redact_url
from .config import RemoteConfig
from .errors import ServiceError
from .http import open_http, read_range


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
        return (
            _open_s3(config)
            if protocol == "s3"
            else fsspec.filesystem(protocol, skip_instance_cache=True)
        )
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


def _open_s3(config: RemoteConfig) -> Any:
    import s3fs

    system = s3fs.S3FileSystem(
        anon=config.s3_anonymous,
        endpoint_url=config.s3_endpoint or os.environ.get("AWS_ENDPOINT_URL"),
        config_kwargs={"retries": {"mode": "standard", "total_max_attempts": 1}},
        use_listings_cache=False,
        skip_instance_cache=True,
    )
    system.retries = 1
    return system


def loop_of(system: Any) -> Any:
    """The event loop in which the system's requests run."""
    from fsspec.asyn import get_loop

    return system.loop if system.async_impl else get_loop()


def info(system: Any, url: str) -> Coroutine[Any, Any, dict[str, Any]]:
    """A request for the facts about a file."""
    if _is_ours(url):
        return system._info(url)
    return _guarded(system._info(url) if system.async_impl else asyncio.to_thread(system.info, url))


def read(system: Any, url: str, start: int, end: int, size: int) -> Coroutine[Any, Any, bytes]:
    """A request for bytes `start` to `end` of a file of `size` bytes.

    A server that ignores ranges may give more, see `read_range`.
    """
    if protocol_of(url) in ("http", "https"):
        return read_range(system, url, start, end, size)
    if _is_ours(url):
        return system._cat_file(url, start=start, end=end)
    if system.async_impl:
        return _guarded(system._cat_file(url, start=start, end=end))
    return _guarded(asyncio.to_thread(system.cat_file, url, start=start, end=end))


def _is_ours(url: str) -> bool:
    """Whether `request_faults` knows the errors of the URL's file system."""
    return protocol_of(url) in ("http", "https", "s3")


async def _guarded(request: Coroutine[Any, Any, Any]) -> Any:
    """Await a request of another file system, any of whose errors may be worth a retry."""
    try:
        return await request
    except (OSError, asyncio.TimeoutError):
        raise
    except Exception as error:
        raise ServiceError(type(error).__name__) from error

"""HTTP: a session that honours the environment and keeps headers from other hosts."""

from types import SimpleNamespace
from typing import Any

from .config import RemoteConfig
from .ranges import read_range


def open_http(config: RemoteConfig) -> Any:
    """The fsspec file system of http:// and https://, with `config.headers`.

    HTTP_PROXY, HTTPS_PROXY, NO_PROXY and ~/.netrc (or $NETRC) apply. Bodies are not unpacked: a
    small one may claim to be compressed and unpack to gigabytes. A redirect to another host is
    followed without `config.headers`.
    """
    import aiohttp
    from fsspec.implementations.http import HTTPFileSystem

    headers = config.http_headers()

    async def keep_headers_here(session: Any, context: SimpleNamespace, redirect: Any) -> None:
        """Take `headers` from a request that another host is to answer, as curl does."""
        if not _same_server(redirect.response):
            for name in headers:
                redirect.headers.popall(name, None)

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(keep_headers_here)
    return HTTPFileSystem(
        client_kwargs={
            "timeout": aiohttp.ClientTimeout(total=None),  # `RemoteStore` sets a limit
            "trust_env": True,
            "auto_decompress": False,
            "headers": headers,
            "trace_configs": [trace],
        },
        use_listings_cache=False,
        skip_instance_cache=True,
    )


def _same_server(answer: Any) -> bool:
    """Whether a redirect stays at its host and port, or moves from http to https there."""
    from yarl import URL

    try:
        target = answer.url.join(URL(answer.headers.get("Location") or answer.headers["URI"]))
        return target.origin() == answer.url.origin() or (
            target.host == answer.url.host
            and (answer.url.scheme, answer.url.port) == ("http", 80)
            and (target.scheme, target.port) == ("https", 443)
        )
    except (KeyError, ValueError):  # no redirect that can be followed
        return False


async def read_http(system: Any, url: str, start: int, end: int, size: int) -> bytes:
    """`ranges.read_range` of a URL; raises as that, and what fsspec raises for an error status."""
    session = await system.set_session()
    headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
    async with session.get(system.encode_url(url), headers=headers) as answer:
        system._raise_not_found_for_status(answer, url)
        return await read_range(
            answer.content.iter_any(),
            start,
            end,
            size,
            partial=answer.status == 206,
            content_range=answer.headers.get("Content-Range", ""),
        )

"""S3: one attempt a request, and reads of bounded length."""

import os
from collections.abc import AsyncIterator
from typing import Any

from .config import RemoteConfig
from .errors import WrongLength
from .ranges import read_range

MAX_TEXT = 16 << 20
"""Largest body of an answer that is no object, bytes: an error, or a list of 1000 keys, which are
at most 1 kB each."""
STEP = 1 << 18
"""Largest read of a body, bytes."""


def open_s3(config: RemoteConfig) -> Any:
    """The fsspec file system of s3://, with its own retries off."""
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


async def s3_info(system: Any, url: str) -> dict[str, Any]:
    """The facts about an object."""
    await _bound_texts(system)
    return await system._info(url)


async def read_s3(system: Any, url: str, start: int, end: int, size: int) -> bytes:
    """`ranges.read_range` of an object; raises as that, and what s3fs raises."""
    await _bound_texts(system)
    bucket, key, version = system.split_path(url)
    which = {"VersionId": version} if version else {}
    answer = await system._call_s3(
        "get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{end - 1}", **which
    )
    body = answer["Body"]
    try:
        return await read_range(
            _blocks(body),
            start,
            end,
            size,
            partial=answer["ResponseMetadata"].get("HTTPStatusCode") == 206,
            content_range=answer.get("ContentRange", ""),
        )
    finally:
        body.close()


async def _blocks(body: Any) -> AsyncIterator[bytes]:
    while block := await body.read(STEP):
        yield block


async def _bound_texts(system: Any) -> None:
    """Have the client read at most `MAX_TEXT` bytes of an error or a list.

    By itself botocore reads them in whole. Repeated calls change nothing.
    """
    client = await system.set_session()
    session = client._endpoint.http_session

    async def send(request: Any, **_: Any) -> Any:
        is_object, request.stream_output = request.stream_output, True  # leaves the body unread
        answer = await session.send(request)
        if not is_object or answer.status_code >= 300:
            text = bytearray()
            async for block in answer.raw.content.iter_any():
                text += block
                if len(text) > MAX_TEXT:
                    answer.raw.close()
                    raise WrongLength(f"an answer of more than {MAX_TEXT} bytes that is no object")
            answer._content = bytes(text)
        return answer

    client.meta.events.register("before-send.s3", send, unique_id="maskco-fast")

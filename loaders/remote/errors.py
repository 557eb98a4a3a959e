"""What goes wrong with shards that lie elsewhere: its errors, and whether trying again is of use."""

import asyncio
import contextlib
import subprocess

from ...kernels.errors import MaskCoError
from ..shards.names import redact_url


class RemoteError(MaskCoError, OSError):
    """A remote shard cannot be had; the message names it and what to do."""


class ShardChanged(RemoteError):
    """A remote shard is not what it was when it was indexed."""


class ReadEnded(RemoteError):
    """Whoever wanted the shard has stopped waiting for it."""


class WrongLength(MaskCoError, OSError):
    """A response held more or fewer bytes than were asked for."""


class UnusableCommand(subprocess.SubprocessError):
    """The shell could not run the command."""


def request_faults() -> tuple[type[BaseException], ...]:
    """What the file systems raise where a server or the way to it fails."""
    import aiohttp

    found: list[type[BaseException]] = [OSError, asyncio.TimeoutError, aiohttp.ClientError]
    with contextlib.suppress(ImportError):
        import botocore.exceptions

        found += [botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError]
    return tuple(found)


def status_of(error: BaseException | None) -> int | None:
    """The HTTP status that an error, or what caused it, tells of."""
    while error is not None:
        response = getattr(error, "response", None)
        status = getattr(error, "status", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if isinstance(status, int):
            return status
        error = error.__cause__
    return None


def is_final(error: BaseException) -> bool:
    """Whether the same request would fail again: the server, or this side, has refused it."""
    status = status_of(error)
    if status is not None:
        return (
            400 <= status < 500
            and status not in (408, 425, 429)
            and not isinstance(error, TimeoutError)
        )
    if isinstance(error, FileNotFoundError | PermissionError):
        return error.__cause__ is None  # with a cause, fsspec calls every failure "not found"
    return (
        isinstance(error, ValueError | UnusableCommand)
        or type(error).__name__ == "NoCredentialsError"
    )


def refusal(url: str, error: BaseException, reason: str) -> OSError:
    """What a final failure tells the user."""
    status = status_of(error)
    if status in (404, 410) or (status is None and isinstance(error, FileNotFoundError)):
        return FileNotFoundError(
            f"{redact_url(url)} does not exist (the server says {reason}); put the shard back, or take it out of --shards"
        )
    return RemoteError(
        f"{redact_url(url)}: refused, {reason}. Check its address and your credentials (S3: AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY or a profile; --remote.s3-anonymous for public buckets; --remote.s3-endpoint)"
    )


def reason_of(error: BaseException) -> str:
    """A few words on a failure, equal for equal causes, without the URL."""
    status = status_of(error)
    if status is not None:
        return f"status {status}"
    while isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, FileNotFoundError):
        return "status 404"
    if isinstance(error, subprocess.SubprocessError):
        return str(error)
    name = type(error).__name__
    return {"TimeoutError": "no answer in time", "WrongLength": "wrong length"}.get(name, name)

"""Errors of remote shards, and the decision whether a failed request is worth a retry."""

import asyncio
import contextlib

from ...kernels.errors import MaskCoError
from ..shards.names import PIPE, redact_url


class RemoteError(MaskCoError, OSError):
    """A remote shard cannot be read; the message names the shard and the remedy."""


class ShardChanged(RemoteError):
    """A remote shard differs from the one that was indexed."""


class ReadEnded(RemoteError):
    """A read was cancelled, because its iterator closed or the run was interrupted."""

    def __init__(self, text: str = "the read was cancelled") -> None:
        super().__init__(text)


class ShardTooLarge(RemoteError):
    """A remote shard is larger than the cache may be."""


class ServiceError(MaskCoError, OSError):
    """A file system other than HTTP's and S3's has raised an error of its own, the cause."""


class WrongLength(MaskCoError, OSError):
    """A response has more or fewer bytes than requested."""


class CommandFailed(MaskCoError, OSError):
    """A pipe's command exited with an error."""


class UnusableCommand(CommandFailed):
    """The shell cannot run a pipe's command (exit code 126 or 127)."""


def request_faults() -> tuple[type[BaseException], ...]:
    """The exceptions that fsspec's file systems raise when a server or the network fails."""
    import aiohttp

    found: list[type[BaseException]] = [OSError, asyncio.TimeoutError, aiohttp.ClientError]
    with contextlib.suppress(ImportError):
        import botocore.exceptions

        found += [botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError]
    return tuple(found)


def status_of(error: BaseException | None) -> int | None:
    """The HTTP status of an error or of its causes; None where there is none."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        elif isinstance(error, ServiceError):  # Google's name for it
            status = getattr(error.__cause__, "code", None)
        else:  # aiohttp's, and Hugging Face's
            status = getattr(error, "status", None) or getattr(response, "status_code", None)
        if isinstance(status, int):
            return status
        error = error.__cause__
    return None


def is_final(error: BaseException) -> bool:
    """Whether a retry is pointless: the server, or this side, has refused the request."""
    status = status_of(error)
    if status is not None:
        return (
            400 <= status < 500
            and status not in (408, 425, 429)
            and not isinstance(error, TimeoutError)
        )
    if isinstance(error, FileNotFoundError | PermissionError):
        # fsspec raises FileNotFoundError for network failures too, with their cause attached
        return error.__cause__ is None
    return (
        isinstance(error, ValueError | UnusableCommand)
        or type(error).__name__ == "NoCredentialsError"
    )


def final_error(url: str, error: BaseException, reason: str) -> OSError:
    """The error to raise for a failure that is final: FileNotFoundError or RemoteError."""
    status = status_of(error)
    if url.startswith(PIPE):
        return RemoteError(
            f"{redact_url(url)}: the command cannot run, {reason}. Check it with `sh -c`"
        )
    if status in (404, 410) or (status is None and isinstance(error, FileNotFoundError)):
        return FileNotFoundError(
            f"{redact_url(url)} does not exist, {reason}. "
            "Put the shard back, or take it out of --shards"
        )
    return RemoteError(
        f"{redact_url(url)}: refused, {reason}. Check its address and your credentials (HTTP: "
        "--remote.headers or ~/.netrc; S3: "
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile; --remote.s3-anonymous for "
        "public buckets; --remote.s3-endpoint)"
    )


def reason_of(error: BaseException) -> str:
    """A short reason for a failure: equal for equal causes, and without the URL."""
    status = status_of(error)
    if status is not None:
        return f"status {status}"
    while isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, FileNotFoundError):
        return "status 404"
    if isinstance(error, CommandFailed):
        return str(error)
    name = type(error).__name__
    return {"TimeoutError": "no answer in time", "WrongLength": "wrong length"}.get(name, name)

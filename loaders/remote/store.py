"""`RemoteStore`: sizes and bytes of remote shards, read through server faults.

Each request is small, limited in time and checked for its length. A failed request is repeated
after a random, growing wait, so that many readers do not return at once. Bytes that have arrived
are kept.
"""

import asyncio
import collections
import concurrent.futures
import functools
import random
import threading
import time
import warnings
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from ..shards.names import PIPE, redact_url
from .config import RemoteConfig
from .errors import (
    ReadEnded,
    RemoteError,
    ShardChanged,
    WrongLength,
    final_error,
    is_final,
    reason_of,
    request_faults,
    status_of,
)
from .pipe import STOP_POLL, Pipe
from .systems import info, loop_of, open_system, protocol_of, read

MAX_WAIT = 30.0
"""Longest wait before a retry, seconds."""
WARN_AFTER = 10.0
"""Seconds of consecutive failures before a warning."""
CHANGE_ANSWERS = 4
"""Consecutive differing answers before a shard is reported as changed: a server may report a wrong
length twice in a row."""
NEVER_STOP = threading.Event()
"""Default stop event; never set."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RemoteShard:
    """What the server reports about a shard, and the hash of its bytes."""

    url: str
    size: int
    """Bytes; -1 where it is unknown until the shard has been read (a pipe)."""
    tag: str
    """The server's version of the shard: its ETag, else its modification date; empty for a pipe."""
    digest: str = ""
    """A hash of the bytes; empty until they have been read."""

    @property
    def is_pipe(self) -> bool:
        """Whether the shard is a command's output."""
        return self.url.startswith(PIPE)


class RemoteStore:
    """Looks up remote shards and reads them, from any thread.

    `faults` counts failures by reason.
    """

    def __init__(self, config: RemoteConfig) -> None:
        self.config = config
        self.faults: collections.Counter[str] = collections.Counter()
        self._random = random.Random()
        self._systems: dict[str, Any] = {}
        self._lock = threading.Lock()

    def look_up(
        self, url: str, stop: threading.Event = NEVER_STOP, *, confirm: bool = False
    ) -> RemoteShard:
        """Size and tag of a shard; `confirm`: ask until two consecutive answers agree.

        Raises FileNotFoundError where the shard does not exist, RemoteError where the server does
        not answer, ReadEnded once `stop` is set.
        """
        if url.startswith(PIPE):
            return RemoteShard(url=url, size=-1, tag="")
        shard = self._request_facts(url, stop)
        while confirm and (again := self._request_facts(url, stop)) != shard:
            self.faults["answers that differ"] += 1
            shard = again
        return shard

    def blocks(
        self, shard: RemoteShard, start: int = 0, stop: threading.Event = NEVER_STOP
    ) -> Iterator[bytes]:
        """The shard's bytes from `start` on, in order, each exactly once.

        Raises as `look_up`, and ShardChanged where the shard's size or tag has changed.
        """
        if shard.is_pipe:
            return self._pipe_blocks(shard, start, stop)
        return self._ranged_blocks(shard, start, stop)

    def check_unchanged(self, shard: RemoteShard, stop: threading.Event = NEVER_STOP) -> None:
        """Raise ShardChanged where `CHANGE_ANSWERS` consecutive answers differ from `shard`.

        A pipe always passes.
        """
        if shard.is_pipe:
            return
        for _ in range(CHANGE_ANSWERS):
            now = self.look_up(shard.url, stop)
            if (now.size, now.tag) == (shard.size, shard.tag):
                return
            self.faults["answers that differ"] += 1
        raise ShardChanged(
            f"{redact_url(shard.url)} has changed since it was indexed: {shard.size} bytes and tag "
            f"{shard.tag} then, {now.size} bytes and tag {now.tag} now. Start a new run in another "
            "--run-dir, which indexes the shard again; to resume this run, put the old shard back"
        )

    def ends_at_size(self, shard: RemoteShard, stop: threading.Event = NEVER_STOP) -> bool:
        """Whether no byte lies beyond the reported size; True for a pipe.

        This catches a server that reports too short a length.
        """
        if shard.is_pipe:
            return True
        system = self._system(shard.url)
        if protocol_of(shard.url) not in ("http", "https", "s3"):
            return True  # an object store, whose lengths are right

        def one_byte_more() -> bytes:
            try:
                beyond = read(system, shard.url, shard.size, shard.size + 1, shard.size)
                return self._run_request(system, beyond, stop)
            except request_faults() as error:
                if status_of(error) == 416:  # range not satisfiable
                    return b""
                raise

        return not self._retry(shard.url, stop, one_byte_more)

    def wait(self, longest: float, stop: threading.Event) -> None:
        """Wait a random time of up to `longest` seconds; raises ReadEnded once `stop` is set."""
        if stop.wait(self._random.uniform(0, longest)):
            raise ReadEnded

    def _request_facts(self, url: str, stop: threading.Event) -> RemoteShard:
        """One answer of the server about a shard."""
        system = self._system(url)
        facts = self._retry(url, stop, lambda: self._run_request(system, info(system, url), stop))
        if facts.get("size") is None or int(facts["size"]) < 0:
            raise RemoteError(
                f"{redact_url(url)}: the server must report the shard's length, without which a "
                "truncated download goes unnoticed. Read it through a pipe, 'pipe:curl -fsSL …'"
            )
        tag = next((str(facts[name]) for name in _TAGS if facts.get(name)), "")
        return RemoteShard(url=url, size=int(facts["size"]), tag=tag)

    def _ranged_blocks(
        self, shard: RemoteShard, start: int, stop: threading.Event
    ) -> Iterator[bytes]:
        """`blocks` by range requests of at most `request_mb`."""
        system = self._system(shard.url)
        step = max(int(self.config.request_mb * 1e6), 1)
        while start < shard.size:
            end = min(start + step, shard.size)
            request = functools.partial(self._request_range, system, shard, start, end, stop)
            data = self._retry(shard.url, stop, request)
            start += len(data)
            yield data

    def _request_range(
        self, system: Any, shard: RemoteShard, start: int, end: int, stop: threading.Event
    ) -> bytes:
        """Bytes `start` to `end`, or to the shard's end where the server ignores ranges."""
        answer = read(system, shard.url, start, end, shard.size)
        data = self._run_request(system, answer, stop)
        if len(data) < end - start:
            self.check_unchanged(shard, stop)
            raise WrongLength(f"{len(data)} bytes arrived where {end - start} were requested")
        return data

    def _pipe_blocks(
        self, shard: RemoteShard, start: int, stop: threading.Event
    ) -> Iterator[bytes]:
        """`blocks` of a command, which runs again from its beginning after each failure."""
        retries = _Retries(self, shard.url, stop)
        while True:
            try:
                with Pipe(shard.url.removeprefix(PIPE), self.config.timeout) as pipe:
                    read = 0  # bytes of this run; those before `start` were yielded earlier
                    while data := pipe.read(stop):
                        read += len(data)
                        if read > start:
                            retries.reset()
                            yield data[max(len(data) - (read - start), 0) :]
                            start = read
                    pipe.check_exit()
                    if read < start or shard.size not in (-1, read):
                        raise WrongLength(
                            f"the command wrote {read} bytes, and {max(start, shard.size)} before"
                        )
                return
            except OSError as error:
                retries.failed(error)

    def _run_request(
        self, system: Any, request: Coroutine[Any, Any, T], stop: threading.Event
    ) -> T:
        """Run a coroutine in fsspec's loop; cancel it after `timeout` or once `stop` is set."""
        limited = asyncio.wait_for(request, self.config.timeout)
        answer = asyncio.run_coroutine_threadsafe(limited, loop_of(system))
        while not concurrent.futures.wait([answer], STOP_POLL).done:
            if stop.is_set():
                answer.cancel()
                raise ReadEnded
        return answer.result()

    def _retry(self, url: str, stop: threading.Event, request: Callable[[], T]) -> T:
        """The request's answer, repeating the request until it succeeds."""
        retries = _Retries(self, url, stop)
        while True:
            try:
                return request()
            except request_faults() as error:
                retries.failed(error)
                # The error and the future that raised it refer to each other. Without this line,
                # every frame on this stack, with its blocks and its pinned shards, stays alive
                # until the garbage collector runs.
                error.__traceback__ = None

    def _system(self, url: str) -> Any:
        """The fsspec file system of a URL's protocol, with its own retries off."""
        protocol = protocol_of(url)
        with self._lock:
            if protocol not in self._systems:
                self._systems[protocol] = open_system(url, self.config)
            return self._systems[protocol]


_TAGS = (
    *("ETag", "Last-Modified", "LastModified"),  # HTTP and S3
    *("etag", "last_modified", "md5Hash", "mtime", "updated", "blob_id", "created"),  # others
)
"""Where file systems report the version of a file."""


class _Retries:
    """Consecutive failures of one shard: waits between attempts and limits their duration."""

    def __init__(self, store: RemoteStore, url: str, stop: threading.Event) -> None:
        self._store = store
        self._url = url
        self._stop = stop
        self.reset()

    def reset(self) -> None:
        """Start counting again, because bytes have arrived."""
        self._attempts = 0
        self._since = time.monotonic()
        self._warned = False

    def failed(self, error: BaseException) -> None:
        """Count a failure and wait before the next attempt.

        Raises the error that ends the run where the failure is final or has lasted for `patience`
        seconds, ReadEnded once the stop event is set.
        """
        if isinstance(error, RemoteError):
            raise error
        config = self._store.config
        reason = reason_of(error)
        self._store.faults[reason] += 1
        self._attempts += 1
        if is_final(error):
            raise final_error(self._url, error, reason) from None  # the cause names the whole URL
        lasted = time.monotonic() - self._since
        if lasted >= config.patience:
            raise RemoteError(
                f"{redact_url(self._url)}: {self._attempts} attempts in {lasted:.0f} s have "
                f"failed, the last with: {reason}. Check that the server is up, then resume with "
                "the same command; a longer --remote.patience survives longer outages"
            ) from None
        if lasted >= WARN_AFTER and not self._warned:
            self._warned = True
            warnings.warn(
                f"{redact_url(self._url)}: {self._attempts} attempts have failed, the last with: "
                f"{reason}; retrying for {config.patience - lasted:.0f} s more",
                stacklevel=2,
            )
        longest = min(config.backoff * 2.0 ** min(self._attempts - 1, 16), MAX_WAIT)
        self._store.wait(longest, self._stop)

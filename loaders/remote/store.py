"""Shards that lie elsewhere: what a server tells of them, and their bytes in spite of its faults.

Every request is small, bounded in time and checked for its length. One that fails is repeated,
after a wait that grows and is random, so that many readers do not come back together; what has
arrived before it stays.
"""

import asyncio
import collections
import concurrent.futures
import os
import random
import subprocess
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
    is_final,
    reason_of,
    refusal,
    request_faults,
    status_of,
)
from .pipe import STOP_POLL, Pipe

LONGEST_WAIT = 30.0
"""Seconds between two attempts at most."""
TOLD_AFTER = 10.0
"""Seconds of failures in a row after which a warning tells of them."""
BELIEVED = 4
"""Answers in a row that a shard has changed, after which it has: a server may tell a wrong length
twice."""
NEVER = threading.Event()
"""The `stop` of those who wait for as long as it takes."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RemoteShard:
    """What is known of a remote shard."""

    url: str
    size: int
    """Bytes; -1 where only reading it tells (a pipe's, at first)."""
    tag: str
    """What the server changes when it changes the shard: its ETag, or else its date; empty for a
    pipe."""
    digest: str = ""
    """A hash of the bytes, once they have been read."""

    @property
    def is_pipe(self) -> bool:
        """Whether a command's output is the shard."""
        return self.url.startswith(PIPE)


class RemoteStore:
    """Looks remote shards up and reads them. Any thread's; `faults` counts what went wrong by
    reason."""

    def __init__(self, config: RemoteConfig) -> None:
        self.config = config
        self.faults: collections.Counter[str] = collections.Counter()
        self._random = random.Random()
        self._systems: dict[str, Any] = {}
        self._lock = threading.Lock()

    def look_up(
        self, url: str, stop: threading.Event = NEVER, *, sure: bool = False
    ) -> RemoteShard:
        """Size and tag of a shard; `sure`: as told twice in a row, since a server may tell wrong
        lengths too.

        FileNotFoundError where there is none, RemoteError where no answer is to be had.
        """
        if url.startswith(PIPE):
            return RemoteShard(url=url, size=-1, tag="")
        facts = self._ask(url, stop)
        while sure and (again := self._ask(url, stop)) != facts:
            self.faults["answers that differ"] += 1
            facts = again
        return facts

    def blocks(
        self, shard: RemoteShard, start: int = 0, stop: threading.Event = NEVER
    ) -> Iterator[bytes]:
        """The shard's bytes from `start` on, each once and in order, whatever happens on the way.

        FileNotFoundError, RemoteError as `look_up`; ShardChanged where the shard has another length
        or tag by now; ReadEnded once `stop` is set.
        """
        return (
            self._pipe_blocks(shard, start, stop)
            if shard.is_pipe
            else self._ranged_blocks(shard, start, stop)
        )

    def _ask(self, url: str, stop: threading.Event) -> RemoteShard:
        system = self._system(url)
        facts = self._persist(url, stop, lambda: self._answer(system, system._info(url), stop))
        if facts.get("size") is None:
            raise RemoteError(
                f"{redact_url(url)}: the server does not tell its length, without which a cut download cannot be told from "
                "a whole one; read it through a pipe, 'pipe:curl -fsSL …'"
            )
        tag = next(
            (
                str(facts[name])
                for name in ("ETag", "Last-Modified", "LastModified")
                if facts.get(name)
            ),
            "",
        )
        return RemoteShard(url=url, size=int(facts["size"]), tag=tag)

    def _ranged_blocks(
        self, shard: RemoteShard, start: int, stop: threading.Event
    ) -> Iterator[bytes]:
        system, step = self._system(shard.url), max(int(self.config.request_mb * 1e6), 1)
        while start < shard.size:
            end = min(start + step, shard.size)
            data = self._persist(
                shard.url, stop, lambda: self._range(system, shard, start, end, stop)
            )
            start += len(data)
            yield data

    def _range(
        self, system: Any, shard: RemoteShard, start: int, end: int, stop: threading.Event
    ) -> bytes:
        data = self._answer(system, system._cat_file(shard.url, start=start, end=end), stop)
        if (
            len(data) == shard.size
        ):  # the server knows no ranges: what it sent is all that is left to read
            return data[start:]
        if len(data) != end - start:
            self.check(shard, stop)
            raise WrongLength(f"{len(data)} bytes came where {end - start} were asked for")
        return data

    def ends(self, shard: RemoteShard, stop: threading.Event = NEVER) -> bool:
        """Whether there is nothing behind the length that the server told; a pipe's always ends."""
        if shard.is_pipe:
            return True
        system = self._system(shard.url)

        def one_byte_more() -> bytes:
            try:
                beyond = system._cat_file(shard.url, start=shard.size, end=shard.size + 1)
                return self._answer(system, beyond, stop)
            except request_faults() as error:
                if status_of(error) == 416:  # range not satisfiable
                    return b""
                raise

        # All of it comes where ranges are unknown.
        return len(self._persist(shard.url, stop, one_byte_more)) in (0, shard.size)

    def check(self, shard: RemoteShard, stop: threading.Event = NEVER) -> None:
        """ShardChanged where the server, asked `BELIEVED` times in a row, no longer tells the same
        of the shard."""
        now = shard
        for _ in range(0 if shard.is_pipe else BELIEVED):
            now = self.look_up(shard.url, stop)
            if (now.size, now.tag) == (shard.size, shard.tag):
                break
            self.faults["answers that differ"] += 1
        else:
            if shard.is_pipe:
                return
            raise ShardChanged(
                f"{redact_url(shard.url)} has changed since it was indexed: {shard.size} bytes and tag {shard.tag} then, "
                f"{now.size} and {now.tag} now. Start again in another --run-dir, which indexes it anew; a run in "
                "progress wants the old shard back"
            )

    def _pipe_blocks(
        self, shard: RemoteShard, start: int, stop: threading.Event
    ) -> Iterator[bytes]:
        trouble = _Trouble(self, shard.url, stop)
        while True:
            try:
                with Pipe(shard.url.removeprefix(PIPE), self.config.timeout) as pipe:
                    at = 0  # a command cannot be asked to begin elsewhere
                    while data := pipe.read(stop):
                        at += len(data)
                        if at > start:
                            trouble.over()
                            yield data[max(len(data) - (at - start), 0) :]
                            start = at
                    pipe.check()
                    if at < start or shard.size not in (-1, at):
                        raise WrongLength(
                            f"the command wrote {at} bytes after {max(start, shard.size)} the time before"
                        )
                return
            except (OSError, subprocess.SubprocessError) as error:
                trouble.met(error)

    def _answer(self, system: Any, request: Coroutine[Any, Any, T], stop: threading.Event) -> T:
        """What a request to one of fsspec's systems brings; it is cancelled after `timeout`, or
        once `stop` is set."""
        bounded = asyncio.wait_for(request, self.config.timeout)
        answer = asyncio.run_coroutine_threadsafe(bounded, system.loop)
        while not concurrent.futures.wait([answer], STOP_POLL).done:
            if stop.is_set():
                answer.cancel()
                raise ReadEnded("the read was ended")
        return answer.result()

    def _persist(self, url: str, stop: threading.Event, request: Callable[[], T]) -> T:
        """The request's answer, asked for until it comes."""
        trouble = _Trouble(self, url, stop)
        while True:
            try:
                return request()
            except request_faults() as error:
                trouble.met(error)

    def wait(self, longest: float, stop: threading.Event) -> None:
        """A random share of `longest` seconds; ReadEnded once `stop` is set."""
        if stop.wait(self._random.uniform(0, longest)):
            raise ReadEnded("the read was ended")

    def _system(self, url: str) -> Any:
        """The file system of a URL's protocol. Repeating requests is our business, so its own
        repetitions are off."""
        protocol = "s3" if url.startswith("s3:") else "http"
        with self._lock:
            if protocol not in self._systems:
                try:
                    self._systems[protocol] = self._open_s3() if protocol == "s3" else _open_http()
                except ImportError as error:
                    raise RemoteError(
                        f"{redact_url(url)}: reading it needs {error.name}: pip install 'maskco-fast[remote]'"
                    ) from error
            return self._systems[protocol]

    def _open_s3(self) -> Any:
        import s3fs

        system = s3fs.S3FileSystem(
            anon=self.config.s3_anonymous,
            endpoint_url=self.config.s3_endpoint or os.environ.get("AWS_ENDPOINT_URL"),
            config_kwargs={"retries": {"mode": "standard", "total_max_attempts": 1}},
            use_listings_cache=False,
            skip_instance_cache=True,
        )
        system.retries = 1
        return system


def _open_http() -> Any:
    import aiohttp
    from fsspec.implementations.http import HTTPFileSystem

    return HTTPFileSystem(
        client_kwargs={"timeout": aiohttp.ClientTimeout(total=None)},  # each request brings its own
        use_listings_cache=False,
        skip_instance_cache=True,
    )


class _Trouble:
    """The failures of one shard's requests in a row: decides whether to go on, and waits."""

    def __init__(self, store: RemoteStore, url: str, stop: threading.Event) -> None:
        self._store, self._url, self._stop = store, url, stop
        self.over()

    def over(self) -> None:
        """Bytes have come: what was before no longer counts."""
        self._times, self._since, self._told = 0, time.monotonic(), False

    def met(self, error: BaseException) -> None:
        """Count a failure and wait; raises what ends the run where repeating is of no use or has
        gone on too long."""
        if isinstance(error, RemoteError):
            raise error
        config, reason = self._store.config, reason_of(error)
        self._store.faults[reason] += 1
        self._times += 1
        if is_final(error):
            raise refusal(self._url, error, reason) from error
        lasted = time.monotonic() - self._since
        if lasted >= config.patience:
            raise RemoteError(
                f"{redact_url(self._url)}: {self._times} attempts in {lasted:.0f} s have failed, the last with: {reason}. "
                "See whether the server is up; the same command goes on from there, and a longer --remote.patience "
                "sits out longer outages"
            ) from error
        if lasted >= TOLD_AFTER and not self._told:
            self._told = True
            warnings.warn(
                f"{redact_url(self._url)}: {self._times} attempts have failed, the last with: {reason}; "
                f"it is tried for {config.patience - lasted:.0f} s more",
                stacklevel=2,
            )
        self._store.wait(
            min(config.backoff * 2.0 ** min(self._times - 1, 16), LONGEST_WAIT), self._stop
        )

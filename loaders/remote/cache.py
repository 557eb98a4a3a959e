"""`ShardCache`: a bounded folder of whole remote shards, shared by the processes of a host.

Files: a whole shard is `maskco-HASH.tar`, an incomplete one `maskco-HASH.SIZE.part`; SIZE is the
shard's full size, which counts against the limit from the start. Other files in the folder are the
user's: they are neither counted nor removed.

Locks: a process that writes or removes one of these files holds an exclusive `flock` on it, and a
process that reads one a shared `flock`. So a shard in use is never removed, one process at a time
downloads a shard, and the kernel drops the locks of a killed process. `room.lock` is held while
shards are chosen for removal.
"""

import contextlib
import errno
import hashlib
import io
import os
import re
import shutil
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from ...kernels.compiler.cache import cache_folder
from ..shards.names import redact_url
from ..shards.reader import read_at
from ..system.files import publish
from ..system.portable import lock, read_at_offset, try_lock
from .config import RemoteConfig
from .errors import ReadEnded, RemoteError, ShardChanged, ShardTooLarge
from .store import NEVER_STOP, RemoteShard, RemoteStore

POLL = 0.05
"""Interval at which a thread checks on other processes and threads, seconds."""
ROOM_PATIENCE = 5.0
"""Seconds that a reader waits for shards in use to be released, before it exceeds the limit."""
DIGEST_ATTEMPTS = 3
"""Consecutive digest mismatches before a shard is reported as changed."""


_OURS = re.compile(r"maskco-[0-9a-f]{32}\.(?:tar|(?P<size>\d+)\.part)")
"""Names of the files that a cache writes."""


class Pin:
    """A cached shard in use, which the cache keeps until the pin is released.

    Ownership: the creator holds one reference, and each successful `retain` adds one. `release`, or
    the end of a `with` block, drops one; the last drop closes the file and its lock.
    """

    def __init__(self, path: Path, file: io.FileIO) -> None:
        """`file` is open for reading and holds a shared lock."""
        self.path = path
        self._file = file
        self._references = 1
        self._lock = threading.Lock()

    def __enter__(self) -> "Pin":
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes at `offset`, from any thread that holds a reference.

        Raises RemoteError where another program has truncated the file.
        """
        try:
            return read_at(self._file, str(self.path), offset, size)
        except EOFError as error:
            raise RemoteError(
                f"{self.path} has become shorter while it was in use. Let no other program write "
                "to the shard cache, then run the same command again, which downloads the shard"
            ) from error

    def digest(self) -> str:
        """A hash of the shard's bytes, 32 hex digits."""
        return _digest(self._file)

    def retain(self) -> bool:
        """Add a reference; False where the pin is already released."""
        with self._lock:
            if self._references:
                self._references += 1
            return self._references > 0

    def release(self) -> None:
        """Drop a reference; the last one marks the shard as just used and unlocks it."""
        with self._lock:
            self._references -= 1
            if self._references:
                return
        with contextlib.suppress(OSError):  # a failed time stamp only affects the order of removal
            _mark_used(self._file)
        self._file.close()


class ShardCache:
    """Downloads shards into the folder through `store` and returns pins, from any thread."""

    def __init__(self, config: RemoteConfig, store: RemoteStore | None = None) -> None:
        self.config = config
        self.store = store or RemoteStore(config)
        chosen = config.cache_folder
        self.folder = Path(chosen).expanduser().absolute() if chosen else cache_folder("shards")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.limit = int(config.cache_gb * 1e9)
        """Bytes."""
        self._admission = threading.Lock()
        self._warned = False

    def __reduce__(self) -> tuple[type["ShardCache"], tuple[RemoteConfig]]:
        """A copy uses the same folder."""
        return ShardCache, (self.config,)

    def acquire(self, shard: RemoteShard, stop: threading.Event = NEVER_STOP) -> Pin:
        """A pin on the shard, after downloading it where the cache lacks it.

        Unused shards are removed to make room, the least recently used first. Where the shards in
        use leave no room, the limit is exceeded with a warning instead of deadlocking.

        Raises as `RemoteStore.blocks`, ShardChanged where the bytes are not those of `shard`, and
        ShardTooLarge where they are more than the limit.
        """
        pin = self._acquire(shard, stop, required=True)
        assert pin is not None
        return pin

    def acquire_if_room(self, shard: RemoteShard, stop: threading.Event = NEVER_STOP) -> Pin | None:
        """As `acquire`, but returns None where the shards in use leave no room."""
        return self._acquire(shard, stop, required=False)

    def _acquire(self, shard: RemoteShard, stop: threading.Event, *, required: bool) -> Pin | None:
        if shard.size > self.limit:
            raise self._too_large(shard)
        name = _file_name(shard)
        whole = self.folder / f"{name}.tar"
        part_path = self.folder / f"{name}.{max(shard.size, 0)}.part"
        while True:
            pin = self._open_whole(whole, shard)
            if pin is not None:
                return pin
            # One thread at a time waits for room with a claimed part. Several would wait for
            # the space that their parts reserve from each other.
            with self._turn() if required else contextlib.nullcontext(True) as mine:
                part = self._claim(part_path, whole) if mine else None
                if part is not None and not self._make_room_for(part, required, stop):
                    return None
            if part is None:  # others are waiting for room, or are downloading this shard
                self._wait(stop)
                continue
            with part:
                with self._explain_full_disk():
                    self._download(part, shard, stop)
                publish(part_path, whole)
            if shard.is_pipe:  # whose size counts from now on
                self._make_room(False, stop)

    @contextlib.contextmanager
    def _turn(self) -> Iterator[bool]:
        """Whether it is this thread's turn to reserve space in the folder, until the block ends."""
        mine = self._admission.acquire(timeout=POLL)
        try:
            yield mine
        finally:
            if mine:
                self._admission.release()

    def _open_whole(self, whole: Path, shard: RemoteShard) -> Pin | None:
        """A pin on the whole shard; None where it is absent or about to be removed."""
        try:
            file = io.FileIO(whole, "rb")
        except FileNotFoundError:
            return None
        if try_lock(file.fileno(), shared=True):
            facts = os.fstat(file.fileno())
            if facts.st_nlink and shard.size in (-1, facts.st_size):
                _mark_used(file)
                return Pin(whole, file)
            if facts.st_nlink:  # truncated by another program
                whole.unlink(missing_ok=True)
        file.close()
        return None

    @staticmethod
    def _claim(path: Path, whole: Path) -> io.FileIO | None:
        """The shard's part, open and locked; None where others write it or have just finished."""
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        file = io.FileIO(os.open(path, flags, 0o666), "r+b")
        if try_lock(file.fileno()) and _is_at(file, path):
            if not whole.exists():
                file.name = str(path)
                return file
            path.unlink()
        file.close()
        return None

    def _download(self, part: io.FileIO, shard: RemoteShard, stop: threading.Event) -> None:
        """Complete the part from its present end and check it against `shard`."""
        for _ in range(DIGEST_ATTEMPTS):
            start = os.fstat(part.fileno()).st_size
            if shard.is_pipe or start > shard.size:  # only a command that ended proves its output
                part.truncate(0)
                start = 0
            part.seek(start)
            missing = shard.size - start
            if missing > shutil.disk_usage(self.folder).free:
                raise OSError(errno.ENOSPC, f"{missing / 1e9:.3g} GB are missing")
            for block in self.store.blocks(shard, start, stop):
                start += len(block)
                if start > self.limit:
                    part.truncate(0)
                    raise self._too_large(shard)
                rest = memoryview(block)
                while rest:
                    rest = rest[part.write(rest) :]
            os.fsync(part.fileno())
            self.store.check_unchanged(shard, stop)
            if shard.digest in ("", _digest(part)):
                return
            part.truncate(0)
            self.store.faults["other bytes"] += 1
        raise ShardChanged(
            f"{redact_url(shard.url)}: the shard must have the bytes that were indexed; "
            f"{DIGEST_ATTEMPTS} downloads in a row differ, with the same length and tag. Put the "
            "old shard back, or index it again: with another --index-folder or "
            "$MASKCO_FAST_CACHE, and in another --run-dir"
        )

    def _too_large(self, shard: RemoteShard) -> ShardTooLarge:
        size = f"{shard.size / 1e9:g}" if shard.size >= 0 else f"more than {self.limit / 1e9:g}"
        return ShardTooLarge(
            f"{redact_url(shard.url)}: a shard must fit into the shard cache, which may hold "
            f"{self.limit / 1e9:g} GB, and this one has {size} GB. Raise --remote.cache-gb, or "
            "leave the shard out"
        )

    def _make_room_for(self, part: io.FileIO, required: bool, stop: threading.Event) -> bool:
        """`_make_room` for a claimed part; closes the part unless there is room."""
        admitted = False
        try:
            admitted = self._make_room(required, stop)
        finally:
            if not admitted:
                if os.fstat(part.fileno()).st_size == 0:
                    Path(str(part.name)).unlink()
                part.close()
        return admitted

    def _make_room(self, required: bool, stop: threading.Event) -> bool:
        """Bring the folder within its limit, counting each part in full.

        Where shards in use prevent that: False at once, or, where room is `required`, True after
        `ROOM_PATIENCE` seconds and a warning.
        """
        began = time.monotonic()
        while True:
            with self._room_lock():
                excess = self._used() - self.limit
                if excess <= 0 or self._remove(excess):
                    return True
            if not required:
                return False
            if time.monotonic() - began > ROOM_PATIENCE:
                self._warn_of_excess()
                return True
            self._wait(stop)

    def _warn_of_excess(self) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"the shards in use at the same time must fit into {self.folder}, which may hold "
                f"{self.limit / 1e9:g} GB; the limit is exceeded. Raise --remote.cache-gb, or give "
                "each job its own --remote.cache-folder",
                stacklevel=2,
            )

    @contextlib.contextmanager
    def _room_lock(self) -> Iterator[None]:
        with (self.folder / "room.lock").open("ab") as file:
            lock(file.fileno())
            yield

    def _entries(self) -> list[tuple[int, int, Path]]:
        """(time of last use, bytes counted, path) of each shard and part."""
        found = []
        for path in self.folder.iterdir():
            ours = _OURS.fullmatch(path.name)
            if ours:
                with contextlib.suppress(FileNotFoundError):
                    facts = path.lstat()
                    reserved = int(ours["size"] or 0)
                    found.append((facts.st_mtime_ns, max(facts.st_size, reserved), path))
        return found

    def _used(self) -> int:
        return sum(size for _, size, _ in self._entries())

    def _remove(self, excess: int) -> bool:
        """Remove unused shards, least recently used first; whether `excess` bytes were freed."""
        for _, size, path in sorted(self._entries()):
            if excess <= 0:
                break
            with contextlib.suppress(FileNotFoundError), io.FileIO(path, "rb") as file:
                if try_lock(file.fileno()) and _is_at(file, path):
                    path.unlink()
                    excess -= size
        return excess <= 0

    @contextlib.contextmanager
    def _explain_full_disk(self) -> Iterator[None]:
        """Add the folder and the remedy to the error of a full disk."""
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise OSError(
                error.errno,
                f"the disk of the shard cache is full ({self.folder}, "
                f"{shutil.disk_usage(self.folder).free / 1e9:.3g} GB free); free some space, lower "
                f"--remote.cache-gb (now {self.limit / 1e9:g}), or set another "
                "--remote.cache-folder",
            ) from error

    @staticmethod
    def _wait(stop: threading.Event) -> None:
        if stop.wait(POLL):
            raise ReadEnded


def _file_name(shard: RemoteShard) -> str:
    """The stem of the shard's file, which differs between versions of a URL's shard."""
    size = "" if shard.is_pipe else str(shard.size)
    version = f"{shard.url}\n{size}\n{shard.tag}".encode("utf-8", "surrogateescape")
    return f"maskco-{hashlib.sha256(version).hexdigest()[:32]}"


def _mark_used(file: io.FileIO) -> None:
    """Set the file's time to now, in nanoseconds: the file system's own clock ticks too slowly."""
    now = time.time_ns()
    os.utime(file.fileno(), ns=(now, now))


def _is_at(file: io.FileIO, path: Path) -> bool:
    """Whether the path still names the open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _digest(file: io.FileIO) -> str:
    digest = hashlib.blake2b(digest_size=16)
    offset = 0
    while data := read_at_offset(file.fileno(), 1 << 20, offset):
        digest.update(data)
        offset += len(data)
    return digest.hexdigest()

"""A bounded folder of whole remote shards, shared by every process of a host that names it.

A shard is `NAME.tar` once it is whole and `NAME.SIZE.part` while it is not; SIZE is what it will
take, which everybody counts. Whoever writes or removes one of these holds an exclusive `flock` on
that very file, and whoever reads one a shared lock: a shard in use is not removed, a shard is
downloaded by one process at a time, and the locks of a process that is killed are gone with it.
`room.lock` is held while it is decided what to remove.
"""

import contextlib
import errno
import fcntl
import hashlib
import io
import os
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from ...kernels.compiler.cache import cache_folder
from ..shards.names import redact_url
from ..shards.reader import read_at
from .config import RemoteConfig
from .errors import ReadEnded, ShardChanged
from .store import NEVER, RemoteShard, RemoteStore

POLL = 0.05
"""Seconds between two looks at what another process or thread is doing."""
ROOM_PATIENCE = 5.0
"""Seconds for which a shard that is needed now waits for others to be let go, before the bound is
exceeded for it."""
ROUNDS = 3
"""Downloads of a shard with other bytes than it had, until that is taken for the truth."""


class Pin:
    """A cached shard in use: it stays until the pin is released."""

    def __init__(self, path: Path, file: io.FileIO) -> None:
        self.path = path
        self._file = file

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes at `offset`, from any thread."""
        return read_at(self._file, str(self.path), offset, size)

    def digest(self) -> str:
        """A hash of the shard's bytes, 32 hex digits."""
        return _digest(self._file)

    def release(self) -> None:
        """Let the shard go, as the one used last. The file closes with the last reader's reference
        to the pin."""
        with contextlib.suppress(OSError):  # the clock of a shard is not worth a run
            _touch(self._file)


class ShardCache:
    """Downloads shards into the folder and hands out pins on them. Any thread's; `store` does the
    reading."""

    def __init__(self, config: RemoteConfig, store: RemoteStore | None = None) -> None:
        self.config = config
        self.store = store or RemoteStore(config)
        self.folder = Path(config.cache_folder) if config.cache_folder else cache_folder("shards")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.bound = int(config.cache_gb * 1e9)
        self._told = False

    def acquire(self, shard: RemoteShard, stop: threading.Event = NEVER) -> Pin:
        """A pin on the shard, downloaded where it is not there.

        Room is made by removing shards that nobody uses, the one used longest ago first. Where
        those in use leave no room, the bound is exceeded, with a warning. FileNotFoundError and
        RemoteError as `RemoteStore.blocks`; ShardChanged where the bytes are not those of `shard`.
        """
        pin = self._acquire(shard, stop, needed=True)
        assert pin is not None
        return pin

    def acquire_if_room(self, shard: RemoteShard, stop: threading.Event = NEVER) -> Pin | None:
        """As `acquire`, but None where the shards in use leave no room."""
        return self._acquire(shard, stop, needed=False)

    def _acquire(self, shard: RemoteShard, stop: threading.Event, *, needed: bool) -> Pin | None:
        name = _name(shard)
        whole = self.folder / f"{name}.tar"
        while True:
            pin = self._pin(whole, shard)
            if pin is not None:
                return pin
            part = self._claim(self.folder / f"{name}.{max(shard.size, 0)}.part", whole)
            if part is None:  # another process or thread is at it
                self._wait(stop)
                continue
            with part:
                path = Path(str(part.name))
                if not self._make_room(needed, stop):
                    if os.fstat(part.fileno()).st_size == 0:
                        path.unlink()
                    return None
                with self._full_disk_named():
                    self._download(part, shard, stop)
                path.replace(whole)

    def _pin(self, whole: Path, shard: RemoteShard) -> Pin | None:
        """A pin on the shard where it is there, whole, and not about to be removed."""
        try:
            file = io.FileIO(whole, "rb")
        except FileNotFoundError:
            return None
        if _lock(file, fcntl.LOCK_SH):
            facts = os.fstat(file.fileno())
            if facts.st_nlink and shard.size in (-1, facts.st_size):
                _touch(file)
                return Pin(whole, file)
            if facts.st_nlink:  # cut by something else than us: downloaded again
                whole.unlink(missing_ok=True)
        file.close()
        return None

    @staticmethod
    def _claim(path: Path, whole: Path) -> io.FileIO | None:
        """The shard's part, open and ours to write; None where others have it, or have just
        finished it."""
        file = io.FileIO(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        if _lock(file, fcntl.LOCK_EX) and _is_at(file, path):
            if not whole.exists():
                file.name = str(path)
                return file
            path.unlink()
        file.close()
        return None

    def _download(self, part: io.FileIO, shard: RemoteShard, stop: threading.Event) -> None:
        """Complete the part from where it ends, and make sure that it is the shard that was wanted."""
        for _ in range(ROUNDS):
            start = os.fstat(part.fileno()).st_size
            if shard.is_pipe or start > shard.size:  # a command's output is known by its end alone
                part.truncate(0)
                start = 0
            part.seek(start)
            for block in self.store.blocks(shard, start, stop):
                rest = memoryview(block)
                while rest:
                    rest = rest[part.write(rest) :]
            os.fsync(part.fileno())
            self.store.check(shard, stop)
            if shard.digest in ("", _digest(part)):
                return
            part.truncate(0)
            self.store.faults["other bytes"] += 1
        raise ShardChanged(
            f"{redact_url(shard.url)}: its bytes are not those that were indexed, {ROUNDS} times in a row, though its "
            "length and tag are. Put the shard back, or have it indexed anew by another --index-folder or cache "
            "($MASKCO_FAST_CACHE) and in another --run-dir"
        )

    def _make_room(self, needed: bool, stop: threading.Event) -> bool:
        """Bring the folder, parts counted in full, within its bound; False where that is impossible
        and not needed."""
        began = time.monotonic()
        while True:
            with self._room_lock():
                excess = self._used() - self.bound
                if excess <= 0 or self._remove(excess):
                    return True
            if not needed:
                return False
            if time.monotonic() - began > ROOM_PATIENCE:
                if not self._told:
                    self._told = True
                    warnings.warn(
                        f"the shards in use at a time do not fit into the {self.bound / 1e9:g} GB of {self.folder}: it "
                        "takes more. Raise --remote.cache-gb, or give each job a --remote.cache-folder of its own",
                        stacklevel=2,
                    )
                return True
            self._wait(stop)

    @contextlib.contextmanager
    def _room_lock(self) -> Iterator[None]:
        with (self.folder / "room.lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _entries(self) -> list[tuple[int, int, Path]]:
        """(time of last use, bytes that it takes or will take, path) of each shard and part."""
        found = []
        for path in self.folder.iterdir():
            if path.suffix in (".tar", ".part"):
                with contextlib.suppress(FileNotFoundError):
                    facts = path.stat()
                    reserved = int(path.name.split(".")[1]) if path.suffix == ".part" else 0
                    found.append((facts.st_mtime_ns, max(facts.st_size, reserved), path))
        return found

    def _used(self) -> int:
        return sum(size for _, size, _ in self._entries())

    def _remove(self, excess: int) -> bool:
        """Remove shards that nobody uses, the one used longest ago first; whether that made up for
        `excess` bytes."""
        for _, size, path in sorted(self._entries()):
            if excess <= 0:
                break
            with contextlib.suppress(FileNotFoundError), io.FileIO(path, "rb") as file:
                if _lock(file, fcntl.LOCK_EX) and _is_at(file, path):
                    path.unlink()
                    excess -= size
        return excess <= 0

    @contextlib.contextmanager
    def _full_disk_named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise OSError(
                error.errno,
                f"the disk of the shard cache is full ({self.folder}); free some of it, lower --remote.cache-gb "
                f"(now {self.bound / 1e9:g}), or name another --remote.cache-folder",
            ) from error

    @staticmethod
    def _wait(stop: threading.Event) -> None:
        if stop.wait(POLL):
            raise ReadEnded("the read was ended")


def _name(shard: RemoteShard) -> str:
    """The stem of the shard's file; another one for another state of the same URL."""
    size = "" if shard.is_pipe else str(shard.size)
    return hashlib.sha256(f"{shard.url}\n{size}\n{shard.tag}".encode()).hexdigest()[:32]


def _lock(file: io.FileIO, kind: int) -> bool:
    """Take a lock that goes with the file's closing; False where others hold one that excludes it."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _touch(file: io.FileIO) -> None:
    """Used now, to the nanosecond: the kernel's own clock stands still for milliseconds."""
    now = time.time_ns()
    os.utime(file.fileno(), ns=(now, now))


def _is_at(file: io.FileIO, path: Path) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _digest(file: io.FileIO) -> str:
    digest = hashlib.blake2b(digest_size=16)
    offset = 0
    while data := os.pread(file.fileno(), 1 << 20, offset):
        digest.update(data)
        offset += len(data)
    return digest.hexdigest()

"""A loader in a process of its own, for trainers whose Python does not share the interpreter lock.

The child makes the whole epoch: order, plan, decoding and rendering, by any backend, up to the seam
where the batches go to a device. Pixels lie in memory that both processes map; everything else of a
batch goes through a socket. The parent keeps the contract of `Loader` and finishes the batches.

Ownership of a slot of the shared memory: the child writes it, sends the batch, and does not touch
it until the parent returns it. The parent returns a slot once nothing there refers to its array.
The memory has no name: the kernel frees it when both processes have ended, even by SIGKILL.
"""

import contextlib
import dataclasses
import mmap
import os
import pickle
import queue
import signal
import socket
import subprocess
import threading
import traceback
import weakref
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, cast

import numpy as np
import torch

from ..kernels.errors import InvalidInput, MaskCoError
from ..kernels.torch_formats import FORMATS
from .buffers import BufferPool, is_unused
from .config import LoaderConfig
from .loader import Loader
from .quarantine import News
from .remote.errors import ReadEnded
from .remote.stream import StreamDataset
from .request import Rendered, Request
from .shards.dataset import Dataset
from .shards.open_dataset import open_dataset
from .system.children import child_command
from .system.portable import known_signals, shared_memory

HELD = 3
"""Slots that the parent may hold beside those that the child renders into: the two of the device
stage and the caller's batch. Batches that the caller keeps longer are copied."""
GRACE = 5.0
"""Seconds that the child has to end before it is killed."""
POLL = 0.1
"""Seconds between two looks at whether the other process lives. A closed socket is seen at once,
but a process forked from the other one may hold it open."""
SIGNALS = known_signals("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
"""Ignored by the child: terminals and schedulers send them to both processes, and the parent may
need more batches before it ends."""


class LoaderProcessDied(MaskCoError, RuntimeError):
    """The loader's process was killed or crashed; a new iterator starts another."""


class ChildTraceback(Exception):
    """Cause of an error raised in the loader's process: its traceback there, as text."""

    def __str__(self) -> str:
        return f"in the loader's process:\n{self.args[0]}"


@dataclass(frozen=True, kw_only=True)
class Opening:
    """What the child needs to make the same loader."""

    dataset: dict[str, Any]
    """Arguments of `open_dataset`."""
    fingerprint: str
    loader: type[Loader]
    """The backend's class."""
    config: LoaderConfig
    max_bad_share: float

    def open(self) -> Loader:
        """Make the loader, in the child. InvalidInput where the shards have changed."""
        dataset = open_dataset(**self.dataset)
        if dataset.fingerprint != self.fingerprint:
            raise InvalidInput(
                "the shards have changed since they were opened: the loader's process, which "
                f"opened them later, finds {len(dataset)} other samples; make the loader again"
            )
        return self.loader(dataset, self.config, max_bad_share=self.max_bad_share)


@dataclass(frozen=True)
class _Run:
    """One pass over the rest of an epoch, as the parent's loader asks for it."""

    number: int
    epoch: int
    consumed: int
    rank: int
    world_size: int
    batches: int
    settings: dict[str, Any]
    """Those of `Loader.config` that a position may have changed."""


@dataclass(frozen=True)
class _Made:
    """A batch of the child's, or the end of a run, or its error; and what the quarantine found."""

    run: int
    request: Request | None = None
    slot: int | None = None
    error: BaseException | None = None
    trace: str = ""
    """Traceback of `error`."""
    news: News = dataclasses.field(default_factory=News)


class _SharedMemory(mmap.mmap):
    """Mapped memory that is page-locked until nothing refers to it."""

    unlock: Callable[[], object] | None = None

    def __del__(self) -> None:
        """Unlock the pages before they are unmapped, or the driver keeps them."""
        if self.unlock is not None:
            self.unlock()


class SharedSlots:
    """Memory of batches, each beginning at a page, that two processes map."""

    def __init__(self, config: LoaderConfig, file: int | None = None) -> None:
        """`file`: descriptor of the memory; None makes it."""
        dtype = np.dtype(FORMATS[config.pixel_dtype].storage)
        length = config.batch_size * config.views.layout.elements * dtype.itemsize
        each = -(-length // mmap.PAGESIZE) * mmap.PAGESIZE
        self.count = config.prefetch + HELD + 1
        self.file = shared_memory("maskco-fast-loader") if file is None else file
        os.ftruncate(self.file, each * self.count)
        self._memory = _SharedMemory(self.file, each * self.count)
        flat = np.frombuffer(self._memory, np.uint8).reshape(self.count, each)
        self.arrays = [pages[:length].view(dtype) for pages in flat]
        self.addresses = {array.ctypes.data: n for n, array in enumerate(self.arrays)}

    def page_lock(self, device: torch.device) -> None:
        """Let a CUDA device copy from the memory without blocking the host."""
        address = self.arrays[0].ctypes.data
        with torch.cuda.device(device):
            runtime = torch.cuda.cudart()
            torch.cuda.check_error(runtime.cudaHostRegister(address, len(self._memory), 0))
        self._memory.unlock = lambda: runtime.cudaHostUnregister(address)


class ProcessLoader(Loader):
    """Any loader's batches, made in a process of its own, bit for bit the same.

    The process starts with the first batch, serves all epochs, and ends with `close`, or when this
    process ends in any way. `quarantine` is up to date with the batches delivered.
    """

    def __init__(self, dataset: Dataset, config: LoaderConfig, opening: Opening) -> None:
        """`dataset`: opened with `opening.dataset`. InvalidInput for a stream."""
        if isinstance(dataset, StreamDataset):
            raise InvalidInput(
                "`loader_process` must be False for a stream, which only one process can read: "
                "set remote.mode to 'cache', or leave loader_process out"
            )
        super().__init__(dataset, config, max_bad_share=opening.max_bad_share)
        # The child stops at the seam too, but needs no device and locks no pages. It forms no
        # batches.
        device = "meta" if config.seam else "cpu"
        threads = config.thread_count
        child = dataclasses.replace(config, threads=threads, device=device, form=None)
        self._opening = dataclasses.replace(opening, config=child)
        self._child: _Child | None = None
        self._runs = 0
        self._interrupted = threading.Event()

    def _arguments(self) -> dict[str, Any]:
        return {"dataset": self.dataset, "config": self.config, "opening": self._opening}

    def _run(self, requests: Iterator[Request]) -> Generator[Rendered, None, None]:
        raise NotImplementedError("the child makes and renders the requests")

    def _rendered(
        self, rank: int, world_size: int, batches: int
    ) -> Generator[Rendered, None, None]:
        self._runs += 1
        settings = {"block": self.config.block, "shard_in_id": self.config.shard_in_id}
        run = _Run(self._runs, self._epoch, self._consumed, rank, world_size, batches, settings)
        if self._child is None:
            self._child = _Child(self._opening, torch.device(self.config.device))
        child = self._child
        child.send(run)
        try:
            while True:
                made = self._receive(child, run)
                if made.error is not None:
                    raise made.error from ChildTraceback(made.trace)
                if made.request is None or made.slot is None:
                    return
                layout = self.config.views.layout
                yield Rendered.on(self._memory(child, made.slot), made.request, layout)
        finally:
            child.send(None)  # ends the run; batches that it has sent are returned as they come

    def _receive(self, child: "_Child", run: _Run) -> _Made:
        """The child's next message of this run; slots of earlier runs are returned."""
        while True:
            child.return_slots()
            try:
                made = child.receive(self._interrupted)
            except EOFError:
                self._child = None
                raise child.death() from None
            self.quarantine.absorb(made.news)
            if made.run == run.number:
                return made
            if made.slot is not None:
                child.send(made.slot)

    def _memory(self, child: "_Child", slot: int) -> torch.Tensor:
        """The slot's memory as a tensor, copied only where the caller holds too many slots."""
        array = child.slots.arrays[slot]
        if child.held <= HELD:
            return self._pool.tensor(array)
        copy = self._pool.take()
        copy[:] = array
        child.send(slot)
        return self._pool.tensor(copy)

    def interrupt(self) -> None:
        """Stop waiting for the child, which may wait for a server; see `Loader.interrupt`."""
        self._interrupted.set()
        super().interrupt()

    def close(self) -> None:
        """End the iterator and the process, and close the shards."""
        super().close()
        self._interrupted.clear()
        if self._child is not None:
            self._child.close()
            self._child = None


def command(connection: int, memory: int) -> list[str]:
    """The child's command line, for a child of this process that inherits both descriptors."""
    return child_command(f"from {__package__}.process import serve\nserve({connection}, {memory})")


class _Child:
    """The parent's end of the loader's process."""

    def __init__(self, opening: Opening, device: torch.device) -> None:
        self.slots = SharedSlots(opening.config)
        if device.type == "cuda":
            self.slots.page_lock(device)
        self._held: set[int] = set()
        mine, theirs = socket.socketpair()
        self._connection = Connection(mine.detach())
        self._lock = threading.Lock()
        # Blocked until the child ignores them: it inherits the mask.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self._process = subprocess.Popen(
                command(theirs.fileno(), self.slots.file),
                pass_fds=(theirs.fileno(), self.slots.file),
                stdin=subprocess.DEVNULL,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
            os.close(self.slots.file)
        # Where the loader is dropped without `close`, and at the interpreter's end.
        self._finalizer = weakref.finalize(self, _end, self._process, self._connection)
        self.send((os.getpid(), opening))

    def send(self, message: Any) -> None:
        """Send from any thread; a child that has died is noticed by `receive`."""
        if isinstance(message, int):
            self._held.discard(message)
        with self._lock, contextlib.suppress(OSError):
            self._connection.send(message)

    def receive(self, interrupted: threading.Event) -> _Made:
        """Wait for the child's next message. EOFError where it died, ReadEnded if interrupted."""
        while not interrupted.is_set():
            alive = self._process.poll() is None
            try:
                if self._connection.poll(POLL if alive else 0):
                    made = cast(_Made, self._connection.recv())
                    if made.slot is not None:
                        self._held.add(made.slot)
                    return made
            except OSError as error:
                raise EOFError from error
            if not alive:
                raise EOFError
        raise ReadEnded

    @property
    def held(self) -> int:
        """Slots that this process holds."""
        return len(self._held)

    def return_slots(self) -> None:
        """Return the slots to which nothing refers any more."""
        for slot in list(self._held):
            if is_unused(self.slots.arrays, slot):
                self.send(slot)

    def death(self) -> LoaderProcessDied:
        """The error for a child that died."""
        self._finalizer()
        code = self._process.returncode
        if code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
            remedy = "if the machine ran out of memory, lower batch_size, prefetch or threads"
        else:
            how = f"ended with exit code {code}"
            remedy = "its output on stderr has the reason"
        return LoaderProcessDied(f"the loader's process {self._process.pid} {how}: {remedy}")

    def close(self) -> None:
        """End the process."""
        self._finalizer()


def _end(process: "subprocess.Popen[bytes]", connection: Connection) -> None:
    """Close the connection, which ends the process; kill it if it does not end."""
    connection.close()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class _SlotPool(BufferPool):
    """The child's buffers: slots that the parent has returned."""

    def __init__(self, slots: SharedSlots, dtype: torch.dtype, check: Callable[[], None]) -> None:
        """`check` raises where the run that takes slots has ended."""
        super().__init__((1,), dtype)
        self.slots = slots
        self.free: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        """Numbers of free slots, and None to wake who waits."""
        self._check = check
        self._taken: set[int] = set()
        for slot in range(slots.count):
            self.free.put(slot)

    def take(self) -> np.ndarray:
        """A free slot's array; waits for the parent to return one."""
        while (slot := self.free.get()) is None:
            self._check()
        self._taken.add(slot)
        return self.slots.arrays[slot]

    def sent(self, slot: int) -> None:
        """The slot is the parent's now."""
        self._taken.discard(slot)

    def reclaim(self) -> None:
        """Free the slots that were taken and not sent; nothing writes to them any more."""
        for slot in self._taken:
            self.free.put(slot)
        self._taken.clear()


class _Stopped(Exception):
    """The parent has ended the run."""


def serve(connection: int, memory: int) -> None:
    """The child's main function, on the descriptors of its socket and of the shared memory."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    to_parent = Connection(connection)
    try:
        parent, opening = to_parent.recv()
    except EOFError:  # the parent ended meanwhile
        return
    _Server(to_parent, memory, parent, opening).serve()


class _Server:
    """The child: makes one run after the other, until the parent is gone."""

    def __init__(self, connection: Connection, memory: int, parent: int, opening: Opening) -> None:
        """`parent`: its process id."""
        self._connection = connection
        self._parent = parent
        self._opening = opening
        self._runs: queue.SimpleQueue[_Run] = queue.SimpleQueue()
        self._newest = 0
        self._ended = 0
        """Numbers of the newest run that was requested, and of the newest that was ended."""
        self._present = 0
        self._leaving = False
        """Whether the present run is being closed."""
        self._loader: Loader | None = None
        slots = SharedSlots(opening.config, memory)
        self._pool = _SlotPool(slots, opening.config.pixel_dtype, self._check)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        """Take the parent's messages; end the process with the parent."""
        while True:
            try:
                while not self._connection.poll(POLL):
                    if os.getppid() != self._parent:
                        os._exit(0)
                message = self._connection.recv()
            except (EOFError, OSError):
                os._exit(0)
            if isinstance(message, _Run):
                self._newest = message.number
                self._runs.put(message)
            elif isinstance(message, int):
                self._pool.free.put(message)
            else:
                self._ended = self._newest
                self._pool.free.put(None)
                if self._loader is not None:
                    self._loader.interrupt()

    def _check(self) -> None:
        """Raise _Stopped where the present run has ended."""
        if self._leaving or self._present <= self._ended:
            raise _Stopped

    def serve(self) -> None:
        """Make the runs in turn."""
        while True:
            run = self._runs.get()
            self._present = run.number
            self._leaving = False
            try:
                if self._loader is None:
                    self._loader = self._opening.open()
                    self._loader._pool = self._pool
                self._make(self._loader, run)
                self._send(_Made(run.number))
            except _Stopped:
                pass
            except BaseException as error:
                trace = traceback.format_exc()
                self._send(_Made(run.number, error=_picklable(error), trace=trace))

    def _make(self, loader: Loader, run: _Run) -> None:
        loader.close()  # takes back the interruption of an earlier run
        self._check()
        loader._epoch, loader._consumed = run.epoch, run.consumed
        loader.config = dataclasses.replace(loader.config, **run.settings)
        rendered = loader._rendered(run.rank, run.world_size, run.batches)
        try:
            for one in rendered:
                self._check()
                slot = self._slot(one)
                self._pool.sent(slot)
                self._send(_Made(run.number, request=one.request, slot=slot))
        finally:
            self._leaving = True
            self._pool.free.put(None)  # wakes a thread that waits for a slot
            rendered.close()
            self._pool.reclaim()

    def _slot(self, rendered: Rendered) -> int:
        """The slot in which the batch lies; other memory is copied into one."""
        layout = self._opening.config.views.layout
        # The first view in memory begins where the memory does.
        slot = self._pool.slots.addresses.get(rendered.views[0].data_ptr())
        if slot is not None:
            return slot
        array = self._pool.take()
        targets = layout.views(self._pool.tensor(array), len(rendered.request.indices))
        for view, target in zip(rendered.views, targets):
            target.copy_(view)
        return self._pool.slots.addresses[array.ctypes.data]

    def _send(self, made: _Made) -> None:
        """Send with the quarantine's news."""
        if self._loader is not None:
            made = dataclasses.replace(made, news=self._loader.quarantine.news())
        try:
            self._connection.send(made)
        except OSError:
            os._exit(0)  # the parent is gone


def _picklable(error: BaseException) -> BaseException:
    """The error itself, or one with its text where it cannot be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error

"""Asynchronous checkpoints: copy the state at once, write the copy in a thread during the steps."""

import os
import pathlib
import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import torch

from maskco_fast.training import checkpoint

NICENESS = 19
"""Niceness of the writing thread, Linux's lowest priority. At 10 it still delays the steps."""


class Snapshot:
    """Copies a state into host memory, which it reuses from one copy to the next.

    Writing to fresh memory costs a page fault every 4 KiB, and page-locking costs more.
    """

    def __init__(self) -> None:
        self._buffers: list[torch.Tensor] = []
        self._copied: list[torch.cuda.Event] = []

    def take(self, state: dict[str, Any]) -> dict[str, Any]:
        """A copy of the state, which stays unchanged until the next `take`.

        CUDA tensors are copied asynchronously on the current stream of their device, before any
        work queued after this call. Call `wait` before reading the copy.
        """
        old_buffers = iter(self._buffers)
        self._buffers = []
        devices = set()

        def copy(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: copy(item) for key, item in value.items()}
            if isinstance(value, list | tuple):
                return type(value)(copy(item) for item in value)
            if not isinstance(value, torch.Tensor):
                return value
            buffer = next(old_buffers, None)
            if buffer is None or not _fits(buffer, value):
                buffer = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
            self._buffers.append(buffer)
            if value.is_cuda:
                devices.add(value.device)
            return buffer.copy_(value.detach(), non_blocking=True)

        taken = copy(state)
        # Each device's own stream: the current device may be another one.
        self._copied = [torch.cuda.current_stream(device).record_event() for device in devices]
        return taken

    def wait(self) -> None:
        """Wait until the copies are complete; called by the thread that reads them."""
        for event in self._copied:
            event.synchronize()


def _fits(buffer: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether `buffer` can hold a copy of `value`; pinned memory if `value` is on CUDA."""
    same_layout = (
        buffer.shape == value.shape
        and buffer.dtype == value.dtype
        and buffer.stride() == value.stride()
    )
    return same_layout and buffer.is_pinned() == value.is_cuda


def _lower_priority() -> None:
    """Give this thread the lowest priority; on Linux niceness is per thread.

    OpenMP's threads synchronise many times a step, so that one thread which loses its core delays
    all of them.
    """
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


class CheckpointWriter:
    """Writes checkpoints in a thread, one at a time.

    A failed write (a full disk) raises its OSError at the next call of `check`, `save` or `finish`.
    As a context manager it waits at the end until the last checkpoint is on the disk.
    """

    def __init__(
        self, folder: pathlib.Path, *, keep: int, keep_steps: Collection[int] = ()
    ) -> None:
        """`keep`, `keep_steps`: as `checkpoint.save` takes them."""
        self._folder = folder
        self._keep = keep
        self._keep_steps = keep_steps
        self._snapshot = Snapshot()
        self._thread = ThreadPoolExecutor(1, "checkpoint", initializer=_lower_priority)
        self._pending: Future[None] | None = None

    def save(self, step: int, state: dict[str, Any], *, before_write: Callable[[], object]) -> None:
        """Write `state` as the checkpoint of `step` in the thread, after calling `before_write`.

        Returns as soon as `state` may change. That is after its copy, or later if the previous
        checkpoint is still being written.
        """
        self.finish()
        copy = self._snapshot.take(state)
        self._pending = self._thread.submit(self._write, step, copy, before_write)

    def _write(self, step: int, state: dict[str, Any], before_write: Callable[[], object]) -> None:
        before_write()
        self._snapshot.wait()
        checkpoint.save(self._folder, step, state, keep=self._keep, keep_steps=self._keep_steps)

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._pending is not None and not self._pending.done()

    def check(self) -> None:
        """Raise the error of a write that has ended; does not wait."""
        if not self.busy:
            self.finish()

    def finish(self) -> None:
        """Wait until the last checkpoint is on the disk."""
        pending = self._pending
        self._pending = None
        if pending is not None:
            pending.result()

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._thread.shutdown()  # waits for a running write
        if error is None:
            self.finish()

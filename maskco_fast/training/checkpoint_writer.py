"""Checkpoints written beside the steps: a copy of the state is taken at once, a thread brings it to
the disk."""

import os
import pathlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import torch

from maskco_fast.training import checkpoint

NICENESS = 19
"""Of the writing thread, in Linux's terms: the least share there is. At 10, steps beside a write
took twice as long."""


class Snapshot:
    """Copies a state into host memory that is kept from one copy to the next.

    First writes to fresh memory cost a page fault every 4 KiB, and page-locking it costs more:
    hence kept.
    """

    def __init__(self) -> None:
        self._buffers: list[torch.Tensor] = []
        self._copied: list[torch.cuda.Event] = []

    def take(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state as it is now: no later step changes it, the next `take` overwrites it.

        CUDA tensors are copied in the order of the current stream, before whatever is queued after
        this call, and the host goes on: `wait` before reading.
        """
        kept, self._buffers = iter(self._buffers), []

        def copy(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: copy(item) for key, item in value.items()}
            if isinstance(value, list | tuple):
                return type(value)(copy(item) for item in value)
            if not isinstance(value, torch.Tensor):
                return value
            buffer = next(kept, None)
            if buffer is None or not _alike(buffer, value):
                buffer = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
            self._buffers.append(buffer)
            return buffer.copy_(value.detach(), non_blocking=True)

        taken = copy(state)
        if torch.cuda.is_initialized():
            self._copied = [torch.cuda.current_stream().record_event()]
        return taken

    def wait(self) -> None:
        """Return when the copies have been made; for the thread that reads them."""
        for event in self._copied:
            event.synchronize()


def _alike(buffer: torch.Tensor, value: torch.Tensor) -> bool:
    same_layout = (
        buffer.shape == value.shape
        and buffer.dtype == value.dtype
        and buffer.stride() == value.stride()
    )
    return same_layout and buffer.is_pinned() == value.is_cuda


def _give_way() -> None:
    """Let this thread have little but the time that others leave: on Linux each thread has a
    niceness of its own.

    OpenMP's threads wait for each other many times a step, so that one which loses its core holds
    up all of them.
    """
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


class CheckpointWriter:
    """Saves checkpoints in a thread, one at a time. As a context manager it ends with the last one
    on the disk.

    A failed write (a full disk) raises its OSError at the next call of `check`, `save` or `finish`.
    """

    def __init__(self, folder: pathlib.Path, *, keep: int) -> None:
        self._folder = folder
        self._keep = keep
        self._snapshot = Snapshot()
        self._thread = ThreadPoolExecutor(1, "checkpoint", initializer=_give_way)
        self._pending: Future[None] | None = None

    def save(self, step: int, state: dict[str, Any], *, first: Callable[[], object]) -> None:
        """Have `state` written as the checkpoint of `step`, after a call of `first`, both in the
        thread.

        Returns when `state` may change again, which is at once unless the checkpoint before is
        still being written.
        """
        self.finish()
        self._pending = self._thread.submit(self._write, step, self._snapshot.take(state), first)

    def _write(self, step: int, state: dict[str, Any], first: Callable[[], object]) -> None:
        first()
        self._snapshot.wait()
        checkpoint.save(self._folder, step, state, keep=self._keep)

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._pending is not None and not self._pending.done()

    def check(self) -> None:
        """Raise what a write that has ended raised; does not wait."""
        if not self.busy:
            self.finish()

    def finish(self) -> None:
        """Wait until the last checkpoint is on the disk."""
        pending, self._pending = self._pending, None
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
        self._thread.shutdown()  # waits for a write that is under way
        if error is None:
            self.finish()

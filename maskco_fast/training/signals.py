"""Ending a run in good order when it is asked to end."""

import queue
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any


class StopSignal:
    """While entered, SIGTERM, SIGUSR1 (what batch systems warn with) and Ctrl-C only set `name`,
    which the loop reads between steps.

    `told` is then called in a thread of its own, for what may not be done in a handler: to wake
    what the loop waits for. A second Ctrl-C interrupts at once. Outside the main thread, where
    Python allows no handlers, it does nothing.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self, told: Callable[[], None]) -> None:
        self.name: str | None = None
        self._told = told
        self._signals: queue.SimpleQueue[bool] = (
            queue.SimpleQueue()
        )  # its put is safe in a handler, Event.set is not
        self._thread = threading.Thread(target=self._tell, name="stop-signal", daemon=True)
        self._before: dict[int, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.name == "SIGINT":
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
        self._signals.put(True)

    def _tell(self) -> None:
        if self._signals.get():
            self._told()

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            self._thread.start()
            self._before = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            # None: a handler that was not set from Python cannot be set back from it.
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        if self._before:
            self._signals.put(False)
            self._thread.join()
        self._before = {}

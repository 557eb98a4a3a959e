"""Graceful stop: SIGTERM, SIGHUP, SIGUSR1 and Ctrl-C end a run between two steps."""

import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from maskco_fast.loaders.system.portable import known_signals

LAUNCHER_POLL = 1.0
"""Seconds between two checks whether the launcher is alive."""
_HANGUP = getattr(signal, "SIGHUP", None)


def stop_with_launcher(poll: float = LAUNCHER_POLL) -> None:
    """Send this process SIGTERM once the process that started it has ended.

    For ranks of torchrun: killed, it leaves them running, and they would hold the run folder. All
    of them stop, and the run is saved as after any SIGTERM.
    """
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(poll)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="launcher-watch", daemon=True).start()


class StopSignal:
    """Context manager that catches the `SIGNALS` and stores the signal's `name`.

    The training loop reads `name` between steps. Batch systems send SIGUSR1 as a warning. A closed
    terminal sends SIGHUP, which a process started with `nohup` goes on ignoring. A second
    Ctrl-C raises KeyboardInterrupt at once. Outside the main thread, where Python allows no signal
    handlers, this class does nothing.

    After a signal, `on_signal` is called in a separate thread. There it may take locks, which a
    signal handler must not, for example to wake the thread that waits for a batch.
    """

    SIGNALS = known_signals("SIGTERM", "SIGHUP", "SIGUSR1", "SIGINT")

    def __init__(self, on_signal: Callable[[], None]) -> None:
        self.name: str | None = None
        self._on_signal = on_signal
        # SimpleQueue.put is reentrant and so safe in a signal handler; Event.set is not.
        self._signals: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._notify, name="stop-signal", daemon=True)
        self._previous_handlers: dict[int, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.name == "SIGINT":
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
        self._signals.put(True)

    def _notify(self) -> None:
        """Wait for the first signal, or for False from `__exit__`."""
        if self._signals.get():
            self._on_signal()

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            self._thread.start()
            self._previous_handlers = {
                number: signal.signal(number, self._handle)
                for number in self.SIGNALS
                if not (number == _HANGUP and signal.getsignal(number) == signal.SIG_IGN)
            }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous_handlers.items():
            # None: the handler was installed from C, and Python cannot restore it.
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        if self._previous_handlers:
            self._signals.put(False)
            self._thread.join()
        self._previous_handlers = {}

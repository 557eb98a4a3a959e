"""Shards that are a shell command's output, as webdataset's pipe: names them."""

import contextlib
import os
import select
import signal
import subprocess
import tempfile
import threading
import time

from .errors import ReadEnded, UnusableCommand

STOP_POLL = 0.05
"""Seconds between two looks whether a read is still wanted."""


class Pipe:
    """A shell command whose output is a shard."""

    STEP = 1 << 20

    def __init__(self, command: str, timeout: float) -> None:
        self._command, self._timeout = command, timeout

    def __enter__(self) -> "Pipe":
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            self._command,
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,  # so that the whole pipeline can be ended
        )
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.stdout.close()  # type: ignore[union-attr]
        self._process.wait()
        self._errors.close()

    def read(self, stop: threading.Event) -> bytes:
        """Up to `STEP` bytes; none at the end. TimeoutError where nothing comes for `timeout`
        seconds."""
        output = self._process.stdout.fileno()  # type: ignore[union-attr]
        until = time.monotonic() + self._timeout
        while not stop.is_set():
            if select.select([output], [], [], STOP_POLL)[0]:
                return os.read(output, self.STEP)
            if time.monotonic() > until:
                raise TimeoutError
        raise ReadEnded("the read was ended")

    def check(self) -> None:
        """SubprocessError, with what the command said, unless it ended well."""
        code = self._process.wait(self._timeout)
        if code:
            self._errors.seek(0)
            said = self._errors.read()[-300:].decode(errors="replace").strip().rpartition("\n")[2]
            text = f"exit code {code}{': ' if said else ''}{said}"
            raise UnusableCommand(text) if code in (126, 127) else subprocess.SubprocessError(text)

"""`Pipe`: a shard that is the output of a shell command, as in webdataset's pipe: names."""

import contextlib
import os
import select
import subprocess
import tempfile
import threading
import time

from ..shards.names import redact_output
from ..system.portable import kill_group
from .errors import CommandFailed, ReadEnded, UnusableCommand

STOP_POLL = 0.05
"""Interval at which a waiting read checks its stop event, seconds."""


class Pipe:
    """A running shell command whose output is a shard. Use as a context manager."""

    STEP = 1 << 20
    """Largest read, bytes."""

    def __init__(self, command: str, timeout: float) -> None:
        self._command = command
        self._timeout = timeout

    def __enter__(self) -> "Pipe":
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            self._command,
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,  # a process group, so that __exit__ can kill every stage
        )
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            kill_group(self._process)
        self._process.stdout.close()  # type: ignore[union-attr]
        self._process.wait()
        self._errors.close()

    def read(self, stop: threading.Event) -> bytes:
        """Up to `STEP` bytes; empty at the end of the output.

        Raises TimeoutError after `timeout` seconds without output, ReadEnded once `stop` is set.
        """
        output = self._process.stdout.fileno()  # type: ignore[union-attr]
        until = time.monotonic() + self._timeout
        while not stop.is_set():
            if select.select([output], [], [], STOP_POLL)[0]:
                return os.read(output, self.STEP)
            if time.monotonic() > until:
                raise TimeoutError
        raise ReadEnded

    def check_exit(self) -> None:
        """Raise CommandFailed, with the last line of stderr, unless the exit code is 0."""
        try:
            code = self._process.wait(self._timeout)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError from error
        if code:
            self._errors.seek(0, os.SEEK_END)
            self._errors.seek(max(self._errors.tell() - 300, 0))
            last_line = self._errors.read().decode(errors="replace").strip().rpartition("\n")[2]
            last_line = redact_output(self._command, last_line)
            text = f"exit code {code}{': ' if last_line else ''}{last_line}"
            raise UnusableCommand(text) if code in (126, 127) else CommandFailed(text)

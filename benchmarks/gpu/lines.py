"""Named results of a part, written as JSON after every one: a part that is cut off keeps them."""

import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

MAX_TEXT = 1500
"""Characters kept of an error."""


class Lines:
    """Results by name, printed and written as they come."""

    def __init__(self, path: pathlib.Path | None) -> None:
        """`path`: the JSON file; None prints only."""
        self.found: dict[str, Any] = {}
        self._path = path

    def note(self, name: str, value: Any, *, shown: Any = None) -> None:
        """Keep a result. `shown`: printed in its place, where it is long."""
        self.found[name] = value
        text = json.dumps(value if shown is None else shown, default=str)
        print(f"{name}: {text}", flush=True)
        if self._path is not None:
            partial = self._path.with_name(f".{self._path.name}.partial")
            partial.write_text(json.dumps(self.found, indent=1, default=str) + "\n")
            os.replace(partial, self._path)

    def attempt(self, name: str, make: Callable[[], Any]) -> None:
        """Keep what `make` returns; an error becomes the result, and the next one goes on."""
        try:
            self.note(name, make())
        except Exception as error:  # one line's failure is that line's result
            self.note(name, {"failed": f"{type(error).__name__}: {error}"[:MAX_TEXT]})

    @property
    def failed(self) -> list[str]:
        """Names of the results that are errors."""
        return [
            name
            for name, value in self.found.items()
            if isinstance(value, dict) and "failed" in value
        ]

"""The progress callback of long work: indexing, writing, drawing, downloading."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""`progress(what, done, total)`, such as ("shards indexed", 3, 332). Called from any thread; `done`
never decreases."""


def no_progress(what: str, done: int, total: int) -> None:
    """The default: report nothing."""

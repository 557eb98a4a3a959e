"""Progress of long work: the one form in which indexing, writing, drawing and downloading report
it."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""`progress(what, done, total)`: "shards indexed", 3, 332. Called now and then, from any thread,
`done` never falling."""


def no_progress(what: str, done: int, total: int) -> None:
    """Report nothing: the default."""

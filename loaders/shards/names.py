"""Names of shards: patterns expanded to paths, URLs recognised and redacted, images listed."""

import glob
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import braceexpand

_ANGLE_RANGE = re.compile(r"<(\d+)\.\.(\d+)>")
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}
)
PIPE = "pipe:"
REMOTE = ("http://", "https://", "s3://", PIPE)
"""How the names of shards begin that are not files."""


def is_remote(name: str) -> bool:
    """Whether a shard is named by a URL or is a command's output."""
    return name.startswith(REMOTE)


def is_beton(name: str) -> bool:
    """Whether a shard is a .beton file, by its suffix."""
    return name.endswith(".beton")


def redact_url(name: str) -> str:
    """A shard's name as it may stand in a log: a URL without its user and its query, which may hold
    secrets."""
    if name.startswith(PIPE) or not is_remote(name):
        return name
    scheme, _, rest = name.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path.partition('?')[0]}"


def expand(shards: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[str]:
    """The shards that a pattern, or a list of patterns, names: in the order given, a glob's matches
    sorted.

    Understands paths, globs, `{0000..0331}` with the rest of bash's braces, and `<0000..0331>`. A
    folder of tar files stands for those; any other folder is itself a shard, its images found
    recursively. Names that begin as `REMOTE` says are expanded but not looked up. FileNotFoundError
    names each pattern that matches nothing and each shard that is missing.
    """
    patterns = [shards] if isinstance(shards, str | os.PathLike) else list(shards)
    if not patterns:
        raise FileNotFoundError(
            "no shards were given; name tar files such as 'cc3m-{0000..0331}.tar', or a folder"
        )
    paths: list[str] = []
    missing: list[str] = []
    names = [os.fspath(pattern) for pattern in patterns]
    for pattern in names:
        for name in _expand_ranges(pattern):
            found = [name] if is_remote(name) else _expand_path(name)
            paths.extend(found)
            if not found:
                missing.append(name)
    if missing:
        listed = ", ".join(missing[:5]) + (
            f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        )
        raise FileNotFoundError(
            f"{len(missing)} of {len(missing) + len(paths)} shards do not exist: {listed}. "
            f"The pattern was {', '.join(names)}, seen from {os.getcwd()}"
        )
    return paths


def _expand_ranges(pattern: str) -> Iterator[str]:
    braces = _ANGLE_RANGE.sub(r"{\1..\2}", pattern)
    if os.path.exists(pattern):  # a name that happens to hold braces
        yield pattern
    else:
        yield from braceexpand.braceexpand(braces)


def _expand_path(name: str) -> list[str]:
    if os.path.isdir(name):
        return sorted(glob.glob(os.path.join(glob.escape(name), "*.tar"))) or [name]
    if os.path.exists(name):
        return [name]
    return [match for match in sorted(glob.glob(name)) if os.path.isfile(match)]


def image_files(folder: str) -> list[str]:
    """Names of the images under a folder, relative to it, sorted, hidden files left out."""
    names = []
    for path in Path(folder).rglob("*"):
        relative = path.relative_to(folder)
        if path.suffix.lower() in IMAGE_SUFFIXES and not any(
            part.startswith(".") for part in relative.parts
        ):
            names.append(relative.as_posix())
    return sorted(names)

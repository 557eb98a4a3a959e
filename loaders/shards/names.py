"""Names of shards: patterns expanded to paths, kinds told apart, URLs redacted, images listed."""

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
"""Prefixes of shards that are not files."""


def is_remote(name: str) -> bool:
    """Whether a shard's name is a URL or a `pipe:` command."""
    return name.startswith(REMOTE)


def is_beton(name: str) -> bool:
    """Whether a shard is a .beton file, by the suffix of its name without a URL's query."""
    return redact_url(name).endswith(".beton")


def redact_url(name: str) -> str:
    """A shard's name for logs: a URL without user and query, which may hold secrets."""
    if name.startswith(PIPE) or not is_remote(name):
        return name
    scheme, _, rest = name.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path.partition('?')[0]}"


def expand(shards: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[str]:
    """Expand a pattern or a list of patterns to shard names, in the order given.

    Patterns are paths, globs (matches sorted), bash braces such as `{0000..0331}`, or
    `<0000..0331>`. A folder that holds tar files expands to them; any other folder is itself a
    shard, its images found recursively. URLs and commands (see `REMOTE`) are expanded but not
    looked up. Raises FileNotFoundError naming missing shards and patterns without a match.
    """
    patterns = [shards] if isinstance(shards, str | os.PathLike) else list(shards)
    if not patterns:
        raise FileNotFoundError(
            "no shards were given: pass tar files such as 'cc3m-{0000..0331}.tar', or a folder"
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
            f"Check the pattern {', '.join(names)}; the working directory is {os.getcwd()}"
        )
    return paths


def _expand_ranges(pattern: str) -> Iterator[str]:
    braces = _ANGLE_RANGE.sub(r"{\1..\2}", pattern)
    if os.path.exists(pattern):  # a file whose name contains braces
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
    """Sorted names of the images under a folder, relative to it; hidden files are left out."""
    names = []
    for path in Path(folder).rglob("*"):
        relative = path.relative_to(folder)
        if path.suffix.lower() in IMAGE_SUFFIXES and not any(
            part.startswith(".") for part in relative.parts
        ):
            names.append(relative.as_posix())
    return sorted(names)

"""Names of shards: patterns expanded to addresses, kinds recognised, secrets redacted.

The one place where what a user spelled becomes an address. A URL or a command is one only if it is
spelled out: what a glob or a listing finds, and any file that exists, is made an absolute path,
which no name can turn into an address.
"""

import glob
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import braceexpand

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}
)
PIPE = "pipe:"
_FILE = re.compile(r"^file:(//(localhost)?(?=/))?", re.IGNORECASE)
_SCHEME = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]+::)*[A-Za-z][A-Za-z0-9+.-]+://")
_URL = re.compile(_SCHEME.pattern + r"[^\s'\"<>|]+")
_TAR = re.compile(r"\.(tar(\.(gz|bz2|xz|zst|lz4|Z))?|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)
_ANGLE_RANGE = re.compile(r"<(\d+)\.\.(\d+)>")
HIDDEN = "…"

MAX_NAME = 1024
"""Longest name of an image that is used, bytes: file systems stop at 255 a part. An index keeps
all names of a shard at the width of the longest."""


def is_image(suffix: str) -> bool:
    """Whether a file is an image, by its suffix such as "jpg", ".JPG" or "depth.png"."""
    return f".{suffix.rpartition('.')[2].lower()}" in IMAGE_SUFFIXES


def is_remote(name: str) -> bool:
    """Whether a shard's address is a URL or a `pipe:` command, and not a file."""
    return name.startswith(PIPE) or _SCHEME.match(name) is not None


def is_beton(name: str) -> bool:
    """Whether a shard is a .beton file, by the suffix of its name without a URL's query."""
    return not name.startswith(PIPE) and redact_url(name).endswith(".beton")


def redact_url(name: str) -> str:
    """A shard's address for whatever is written, printed or raised, without what may be a secret.

    Of a URL, the user, query and fragment are left out; of a command, all words but the program's
    name, URLs and tar files. Paths stay as they are.
    """
    if name.startswith(PIPE):
        return PIPE + _redact_command(name.removeprefix(PIPE))
    if not is_remote(name):
        return name
    scheme, _, rest = name.partition("://")
    rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    host, slash, path = rest.partition("/")
    if "@" in path and re.search(r":(?!\d*$)", host):  # a password with a slash in it
        host, slash, path = rest.rpartition("@")[2].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def _redact_command(command: str) -> str:
    shown: list[str] = []
    for number, word in enumerate(command.split()):
        url = _URL.search(word)
        if url:
            shown.append(redact_url(url.group()))
        elif (number == 0 and re.fullmatch(r"[\w.+/-]+", word)) or (
            _TAR.search(word) and re.fullmatch(r"[\w.+/-]+", word)
        ):
            shown.append(word)
        elif not shown or shown[-1] != HIDDEN:
            shown.append(HIDDEN)
    return " ".join(shown)


def redact_text(text: str) -> str:
    """Text that may hold URLs, such as a command's message, with each URL redacted."""
    return _URL.sub(lambda url: redact_url(url.group()), text)


def redact_output(command: str, output: str) -> str:
    """What a command has written, without URLs' secrets and its own words that may be secrets."""
    shown = redact_url(PIPE + command)
    output = redact_text(output)
    for word in re.split(r"[\s'\"=:@&?|;]+", command):
        if len(word) >= _SECRET_LENGTH and word not in shown:
            output = output.replace(word, HIDDEN)
    return output


_SECRET_LENGTH = 4
"""Shorter words of a command are no secrets: options, and words of any message."""


def redact(value: Any) -> Any:
    """A copy of nested dicts, lists and tuples in which every address is redacted."""
    if isinstance(value, str):
        return redact_url(value)
    if isinstance(value, dict):
        return {name: redact(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(redact(item) for item in value)
    return value


def expand(shards: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[str]:
    """Expand a pattern or a list of patterns to shards' addresses, in the order given.

    Patterns are paths, globs (matches sorted), bash braces such as `{0000..0331}`, or
    `<0000..0331>`; `~` is the user's folder. A folder that holds tar files expands to them; any
    other folder is itself a shard, its images found recursively. Paths are made absolute. URLs and
    commands are expanded but not looked up. Raises FileNotFoundError naming missing shards and
    patterns without a match.
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
        if not os.path.lexists(pattern):  # an existing file's name is a path, whatever it is
            pattern = _FILE.sub("", pattern)
            if is_remote(pattern):
                paths.extend(map(_as_address, _expand_ranges(pattern)))
                continue
        folder, rest = _split_existing(os.path.expanduser(pattern))
        for name in _expand_ranges(rest) if rest else [""]:
            found = _expand_path(folder, name)
            paths.extend(found)
            if not found:
                missing.append(folder + name)
    if missing:
        listed = ", ".join(map(redact_url, missing[:5])) + (
            f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        )
        raise FileNotFoundError(
            f"{len(missing)} of {len(missing) + len(paths)} shards do not exist: {listed}. "
            f"Check the pattern {', '.join(map(redact_url, names))}; the working directory is "
            f"{os.getcwd()}"
        )
    return paths


def _as_address(name: str) -> str:
    """A URL with its scheme in lower case."""
    if name.startswith(PIPE):
        return name
    scheme, _, rest = name.partition("://")
    return f"{scheme.lower()}://{rest}"


def _expand_ranges(pattern: str) -> Iterator[str]:
    try:
        yield from braceexpand.braceexpand(_ANGLE_RANGE.sub(r"{\1..\2}", pattern))
    except ValueError:  # braces that do not pair: the name itself
        yield pattern


def _split_existing(pattern: str) -> tuple[str, str]:
    """Split a pattern into the part that exists as it is spelled, with its slash, and the rest.

    The first part is a path even if it has braces or brackets in it.
    """
    if os.path.lexists(pattern):
        return pattern, ""
    end = 0
    for match in re.finditer(r"[/\\]+" if os.sep == "\\" else "/+", pattern):
        if not os.path.isdir(pattern[: match.end()]):
            break
        end = match.end()
    return pattern[:end], pattern[end:]


def _expand_path(folder: str, name: str) -> list[str]:
    """The shards that `name`, a path or a glob, stands for; `folder` is taken as it is spelled."""
    path = folder + name
    if os.path.exists(path):
        matches = [path]
    elif os.path.lexists(path):  # a broken link
        matches = []
    else:
        matches = sorted(glob.glob(glob.escape(folder) + name))
    return [shard for match in matches for shard in _shards_at(_absolute(match))]


def _absolute(path: str) -> str:
    """The path as `Path.absolute` gives it, which takes long for those that are so already."""
    if path.startswith("/") and "//" not in path and "/." not in path and path[-1] != "/":
        return path
    return str(Path(path).absolute())


def _shards_at(path: str) -> list[str]:
    """A file; the tars of a folder; a folder without tars."""
    if not os.path.isdir(path):
        return [path]
    names = [name for name in os.listdir(path) if not name.startswith(".")]
    tars = sorted(name for name in names if _TAR.search(name))
    images = sum(is_image(os.path.splitext(name)[1]) for name in names)
    if tars and images:
        warnings.warn(
            f"{path} holds tar files, which are read, and {images} images beside them, which are "
            "not: move the images into a folder of their own",
            stacklevel=4,
        )
    return [os.path.join(path, name) for name in tars] or [path]


def image_files(folder: str) -> tuple[list[str], list[tuple[str, str]]]:
    """The images under a folder: (their names, (name, reason) of what cannot be used), sorted.

    Names are relative to the folder, with slashes. Links are followed, as torchvision does, unless
    they lead back to a folder around them. Hidden files and folders are left out.
    """
    names: list[str] = []
    rejected: list[tuple[str, str]] = []
    root = os.stat(folder)
    pending = [("", frozenset({(root.st_dev, root.st_ino)}))]
    while pending:
        inner, around = pending.pop()
        try:
            with os.scandir(os.path.join(folder, inner)) as listing:
                entries = [entry for entry in listing if not entry.name.startswith(".")]
        except OSError as error:
            rejected.append((inner or ".", f"cannot be read: {error.strerror}"))
            continue
        for entry in entries:
            name = f"{inner}{entry.name}"
            has_image = is_image(os.path.splitext(entry.name)[1])
            try:
                if entry.is_dir():
                    facts = os.stat(entry.path)
                    place = (facts.st_dev, facts.st_ino)
                    if place not in around:
                        pending.append((f"{name}/", around | {place}))
                elif has_image:
                    reason = _unusable_file(entry, name)
                    if reason is None:
                        names.append(name)
                    else:
                        rejected.append((name, reason))
                elif _TAR.search(name):
                    rejected.append((name, "a tar file among images: give it as a shard itself"))
            except OSError as error:  # it has vanished, or a link leads in a circle
                if has_image:
                    rejected.append((name, f"cannot be read: {error.strerror}"))
    return sorted(names), sorted(rejected)


def _unusable_file(entry: "os.DirEntry[str]", name: str) -> str | None:
    """Why a file in a folder cannot be used; None where it is a regular one."""
    if entry.is_symlink() and not os.path.exists(entry.path):
        return "a broken link"
    if not entry.is_file():
        return "not a regular file"
    if len(os.fsencode(name)) > MAX_NAME:
        return f"its name has more than {MAX_NAME} bytes"
    return None

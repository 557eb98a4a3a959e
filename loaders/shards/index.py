"""The index: where every usable sample lies, how large it is, and why the others are not used.

Made once a shard and kept in the cache folder; used again while the shard's size and time of change
agree.
"""

import functools
import hashlib
import json
import os
import tarfile
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...kernels import headers
from ...kernels.compiler.cache import cache_folder
from ...kernels.tar import BAD_HEADER, CUT, DATA, SIZE, WANTS_TARFILE, walk_tar
from ..quarantine import BadSample
from ..remote.store import RemoteShard
from ..system.cpus import usable_cpus
from ..system.files import write_atomically
from ..system.progress import Progress, no_progress
from .decode import MAX_PIXELS, BadImage, decode_pillow, image_size
from .names import IMAGE_SUFFIXES, image_files, is_remote

FORMAT_VERSION = 1
"""Counts up when what is stored changes; older files are made anew."""

SAMPLE_DTYPE = np.dtype(
    [
        ("sample_id", np.int64),
        ("offset", np.int64),
        ("size", np.int64),
        ("height", np.int32),
        ("width", np.int32),
        ("target", np.int64),
        ("format", np.uint8),
    ]
)
"""A usable sample: its key's hash; where its bytes lie; pixels; label or -1; format
(`kernels.headers`)."""


_PARSING = threading.Lock()
"""np.load parses with `ast`, which in CPython 3.11 fails now and then where two threads do so
(gh-106905)."""


def sample_id(key: str) -> int:
    """The 63-bit hash of a key that its plan is drawn from: the same on every machine and for every
    loader."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") >> 1


def split_name(name: str) -> tuple[str, str]:
    """Key and suffix of a member, by webdataset's rule: the suffix starts at the first dot of the
    file's name."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix.lower()


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """What is known of one shard."""

    path: str
    samples: np.ndarray
    """(n,) SAMPLE_DTYPE, the usable samples in the shard's order."""
    names: np.ndarray
    """(n,) bytes: the image members' names."""
    bad: tuple[BadSample, ...]
    remote: RemoteShard | None = None
    """What was read, where `path` is a URL or a command."""

    def key(self, number: int) -> str:
        """The key of usable sample `number`."""
        return split_name(self.names[number].decode())[0]

    def file(self, number: int) -> str:
        """The path of the file that holds usable sample `number`."""
        return (
            os.path.join(self.path, self.names[number].decode()) if self._is_folder else self.path
        )

    @functools.cached_property
    def _is_folder(self) -> bool:
        return os.path.isdir(self.path)


@dataclass
class _Found:
    """The image members of one shard as they are found, before they are judged."""

    names: list[str]
    offsets: list[int]
    sizes: list[int]
    targets: list[int]
    bad: list[BadSample]


def index_shard(path: str) -> ShardIndex:
    """Read one tar shard or folder of images. Only images that look damaged are decoded."""
    return _index_folder(path) if os.path.isdir(path) else _index_tar(path)


def _index_tar(path: str) -> ShardIndex:
    if os.path.getsize(path) == 0:
        return _nothing(path, "empty file")
    data = np.memmap(path, np.uint8, mode="r")
    table, ending = walk_tar(data)
    if len(table) == 0 and ending != WANTS_TARFILE:
        return _nothing(path, "not a tar archive" if ending == BAD_HEADER else "holds no members")
    names, table = _member_names(path, data, table, whole=ending == WANTS_TARFILE)
    found = _find_images(path, names, table, data)
    if ending == CUT and not (found.offsets and found.offsets[-1] + found.sizes[-1] > len(data)):
        found.bad.append(BadSample(shard=path, key="", reason="shard cut short", found="index"))
    elif ending == BAD_HEADER:
        found.bad.append(
            BadSample(shard=path, key="", reason="shard damaged from here on", found="index")
        )
    return _judge(path, found, data)


def _nothing(path: str, reason: str) -> ShardIndex:
    bad = (BadSample(shard=path, key="", reason=reason, found="index"),)
    return ShardIndex(
        path=path, samples=np.empty(0, SAMPLE_DTYPE), names=np.empty(0, "S1"), bad=bad
    )


def _member_names(
    path: str, data: np.ndarray, table: np.ndarray, *, whole: bool
) -> tuple[list[str], np.ndarray]:
    """Names of the members, by the plain header where it holds them and by `tarfile` where it does
    not."""
    if whole:
        with tarfile.open(path, "r:") as archive:
            members = [member for member in archive if member.isreg()]
        rows = [[member.offset, member.offset_data, member.size, -1] for member in members]
        return [member.name for member in members], np.array(rows, np.int64).reshape(-1, 4)
    names = []
    with tarfile.open(path, "r:") as archive:
        for header, _, _, extended in table.tolist():
            if extended >= 0:
                archive.fileobj.seek(extended)  # type: ignore[union-attr]
                archive.offset = extended  # type: ignore[attr-defined]
                names.append(tarfile.TarInfo.fromtarfile(archive).name)
                continue
            block = bytes(data[header : header + 512])
            name = block[:100].partition(b"\0")[0]
            if block[257:263] == b"ustar\0" and block[345]:
                name = block[345:500].partition(b"\0")[0] + b"/" + name
            names.append(name.decode("utf-8", "surrogateescape"))
    return names, table


def _find_images(path: str, names: Sequence[str], table: np.ndarray, data: np.ndarray) -> _Found:
    """Group members into samples by key, and take the first image of each and its label."""
    images: dict[str, int] = {}
    labels: dict[str, int] = {}
    keys: dict[str, None] = {}
    for number, name in enumerate(names):
        key, suffix = split_name(name)
        keys[key] = None
        if "." + suffix.rpartition(".")[2] in IMAGE_SUFFIXES:
            images.setdefault(key, number)
        elif suffix == "cls":
            offset, size = int(table[number, DATA]), int(table[number, SIZE])
            text = bytes(data[offset : offset + min(size, 20)]).strip()
            if text.lstrip(b"-").isdigit():
                labels[key] = int(text)
    bad = [
        BadSample(shard=path, key=key, reason="no image member", found="index")
        for key in keys
        if key not in images
    ]
    numbers = np.fromiter(images.values(), np.int64, len(images))
    return _Found(
        names=[names[number] for number in images.values()],
        offsets=table[numbers, DATA].tolist(),
        sizes=table[numbers, SIZE].tolist(),
        targets=[labels.get(key, -1) for key in images],
        bad=bad,
    )


def _index_folder(path: str) -> ShardIndex:
    """A folder of images: every file is read whole, its label the number of its first subfolder."""
    names = image_files(path)
    if not names:
        return _nothing(path, "holds no images")
    classes = {
        name: number
        for number, name in enumerate(sorted({n.split("/")[0] for n in names if "/" in n}))
    }
    parts = []
    for name in names:
        data = np.fromfile(os.path.join(path, name), np.uint8)
        target = classes[name.split("/")[0]] if "/" in name else -1
        parts.append(_judge(path, _Found([name], [0], [len(data)], [target], []), data))
    return ShardIndex(
        path=path,
        samples=np.concatenate([part.samples for part in parts]),
        names=np.concatenate([part.names for part in parts]),
        bad=tuple(entry for part in parts for entry in part.bad),
    )


def judge_image(path: str, name: str, data: bytes, target: int) -> ShardIndex:
    """The index of one image by itself, as if it were all that the shard `path` holds."""
    return _judge(
        path, _Found([name], [0], [len(data)], [target], []), np.frombuffer(data, np.uint8)
    )


def _judge(path: str, found: _Found, data: np.ndarray) -> ShardIndex:
    """Scan the headers of the images found; ask Pillow about those that the scan cannot vouch for."""
    n = len(found.names)
    offsets, sizes = np.array(found.offsets, np.int64), np.array(found.sizes, np.int64)
    formats, verdicts = np.empty(n, np.uint8), np.empty(n, np.uint8)
    heights, widths = np.empty(n, np.int32), np.empty(n, np.int32)
    headers.scan_headers(data, offsets, sizes, formats, heights, widths, verdicts)
    good, bad = [], list(found.bad)
    suspicious = (verdicts != headers.OK) | (heights.astype(np.int64) * widths > MAX_PIXELS)
    for number in range(n):
        if suspicious[number]:
            try:
                if offsets[number] + sizes[number] > len(data):
                    raise BadImage("shard cut short")
                if verdicts[number] == headers.OK:
                    raise BadImage("too many pixels")
                formats[number], heights[number], widths[number] = _second_opinion(
                    bytes(data[offsets[number] : offsets[number] + sizes[number]]), verdicts[number]
                )
            except BadImage as reason:
                key = split_name(found.names[number])[0]
                bad.append(BadSample(shard=path, key=key, reason=str(reason), found="index"))
                continue
        good.append(number)
    samples = np.empty(len(good), SAMPLE_DTYPE)
    samples["sample_id"] = [sample_id(split_name(found.names[number])[0]) for number in good]
    samples["target"] = [found.targets[number] for number in good]
    samples["offset"], samples["size"] = offsets[good], sizes[good]
    samples["height"], samples["width"], samples["format"] = (
        heights[good],
        widths[good],
        formats[good],
    )
    names = np.array(
        [found.names[number].encode("utf-8", "surrogateescape") for number in good] or [b""]
    )[: len(good)]
    return ShardIndex(path=path, samples=samples, names=names, bad=tuple(bad))


def _second_opinion(data: bytes, verdict: int) -> tuple[int, int, int]:
    """(format, height, width) where Pillow takes an image that the header scan did not; BadImage
    where it does not.

    What looks damaged is decoded in full, since many a decoder draws what a truncated file still
    holds.
    """
    if verdict == headers.EMPTY:
        raise BadImage("empty")
    height, width = image_size(data)
    if verdict != headers.NOT_AN_IMAGE:
        decode_pillow(data)
    return headers.OTHER, height, width


def cache_file(path: str, folder: Path) -> Path:
    """Where the index of a shard is kept."""
    name = path if is_remote(path) else os.path.abspath(path)
    return folder / (hashlib.sha256(name.encode()).hexdigest()[:32] + ".npz")


def _stamp(path: str) -> str:
    """What must agree for an index to be used again; a folder's is that of its listing."""
    if os.path.isdir(path):
        facts = [(name, os.stat(os.path.join(path, name))) for name in image_files(path)]
        listing = "\n".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in facts)
        return f"{FORMAT_VERSION} folder {hashlib.sha256(listing.encode()).hexdigest()}"
    stat = os.stat(path)
    return f"{FORMAT_VERSION} {stat.st_size} {stat.st_mtime_ns}"


def read_cached(file: Path, stamp: str, path: str) -> ShardIndex | None:
    """The stored index of `path`; None where there is none, or none of that stamp."""
    try:
        with _PARSING, np.load(file, allow_pickle=False) as stored:
            if str(stored["stamp"]) != stamp:
                return None
            bad = tuple(
                BadSample(**{**entry, "shard": path}) for entry in json.loads(str(stored["bad"]))
            )
            remote = (
                RemoteShard(url=path, **json.loads(str(stored["remote"])))
                if "remote" in stored
                else None
            )
            return ShardIndex(
                path=path, samples=stored["samples"], names=stored["names"], bad=bad, remote=remote
            )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, TypeError) as error:
        warnings.warn(
            f"the index of {path} in {file} cannot be read ({error}); it is made anew", stacklevel=2
        )
        return None


def write_cached(file: Path, stamp: str, index: ShardIndex) -> None:
    """Store an index."""
    bad = json.dumps(
        [{"key": entry.key, "reason": entry.reason, "found": entry.found} for entry in index.bad]
    )
    arrays = {
        "stamp": np.array(stamp),
        "samples": index.samples,
        "names": index.names,
        "bad": np.array(bad),
    }
    if index.remote is not None:
        facts = {"size": index.remote.size, "tag": index.remote.tag, "digest": index.remote.digest}
        arrays["remote"] = np.array(json.dumps(facts))
    with write_atomically(file) as out:
        np.savez(out, **arrays)  # type: ignore[arg-type]


def load_or_index(path: str, folder: Path | None = None) -> ShardIndex:
    """The index of one shard from the cache folder, or made now and kept there."""
    file = cache_file(path, folder or cache_folder("index"))
    stamp = _stamp(path)
    index = read_cached(file, stamp, path)
    if index is None:
        index = index_shard(path)
        write_cached(file, stamp, index)
    return index


def index_shards(
    paths: Sequence[str],
    *,
    folder: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    progress: Progress = no_progress,
    load: Callable[[str, Path], ShardIndex] = load_or_index,
) -> list[ShardIndex]:
    """The indexes of all shards, in their order, those not yet known made in parallel.

    `progress` is called after each. `folder` holds the indexes (default: the cache
    folder); `load(path, folder)` gets one.
    """
    where = Path(folder) if folder is not None else cache_folder("index")
    done: list[ShardIndex] = []
    samples = 0
    with ThreadPoolExecutor(threads or usable_cpus(), thread_name_prefix="index") as pool:
        for index in pool.map(lambda path: load(path, where), paths):
            done.append(index)
            samples += len(index.samples)
            progress(f"shards indexed, {samples} samples", len(done), len(paths))
    return done

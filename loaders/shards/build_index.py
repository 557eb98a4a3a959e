"""Index a shard: find its images, read their sizes and decide which of them are usable.

Image headers are scanned by compiled code; only images that look damaged are decoded.
"""

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ...kernels import headers, tar
from ..quarantine import BadSample
from ..tables.sample_ids import sample_id
from .decode import (
    MAX_PIXELS,
    MAX_SIDE,
    BadImage,
    decode_pillow,
    image_size,
    require_sane_size,
)
from .index import SAMPLE_DTYPE, ShardFields, ShardIndex, readable, split_name
from .labels import MAX_LABEL_BYTES, LabelSource, NoLabel, pack_labels, target_of
from .names import image_files, is_image
from .tar_members import MAX_IMAGE_BYTES, Members, kind_of_file, list_members


@dataclass
class _Found:
    """The image members of one shard before their headers are read, one list entry each."""

    names: list[str]
    offsets: list[int]
    sizes: list[int]
    targets: list[int]
    bad: list[BadSample]
    labels: list[str | NoLabel] | None = None
    places: np.ndarray | None = None
    """As `ShardFields.places`."""


def index_shard(
    path: str, labels: LabelSource | None = None, fields: tuple[str, ...] = ()
) -> ShardIndex:
    """Index one tar shard or one folder of images. Damage is recorded in `ShardIndex.bad`.

    `labels`: where labels are read from, for `ShardIndex.labels`. Without it, `target` is the
    number in the sample's `.cls` member, or the number of its folder, or -1. `fields`: suffixes of
    the members for `ShardIndex.fields`, of a tar.
    """
    if os.path.isdir(path):
        return _index_folder(path, labels)
    if not os.path.isfile(path):
        return unusable(path, "not a regular file", labels)
    return _index_tar(path, labels, fields)


def index_image(path: str, name: str, data: bytes, target: int) -> ShardIndex:
    """Index one image in memory, as if it were the only member of shard `path`."""
    found = _Found([name], [0], [len(data)], [target], [])
    return _judge(path, found, np.frombuffer(data, np.uint8), None)


def _index_tar(path: str, source: LabelSource | None, fields: tuple[str, ...]) -> ShardIndex:
    if os.path.getsize(path) == 0:
        return unusable(path, "empty file", source)
    data = np.memmap(path, np.uint8, mode="r")
    table, damage, whole = tar.walk_tar(data)
    if len(table) == 0:
        start = data[: tar.BLOCK].tobytes()
        reason = "holds no members" if whole and not len(damage) else kind_of_file(start)
        return unusable(path, reason, source)
    found = _find_images(path, list_members(data, table), len(data), data, source, fields)
    found.bad.extend(_damage(path, damage, whole, len(data), found))
    if not found.names and not found.bad:  # folders only
        return unusable(path, "holds no members", source)
    return _judge(path, found, data, source, fields)


def _damage(
    path: str, damage: np.ndarray, whole: bool, length: int, found: _Found
) -> Iterator[BadSample]:
    """An entry for each damaged part of a tar, and for its cut end."""
    for begin, end in damage.tolist():
        if end == length:
            reason, key = "shard damaged from here on", ""
        else:
            reason, key = "part of the shard is damaged", f"bytes {begin} to {end}"
        yield BadSample(shard=path, key=key, reason=reason, found="index")
    # A cut inside an image is reported with that image's key, by `_judge`.
    cut = not whole and not (len(damage) and damage[-1, 1] == length)
    ends = (offset + size for offset, size in zip(found.offsets, found.sizes))
    if cut and not any(end > length for end in ends):
        yield BadSample(shard=path, key="", reason="shard cut short", found="index")


def unusable(
    path: str, reason: str, source: LabelSource | None, *, lasting: bool = True
) -> ShardIndex:
    """The index of a shard without a single member; `lasting`: as of `ShardIndex`."""
    bad = (BadSample(shard=path, key="", reason=reason, found="index"),)
    return ShardIndex(
        path=path,
        samples=np.empty(0, SAMPLE_DTYPE),
        names=np.empty(0, "S1"),
        bad=bad,
        labels=pack_labels(source, []) if source else None,
        lasting=lasting,
    )


def _find_images(
    path: str,
    members: Members,
    length: int,
    data: np.ndarray,
    source: LabelSource | None,
    fields: tuple[str, ...],
) -> _Found:
    """Group members into samples by key; take one image, the label and the fields of each.

    Of several images, the one without a second suffix is taken (`x.jpg` before `x.depth.png`), then
    the first. A later member replaces one of the same name, as when a tar is unpacked.
    """
    choice = ImageChoice()
    labels: dict[str, int] = {}  # members that hold labels
    others: dict[str, dict[str, int]] = {field: {} for field in fields}
    keys: dict[str, None] = {}
    suffix_of_labels = "cls" if source is None else source.kind
    limit = (MAX_LABEL_BYTES if source is None else source.max_bytes) + 1
    for number, name in enumerate(members.names):
        key, suffix = split_name(name)
        if suffix in others and number not in members.problems:
            others[suffix][key] = number
        if is_image(suffix):
            choice.add(key, suffix, name, number, members.problems.get(number))
        elif key.endswith("/") or not key:  # a hidden file
            continue
        elif suffix == suffix_of_labels and number not in members.problems:
            labels[key] = number
        keys[key] = None
    images = choice.images
    bad = [
        BadSample(shard=path, key=readable(name), reason=reason, found="index")
        for name, reason in choice.rejected
    ]
    bad += [
        BadSample(shard=path, key=readable(key), reason="no image member", found="index")
        for key in keys
        if key not in images and key not in choice.named
    ]

    def member(key: str) -> bytes | None:
        """The member that holds a sample's label, as far as it is read; None without one."""
        if key not in labels:
            return None
        offset, size = members.offsets[labels[key]], members.sizes[labels[key]]
        if source is not None and offset + size > length:
            raise NoLabel("its label is cut short with the shard")
        return bytes(data[offset : offset + min(size, limit)])

    return _Found(
        names=[members.names[number] for number in images.values()],
        offsets=[members.offsets[number] for number in images.values()],
        sizes=[members.sizes[number] for number in images.values()],
        targets=[-1 if source else target_of(member(key) or b"") for key in images],
        bad=bad,
        labels=[source.read(key, functools.partial(member, key)) for key in images]
        if source
        else None,
        places=_places(others, list(images), members, length) if fields else None,
    )


def _places(
    others: dict[str, dict[str, int]], keys: list[str], members: Members, length: int
) -> np.ndarray:
    """(keys, fields, 2) int64: as `ShardFields.places`; a member that is cut short is lacking."""
    places = np.full((len(keys), len(others), 2), -1, np.int64)
    for field, numbers in enumerate(others.values()):
        for row, key in enumerate(keys):
            number = numbers.get(key)
            if number is not None and members.offsets[number] + members.sizes[number] <= length:
                places[row, field] = members.offsets[number], members.sizes[number]
    return places


class ImageChoice:
    """Chooses the image of each sample from its members, and keeps the reason for each other."""

    def __init__(self) -> None:
        self.images: dict[str, int] = {}
        """The number of the chosen member of each key, in the order of the keys."""
        self.rejected: list[tuple[str, str]] = []
        """(name, reason) of the image members that are not used."""
        self.named: set[str] = set()
        """Keys that are among the rejected."""
        self._names: dict[str, tuple[str, bool]] = {}

    def add(self, key: str, suffix: str, name: str, number: int, problem: str | None) -> None:
        """Consider an image member; `problem`: why it cannot be read."""
        if problem is None and (key.endswith("/") or not key):
            problem = "hidden file"
        if problem is not None:
            self._reject(key, name, problem)
            return
        plain = "." not in suffix
        if key in self.images:
            chosen, chosen_plain = self._names[key]
            if chosen == name:
                self._reject(key, chosen, "replaced by a later member of the same name")
            elif plain > chosen_plain:
                self._reject(key, chosen, "another image of its sample is used")
            else:
                self._reject(key, name, "another image of its sample is used")
                return
        self.images[key] = number
        self._names[key] = name, plain

    def _reject(self, key: str, name: str, reason: str) -> None:
        self.rejected.append((name, reason))
        self.named.add(key)


def _index_folder(path: str, source: LabelSource | None) -> ShardIndex:
    """Index a folder of images, each read whole; the label is the number of its first subfolder."""
    files, bad = image_files(path)
    if not files and not bad:
        return unusable(path, "holds no images", source)
    folders = sorted({name.split("/")[0] for name in files if "/" in name})
    classes = {folder: number for number, folder in enumerate(folders)}
    parts: list[ShardIndex] = []
    labels: list[str | NoLabel] = []
    for name in files:
        try:
            data = _read_file(os.path.join(path, name))
        except OSError as error:
            bad.append((name, f"cannot be read: {error.strerror}"))
            continue
        except BadImage as error:
            bad.append((name, str(error)))
            continue
        target = classes[name.split("/")[0]] if "/" in name and source is None else -1
        parts.append(_judge(path, _Found([name], [0], [len(data)], [target], []), data, None))
        if source is not None and len(parts[-1].samples):
            labels.append(source.read(name, lambda: None))  # a file has no member beside it
    rejected = [
        BadSample(shard=path, key=readable(name), reason=reason, found="index")
        for name, reason in bad
    ]
    empty = unusable(path, "", source)
    return ShardIndex(
        path=path,
        samples=np.concatenate([empty.samples, *(part.samples for part in parts)]),
        names=np.concatenate([empty.names, *(part.names for part in parts)]),
        bad=(*rejected, *(entry for part in parts for entry in part.bad)),
        labels=pack_labels(source, labels) if source is not None else None,
    )


def _read_file(path: str) -> np.ndarray:
    """The bytes of a file, (size,) uint8. Raises OSError, and BadImage for one that is too large.

    The file is a regular one; should it have become a pipe, opening it does not wait.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | _NONBLOCK)) as file:
        if os.fstat(file.fileno()).st_size > MAX_IMAGE_BYTES:
            raise BadImage("more than 1 GiB")
        return np.frombuffer(file.read(), np.uint8)


_NONBLOCK = getattr(os, "O_NONBLOCK", 0)


def _judge(
    path: str,
    found: _Found,
    data: np.ndarray,
    source: LabelSource | None,
    fields: tuple[str, ...] = (),
) -> ShardIndex:
    """Scan the headers of the images found; have Pillow decide on each that the scan rejects."""
    n = len(found.names)
    offsets = np.array(found.offsets, np.int64)
    sizes = np.array(found.sizes, np.int64)
    formats = np.empty(n, np.uint8)
    verdicts = np.empty(n, np.uint8)
    heights = np.empty(n, np.int32)
    widths = np.empty(n, np.int32)
    headers.scan_headers(data, offsets, sizes, formats, heights, widths, verdicts)
    suspicious = verdicts != headers.OK
    suspicious |= heights.astype(np.int64) * widths > MAX_PIXELS
    suspicious |= np.maximum(heights, widths) > MAX_SIDE
    good: list[int] = []
    bad = list(found.bad)
    for number in range(n):
        if suspicious[number]:
            begin, end = offsets[number], offsets[number] + sizes[number]
            try:
                if end > len(data):
                    raise BadImage("shard cut short")
                if verdicts[number] == headers.OK:
                    require_sane_size(int(heights[number]), int(widths[number]))
                formats[number], heights[number], widths[number] = _second_opinion(
                    bytes(data[begin:end]), verdicts[number]
                )
            except BadImage as reason:
                key = readable(split_name(found.names[number])[0])
                bad.append(BadSample(shard=path, key=key, reason=str(reason), found="index"))
                continue
        good.append(number)
    samples = np.empty(len(good), SAMPLE_DTYPE)
    samples["sample_id"] = [sample_id(split_name(found.names[number])[0]) for number in good]
    samples["target"] = [found.targets[number] for number in good]
    samples["offset"] = offsets[good]
    samples["size"] = sizes[good]
    samples["height"] = heights[good]
    samples["width"] = widths[good]
    samples["format"] = formats[good]
    encoded = [found.names[number].encode("utf-8", "surrogateescape") for number in good]
    names = np.array(encoded or [b""])[: len(good)]  # of an empty list NumPy makes floats
    labels = None
    if source is not None and found.labels is not None:
        labels = pack_labels(source, [found.labels[number] for number in good])
    located = None
    if found.places is not None:
        located = ShardFields(names=fields, places=found.places[np.array(good, np.int64)])
    return ShardIndex(
        path=path, samples=samples, names=names, bad=tuple(bad), labels=labels, fields=located
    )


def _second_opinion(data: bytes, verdict: int) -> tuple[int, int, int]:
    """(format, height, width) of an image that the header scan rejected and Pillow accepts.

    Raises BadImage where Pillow rejects it too. An image that looks damaged is decoded in full,
    because many decoders render what a truncated file still holds.
    """
    if verdict == headers.EMPTY:
        raise BadImage("empty")
    height, width = image_size(data)
    if verdict != headers.NOT_AN_IMAGE:
        decode_pillow(data)
    return headers.OTHER, height, width

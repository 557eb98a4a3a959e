"""Index a shard: find its images, read their sizes and decide which of them are usable.

Image headers are scanned by compiled code; only images that look damaged are decoded.
"""

import functools
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...kernels import headers
from ...kernels.tar import BAD_HEADER, CUT, DATA, SIZE, WANTS_TARFILE, walk_tar
from ..quarantine import BadSample
from .decode import (
    MAX_PIXELS,
    MAX_SIDE,
    BadImage,
    decode_pillow,
    image_size,
    require_sane_size,
)
from .index import SAMPLE_DTYPE, ShardIndex, readable, sample_id, split_name
from .labels import MAX_LABEL_BYTES, LabelSource, NoLabel, pack_labels, target_of
from .names import IMAGE_SUFFIXES, image_files


@dataclass
class _Found:
    """The image members of one shard before their headers are read, one list entry each."""

    names: list[str]
    offsets: list[int]
    sizes: list[int]
    targets: list[int]
    bad: list[BadSample]
    labels: list[str | NoLabel] | None = None


def index_shard(path: str, labels: LabelSource | None = None) -> ShardIndex:
    """Index one tar shard or one folder of images. Damage is recorded in `ShardIndex.bad`.

    `labels`: where labels are read from, for `ShardIndex.labels`. Without it, `target` is the
    number in the sample's `.cls` member, or the number of its folder, or -1.
    """
    index = _index_folder if os.path.isdir(path) else _index_tar
    return index(path, labels)


def index_image(path: str, name: str, data: bytes, target: int) -> ShardIndex:
    """Index one image in memory, as if it were the only member of shard `path`."""
    found = _Found([name], [0], [len(data)], [target], [])
    return _judge(path, found, np.frombuffer(data, np.uint8), None)


def _index_tar(path: str, source: LabelSource | None) -> ShardIndex:
    if os.path.getsize(path) == 0:
        return _unusable(path, "empty file", source)
    data = np.memmap(path, np.uint8, mode="r")
    table, ending = walk_tar(data)
    if len(table) == 0 and ending != WANTS_TARFILE:
        reason = "not a tar archive" if ending == BAD_HEADER else "holds no members"
        return _unusable(path, reason, source)
    names, table = _member_names(path, data, table, whole=ending == WANTS_TARFILE)
    found = _find_images(path, names, table, data, source)
    # A cut inside an image is reported with that image's key, by `_judge`.
    cut_in_image = found.offsets and found.offsets[-1] + found.sizes[-1] > len(data)
    if ending == CUT and not cut_in_image:
        found.bad.append(BadSample(shard=path, key="", reason="shard cut short", found="index"))
    elif ending == BAD_HEADER:
        reason = "shard damaged from here on"
        found.bad.append(BadSample(shard=path, key="", reason=reason, found="index"))
    return _judge(path, found, data, source)


def _unusable(path: str, reason: str, source: LabelSource | None) -> ShardIndex:
    """The index of a shard without a single member."""
    bad = (BadSample(shard=path, key="", reason=reason, found="index"),)
    return ShardIndex(
        path=path,
        samples=np.empty(0, SAMPLE_DTYPE),
        names=np.empty(0, "S1"),
        bad=bad,
        labels=pack_labels(source, []) if source else None,
    )


def _member_names(
    path: str, data: np.ndarray, table: np.ndarray, *, whole: bool
) -> tuple[list[str], np.ndarray]:
    """Names of the members, and the (members, 4) table of `walk_tar` that belongs to them.

    Plain ustar headers are read here and extended ones by `tarfile`, which reads the whole archive
    where `whole`.
    """
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
            # A ustar header: name at 0, magic at 257, the name's prefix at 345.
            block = bytes(data[header : header + 512])
            name = block[:100].partition(b"\0")[0]
            if block[257:263] == b"ustar\0" and block[345]:
                name = block[345:500].partition(b"\0")[0] + b"/" + name
            names.append(name.decode("utf-8", "surrogateescape"))
    return names, table


def _find_images(
    path: str,
    names: Sequence[str],
    table: np.ndarray,
    data: np.ndarray,
    source: LabelSource | None,
) -> _Found:
    """Group members into samples by key; take the first image and the label of each."""
    images: dict[str, int] = {}
    labels: dict[str, int] = {}  # members that hold labels
    keys: dict[str, None] = {}
    suffix_of_labels = "cls" if source is None else source.kind
    limit = (MAX_LABEL_BYTES if source is None else source.max_bytes) + 1
    for number, name in enumerate(names):
        key, suffix = split_name(name)
        keys[key] = None
        if "." + suffix.rpartition(".")[2] in IMAGE_SUFFIXES:
            images.setdefault(key, number)
        elif suffix == suffix_of_labels:
            labels.setdefault(key, number)
    bad = [
        BadSample(shard=path, key=readable(key), reason="no image member", found="index")
        for key in keys
        if key not in images
    ]
    numbers = np.fromiter(images.values(), np.int64, len(images))

    def member(key: str) -> bytes | None:
        """The member that holds a sample's label, as far as it is read; None without one."""
        if key not in labels:
            return None
        offset, size = table[labels[key], DATA], table[labels[key], SIZE]
        if source is not None and offset + size > len(data):
            raise NoLabel("its label is cut short with the shard")
        return bytes(data[offset : offset + min(size, limit)])

    return _Found(
        names=[names[number] for number in images.values()],
        offsets=table[numbers, DATA].tolist(),
        sizes=table[numbers, SIZE].tolist(),
        targets=[-1 if source else target_of(member(key) or b"") for key in images],
        bad=bad,
        labels=[source.read(key, functools.partial(member, key)) for key in images]
        if source
        else None,
    )


def _index_folder(path: str, source: LabelSource | None) -> ShardIndex:
    """Index a folder of images, each read whole; the label is the number of its first subfolder."""
    names = image_files(path)
    if not names:
        return _unusable(path, "holds no images", source)
    folders = sorted({name.split("/")[0] for name in names if "/" in name})
    classes = {folder: number for number, folder in enumerate(folders)}
    parts: list[ShardIndex] = []
    labels: list[str | NoLabel] = []
    for name in names:
        data = np.fromfile(os.path.join(path, name), np.uint8)
        target = classes[name.split("/")[0]] if "/" in name and source is None else -1
        parts.append(_judge(path, _Found([name], [0], [len(data)], [target], []), data, None))
        if source is not None and len(parts[-1].samples):
            labels.append(source.read(name, lambda: None))  # a file has no member beside it
    return ShardIndex(
        path=path,
        samples=np.concatenate([part.samples for part in parts]),
        names=np.concatenate([part.names for part in parts]),
        bad=tuple(entry for part in parts for entry in part.bad),
        labels=pack_labels(source, labels) if source is not None else None,
    )


def _judge(path: str, found: _Found, data: np.ndarray, source: LabelSource | None) -> ShardIndex:
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
    return ShardIndex(path=path, samples=samples, names=names, bad=tuple(bad), labels=labels)


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

"""The .beton files of FFCV: their layout, and a dataset that reads them for any loader, without
FFCV.

The layout is FFCV 1.0's (types.py, writer.py and fields/): header, field descriptors, one row per
sample, pages of data, allocation table. `beton_writer` adds a block with what FFCV has no place
for: the shards, the samples' names, the class list and the quarantine. The descriptor of the field
`sample_id` points to the block; FFCV ignores it.

A file whose images are records (`kernels.coefficients`) has the same layout and a version number of
its own, since FFCV could not read it.
"""

import dataclasses
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...kernels import headers
from ...kernels.coefficients.record import BadRecord
from ...kernels.coefficients.unpack import give_back
from ...kernels.errors import InvalidInput
from ..quarantine import BadSample
from ..system.arrays import read_arrays
from ..tables.sample_ids import sample_id
from ..tables.table import ShardTable
from .dataset import Dataset
from .decode import MAX_PIXELS, BadImage
from .index import SAMPLE_DTYPE, ShardIndex, ShardLabels
from .labels import LabelSource, NoLabel, pack_labels
from .names import redact_url

VERSION = 2
"""FFCV's version number of the layout."""
RECORDS_VERSION = 0x8002
"""The version number where images may be records. FFCV and older readers refuse the file."""
MAGIC = b"maskco-fast 1".ljust(16, b"\0")
"""First bytes of the arguments of the field `sample_id`; the block's offset and size, two uint64,
follow."""

HEADER_DTYPE = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ],
    align=True,
)
FIELD_DTYPE = np.dtype(
    [("type_id", "<u1"), ("name", "<u1", (16,)), ("arguments", "<u1", (1024,))], align=True
)
IMAGE_DTYPE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
ALLOCATION_DTYPE = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
MAX_SIDE = 2**16 - 1
"""Largest image side, pixels: a row stores a side in 16 bits."""
JPEG_MODE, RAW_MODE, RECORD_MODE, CMYK_RECORD_MODE = range(4)
"""How an image is stored: as a JPEG, as RGB pixels, or as a record of the coefficients of a JPEG of
one or three components, or of a CMYK one."""
RECORD_MODES = (RECORD_MODE, CMYK_RECORD_MODE)

_FLOAT, _INT, _IMAGE, _BYTES, _ARRAY, _JSON, _TENSOR = range(7)  # FFCV's type ids
_ROW_FORMATS: dict[int, Any] = {
    _FLOAT: "<f8",
    _INT: "<i8",
    _IMAGE: IMAGE_DTYPE,
    _BYTES: [("ptr", "<u8"), ("size", "<u8")],
    _ARRAY: "<u8",
    _JSON: [("ptr", "<u8"), ("size", "<u8")],
    _TENSOR: "<u8",
}
"""dtype in a row of a field of each type id."""

_FORMATS = {
    JPEG_MODE: headers.JPEG,
    RECORD_MODE: headers.JPEG,
    CMYK_RECORD_MODE: headers.JPEG_CMYK,
}
"""Format of the file that `BetonDataset.read` returns, by mode; OTHER for pixels."""

FIELDS = {"image": _IMAGE, "label": _INT, "sample_id": _INT}
"""Fields that `beton_writer` writes, with their type ids."""


def row_dtype(types: Sequence[int]) -> np.dtype:
    """dtype of a row of fields of these type ids, named f0, f1, and so on."""
    return np.dtype([("", _ROW_FORMATS[kind]) for kind in types], align=True)


def beton_head(
    samples: int, page_size: int, table: int, block: tuple[int, int], version: int = VERSION
) -> bytes:
    """Header and field descriptors of a file.

    `table`: offset of the allocation table; `block`: offset and size of the block of `pack_block`.
    """
    header = np.zeros(1, HEADER_DTYPE)
    header[0] = (version, len(FIELDS), page_size, samples, table)
    fields = np.zeros(len(FIELDS), FIELD_DTYPE)
    for field, (name, kind) in zip(fields, FIELDS.items()):
        field["type_id"] = kind
        field["name"][: len(name)] = np.frombuffer(name.encode(), np.uint8)
    arguments = MAGIC + np.array(block, "<u8").tobytes()
    fields[-1]["arguments"][: len(arguments)] = np.frombuffer(arguments, np.uint8)
    return header.tobytes() + fields.tobytes()


HEAD_SIZE = HEADER_DTYPE.itemsize + len(FIELDS) * FIELD_DTYPE.itemsize
"""Size of header and field descriptors, bytes; the rows follow."""


def pack_block(
    shards: Sequence[ShardIndex],
    labels: str | None,
    classes: Sequence[str] | None,
    keys_repeat: bool,
) -> bytes:
    """Pack shards, names, classes and quarantine into the block that `read_beton` unpacks.

    `labels`, `classes`, `keys_repeat`: those of the dataset, the first two None without labels.
    """
    facts = [
        {
            "path": redact_url(shard.path),
            "samples": len(shard.samples),
            "bad": [
                {"key": bad.key, "reason": bad.reason, "found": bad.found} for bad in shard.bad
            ],
        }
        for shard in shards
    ]
    names = np.concatenate([shard.names.astype(np.bytes_) for shard in shards])
    buffer = io.BytesIO()
    arrays = {"shards": np.array(json.dumps(facts)), "names": names}
    arrays["keys_repeat"] = np.array(keys_repeat)  # of all samples, also those that were left out
    if classes is not None:
        arrays["labels"] = np.array(json.dumps({"source": labels, "classes": list(classes)}))
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


@dataclass(frozen=True, kw_only=True)
class BetonShard(ShardIndex):
    """A shard whose samples lie in a .beton file; `path` names the original shard.

    `labels.names` is the file's class list and `labels.codes` are the targets; None without labels.
    """

    beton: str
    modes: np.ndarray
    """(n,) uint8: how each image is stored, JPEG_MODE and so on."""
    keys_repeat: bool | None = None
    """`Dataset.keys_repeat` of the shards that the file was made from; None where it is unknown."""

    def file(self, number: int) -> str:
        """The path of the .beton file, for any sample."""
        return self.beton


def read_beton(path: str) -> list[BetonShard]:
    """Read the indexes of the shards that a .beton file was made from.

    A file from FFCV's own writer counts as one shard with the row numbers as keys. Raises
    InvalidInput for a file that is no .beton, is cut short or has no image field.
    """
    length = os.path.getsize(path)
    header = np.fromfile(path, HEADER_DTYPE, 1)
    if len(header) == 0 or header[0]["version"] not in (VERSION, RECORDS_VERSION):
        raise InvalidInput(
            f"{path} is not a .beton file of FFCV's layout {VERSION}: write it with "
            "`maskco-fast beton`"
        )
    count, table_at = int(header[0]["num_samples"]), int(header[0]["alloc_table_ptr"])
    fields = np.fromfile(
        path, FIELD_DTYPE, int(header[0]["num_fields"]), offset=HEADER_DTYPE.itemsize
    )
    rows_at = HEADER_DTYPE.itemsize + fields.nbytes
    types = fields["type_id"].tolist()
    if not set(types) <= set(_ROW_FORMATS) or _IMAGE not in types:
        raise InvalidInput(
            f"{path} must have an RGBImageField (type {_IMAGE}) and known fields only, got types "
            f"{types[:20]}: write it with `maskco-fast beton`"
        )
    layout = row_dtype(types)
    if (
        rows_at + count * layout.itemsize > table_at
        or table_at > length
        or (length - table_at) % ALLOCATION_DTYPE.itemsize
    ):
        raise InvalidInput(
            f"{path} is cut short, or its writer did not finish: write it again with "
            "`maskco-fast beton`"
        )
    rows = np.fromfile(path, layout, count, offset=rows_at)
    table = np.fromfile(path, ALLOCATION_DTYPE, offset=table_at)
    samples, modes = _samples(
        path, rows, types, [bytes(name).partition(b"\0")[0] for name in fields["name"]], table
    )
    arguments = fields[-1]["arguments"].tobytes()
    if not arguments.startswith(MAGIC):
        names = np.array([f"{number}.jpg".encode() for number in range(count)] or [b""])[:count]
        samples["sample_id"] = [sample_id(str(number)) for number in range(count)]
        shards = [
            BetonShard(path=path, beton=path, samples=samples, modes=modes, names=names, bad=())
        ]
    else:
        block_at, block_size = np.frombuffer(arguments, "<u8", 2, len(MAGIC)).tolist()
        if block_at + block_size > length:
            raise InvalidInput(f"{path} is damaged: write it again with `maskco-fast beton`")
        block = np.fromfile(path, np.uint8, block_size, offset=block_at).tobytes()
        try:
            shards = _shards(path, samples, modes, block)
        except InvalidInput:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidInput(
                f"{path} is damaged, its list of shards cannot be read ({error}): write it again "
                "with `maskco-fast beton`"
            ) from error
    return [_without_unusable(shard, length) for shard in shards]


def _without_unusable(shard: BetonShard, length: int) -> BetonShard:
    """The shard without the images that lie outside the file or whose size is impossible."""
    samples = shard.samples
    pixels = samples["height"].astype(np.int64) * samples["width"]
    raw = samples["format"] == headers.OTHER
    room = length - samples["size"]
    reasons = {
        "lies outside the file": (samples["offset"] < 0)
        | (samples["size"] < 0)
        | (samples["offset"] > room),
        "empty": (pixels == 0) | (samples["size"] == 0),
        "too many pixels": pixels > MAX_PIXELS,
        "size differs from the header": raw & (samples["size"] != 3 * pixels),
    }
    unusable = np.logical_or.reduce(list(reasons.values()))
    if not unusable.any():
        return shard
    bad = []
    for number in np.flatnonzero(unusable).tolist():
        reason = next(reason for reason, found in reasons.items() if found[number])
        bad.append(BadSample(shard=shard.path, key=shard.key(number), reason=reason, found="index"))
    kept = np.flatnonzero(~unusable)
    labels = shard.labels
    if labels is not None:
        labels = dataclasses.replace(labels, codes=labels.codes[kept])
    return dataclasses.replace(
        shard,
        samples=samples[kept],
        modes=shard.modes[kept],
        names=shard.names[kept],
        bad=(*shard.bad, *bad),
        labels=labels,
    )


def _samples(
    path: str, rows: np.ndarray, types: list[int], names: list[bytes], table: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(n,) SAMPLE_DTYPE of the rows, and their modes."""
    image = rows[f"f{types.index(_IMAGE)}"]
    samples = np.zeros(len(rows), SAMPLE_DTYPE)
    table = table[np.argsort(table["ptr"])]
    found = np.searchsorted(table["ptr"], image["data_ptr"]).clip(max=max(len(table) - 1, 0))
    if len(rows) > len(table) or not np.array_equal(table["ptr"][found], image["data_ptr"]):
        raise InvalidInput(
            f"{path}: images lie outside the allocation table: write it again with "
            "`maskco-fast beton`"
        )
    samples["offset"], samples["size"] = image["data_ptr"], table["size"][found]
    samples["height"], samples["width"] = image["height"], image["width"]
    samples["format"] = headers.OTHER
    for mode, kind in _FORMATS.items():
        samples["format"][image["mode"] == mode] = kind
    samples["target"] = -1
    for name in (b"label", b"sample_id"):
        if name in names and types[names.index(name)] == _INT:
            samples["target" if name == b"label" else "sample_id"] = rows[f"f{names.index(name)}"]
    return samples, image["mode"].copy()


def _shards(path: str, samples: np.ndarray, modes: np.ndarray, block: bytes) -> list[BetonShard]:
    """Split the samples of a file into the shards that its block lists."""
    stored = read_arrays(io.BytesIO(block), ("shards", "names", "labels", "keys_repeat"))
    facts, names = json.loads(str(stored["shards"])), stored["names"]
    classes = json.loads(str(stored["labels"])) if "labels" in stored else None
    if names.dtype.kind != "S" or len(names) != len(samples):
        raise ValueError("its names are not those of its rows")
    if classes is not None:
        targets = samples["target"]
        if len(targets) and not (targets.min() >= 0 and targets.max() < len(classes["classes"])):
            raise InvalidInput(
                f"{path}: labels lie outside the file's list of {len(classes['classes'])} classes: "
                "write it again with `maskco-fast beton`"
            )
    repeat = bool(stored["keys_repeat"]) if "keys_repeat" in stored else None
    shards, begin = [], 0
    for fact in facts:
        bad = tuple(BadSample(shard=str(fact["path"]), **entry) for entry in fact["bad"])
        here = slice(begin, begin := begin + max(int(fact["samples"]), 0))
        labels = None
        if classes is not None:
            labels = ShardLabels(
                source=classes["source"],
                names=tuple(classes["classes"]),
                codes=samples["target"][here].astype(np.int32),
                reasons=(),
            )
        shards.append(
            BetonShard(
                path=str(fact["path"]),
                beton=path,
                samples=samples[here],
                modes=modes[here],
                names=names[here],
                bad=bad,
                labels=labels,
                keys_repeat=repeat,
            )
        )
    if begin != len(samples):
        raise ValueError("its shards do not add up to its rows")
    return shards


def _with_labels(shard: BetonShard, source: LabelSource) -> BetonShard:
    """The shard, if its file holds labels of this source. InvalidInput otherwise.

    Numbers of a file without a class list, such as FFCV's own, count as labels by "cls".
    """
    if shard.labels is None and source.kind == "cls":
        unlabelled = NoLabel("its label in the .beton file is negative")
        targets = shard.samples["target"].tolist()
        labels = pack_labels(source, [unlabelled if n < 0 else str(n) for n in targets])
        return dataclasses.replace(shard, labels=labels)
    if shard.labels is None or shard.labels.source != str(source):
        held = "no class list" if shard.labels is None else f"labels={shard.labels.source!r}"
        raise InvalidInput(
            f"{shard.beton} was written with {held}, and is opened with labels={str(source)!r}: "
            f"write it again with `maskco-fast beton --labels {source}`"
        )
    return shard


def _common_list(shards: Sequence[BetonShard]) -> tuple[str, ...] | None:
    """The class list of all files; None where one has no list or another list."""
    lists = {None if shard.labels is None else shard.labels.names for shard in shards}
    return lists.pop() if len(lists) == 1 else None


class BetonDataset(Dataset):
    """The samples of one or more .beton files, numbered as in the shards that they were made from.

    Plans, order and saved positions equal those of the shards: a run may resume with either.
    """

    def __init__(
        self,
        paths: Sequence[str],
        *,
        labels: LabelSource | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        """`labels`: must be those of the files. None: as the files have them, if any.

        `classes` None: the files' class list. Raises InvalidInput where the files' labels are
        others, or their class lists differ.
        """
        shards = [shard for path in paths for shard in read_beton(path)]
        stored = _common_list(shards)
        if labels is not None:
            has_list = any(shard.labels is not None for shard in shards)
            shards = [_with_labels(shard, labels) for shard in shards]
            if classes is None and has_list and stored is None:
                raise InvalidInput(
                    f"the .beton files must have one class list, but those of {paths[0]} and "
                    "another file differ: pass the list of both as `classes`"
                )
            classes = classes or stored
        recorded = {shard.keys_repeat for shard in shards}
        # Of several files, each knows its own shards alone.
        repeat = True in recorded or (False if recorded == {False} and len(paths) == 1 else None)
        super().__init__(ShardTable(shards, labels, classes, repeat), labels=labels)
        if labels is None and stored is not None:
            self.labels, self.classes = shards[0].labels.source, stored  # type: ignore[union-attr]
        self.paths = list(paths)
        records = np.isin(np.concatenate([shard.modes for shard in shards]), RECORD_MODES)
        self.records = records if records.any() else None

    def read(self, index: int) -> bytes:
        """Read the encoded bytes of sample `index`; raw pixels are returned as a PPM file.

        A record's JPEG is made again, in milliseconds; BadImage where the record is damaged.
        """
        data = super().read(index)
        sample = self.samples[index]
        if self.records is not None and self.records[index]:
            try:
                return give_back(data)
            except BadRecord as error:
                raise BadImage(f"record {error}") from error
        if sample["format"] == headers.OTHER:
            return b"P6 %d %d 255\n" % (sample["width"], sample["height"]) + data
        return data

    def read_record(self, index: int) -> bytes:
        """Read the record of sample `index`, one of `records`, from any thread."""
        return super().read(index)


def write_directory(dataset: Dataset, path: str | os.PathLike[str]) -> None:
    """Write a .beton file of the dataset's rows without image data, for FFCV's reader.

    Data pointers are sample numbers; all images have the JPEG mode.
    """
    rows = np.zeros(len(dataset), row_dtype(list(FIELDS.values())))
    image = rows["f0"]
    image["mode"], image["data_ptr"] = JPEG_MODE, np.arange(len(dataset))
    image["height"] = dataset.samples["height"].clip(max=MAX_SIDE)
    image["width"] = dataset.samples["width"].clip(max=MAX_SIDE)
    rows["f1"], rows["f2"] = dataset.samples["target"], dataset.samples["sample_id"]
    end = HEAD_SIZE + rows.nbytes
    Path(path).write_bytes(beton_head(len(dataset), 1 << 21, end, (end, 0)) + rows.tobytes())


def without(shard: ShardIndex, kept: np.ndarray, bad: Sequence[BadSample]) -> ShardIndex:
    """Copy of a shard's index with only the samples numbered `kept`, and `bad` quarantined too.

    The copy has no fields, and no labels besides the samples' targets.
    """
    return dataclasses.replace(
        shard,
        samples=shard.samples[kept],
        names=shard.names[kept],
        bad=(*shard.bad, *bad),
        labels=None,
        fields=None,
    )

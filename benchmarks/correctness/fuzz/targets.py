"""What is fuzzed: for each target, how an input is made and the rules that it must keep.

Every target has a referee: another decoder, Python's tarfile, or the same library called slowly. A
broken rule raises `Finding`; any other exception that escapes is a finding too.
"""

import contextlib
import functools
import io
import os
import pathlib
import tarfile
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.correctness.fuzz import seeds
from benchmarks.correctness.fuzz.checkpoints import check_checkpoints, make_checkpoints
from benchmarks.correctness.fuzz.guard import GuardedBytes, guarded
from benchmarks.correctness.fuzz.memory import (
    MAX_JPEG_PIXELS,
    Finding,
    guarded_file,
    guarded_pixels,
    guarded_scratch,
    pixels_or_none,
)
from benchmarks.correctness.fuzz.mutate import Random, damage, damage_jpeg, pick
from maskco_fast.kernels import headers
from maskco_fast.kernels.coefficients.decode import decode_record, decode_record_avx512
from maskco_fast.kernels.coefficients.jpeg_file import NotTranscodable
from maskco_fast.kernels.coefficients.pack import pack
from maskco_fast.kernels.coefficients.record import (
    HEADER_DTYPE,
    HEADER_SIZE,
    BadRecord,
    with_checksum,
)
from maskco_fast.kernels.coefficients.unpack import give_back
from maskco_fast.kernels.compiler.features import has_vbmi2
from maskco_fast.kernels.errors import MaskCoError
from maskco_fast.kernels.jpeg.checkpoints import make_table
from maskco_fast.kernels.jpeg.decode import DECODED, decode_region
from maskco_fast.kernels.jpeg.pixels import LANES
from maskco_fast.kernels.tar import walk_tar
from maskco_fast.loaders import (
    LOADERS,
    Batch,
    EmptyDataset,
    TooManyBadSamples,
    View,
    ViewConfig,
    make_loader,
    open_dataset,
)
from maskco_fast.loaders.quarantine import BadSample
from maskco_fast.loaders.shards.beton_writer import write_beton
from maskco_fast.loaders.shards.build_index import index_image, index_shard
from maskco_fast.loaders.shards.decode import BadImage, Decoder, decode_pillow, image_size
from maskco_fast.loaders.shards.index import split_name
from maskco_fast.loaders.shards.names import is_image


@dataclass(frozen=True)
class Target:
    """One kind of input."""

    name: str
    make: Callable[[Random], bytes]
    """Makes a damaged input."""
    check: Callable[[bytes, Random], None]
    """Raises `Finding` where a rule is broken."""
    per_round: int
    """Inputs for each round of a child process; a second or a few."""


def _require_same(name: str, mine: np.ndarray | None, theirs: np.ndarray | None) -> None:
    if (mine is None) != (theirs is None):
        raise Finding(f"{name} {'refuses' if mine is None else 'takes'} what Pillow does not")
    if mine is not None and theirs is not None and not np.array_equal(mine, theirs):
        raise Finding(f"{name} yields other pixels than Pillow")


@functools.cache
def _decoder() -> Decoder:
    return Decoder()


def check_jpeg(data: bytes, random: Random) -> None:
    """Index, our decoder in guarded memory, libjpeg-turbo and Pillow: one verdict, equal pixels."""
    truth = pixels_or_none(decode_pillow, data)
    index = index_image("shard", "0.jpg", data, -1)
    if len(index.samples) + len(index.bad) != 1:
        raise Finding("the index neither uses nor names a JPEG")
    if not len(index.samples):
        if truth is not None:
            raise Finding("the index refuses a JPEG that Pillow takes")
        return
    sample = index.samples[0]
    height, width = int(sample["height"]), int(sample["width"])
    if truth is not None and truth.shape[:2] != (height, width):
        truth = None  # every loader refuses an image of another size than its header's
    _require_same("Decoder", pixels_or_none(_decoder().decode, data, sample), truth)
    if sample["format"] != headers.JPEG or height * width > MAX_JPEG_PIXELS:
        return
    y, x = 2 * random.integers(0, [(height + 1) // 2, (width + 1) // 2])
    rows, columns = random.integers(1, [height - y + 1, width - x + 1])
    for region in ((0, 0, height, width), (int(y), int(x), int(rows), int(columns))):
        size = 3 * region[2] * region[3]
        out = guarded_pixels()[-(size + 3 * LANES) :]
        file = guarded_file()(data)
        memory = guarded_scratch(), out, make_table(1), 0
        verdict = decode_region(file, len(data), height, width, *region, *memory)
        if verdict != DECODED:
            continue
        if truth is None:
            raise Finding("our decoder takes a JPEG that Pillow does not")
        top, left, down, right = region
        mine = out[:size].reshape(down, right, 3)
        if not np.array_equal(mine, truth[top : top + down, left : left + right]):
            raise Finding("our decoder yields other pixels than Pillow")


@functools.cache
def _records() -> list[bytes]:
    """The records of the sound JPEGs among the seeds."""
    found = []
    for data in seeds.jpegs():
        with contextlib.suppress(NotTranscodable):
            found.append(pack(data))
    return found


def _make_record(random: Random) -> bytes:
    """A damaged record, whose checksum mostly is right."""
    damaged = damage(random, pick(random, _records()), 2000 if random.integers(2) else None)
    if len(damaged) < HEADER_SIZE or random.integers(8) == 0:
        return damaged
    size = len(damaged).to_bytes(4, "little")
    return with_checksum(damaged[:12] + size + damaged[16:])


def check_record(data: bytes, random: Random) -> None:
    """All readers of a record, in guarded memory: one verdict, equal pixels; the JPEG or an
    error."""
    header = np.frombuffer(data.ljust(HEADER_SIZE, b"\0"), HEADER_DTYPE, 1)[0]
    height, width = max(int(header["height"]), 1), max(int(header["width"]), 1)
    if height * width <= MAX_JPEG_PIXELS:
        y, x = 2 * random.integers(0, [(height + 1) // 2, (width + 1) // 2])
        rows, columns = random.integers(1, [height - y + 1, width - x + 1])
        for region in ((0, 0, height, width), (int(y), int(x), int(rows), int(columns))):
            size = 3 * region[2] * region[3]
            found = []
            for reader in (
                (decode_record, decode_record_avx512) if has_vbmi2() else (decode_record,)
            ):
                out = guarded_pixels()[-(size + 3 * LANES) :]
                file, memory = guarded_file()(data), (guarded_scratch(), out, make_table(1), 0)
                verdict = reader(file, len(data), height, width, *region, *memory)
                found.append(out[:size].tobytes() if verdict == DECODED else None)
            if len(set(found)) > 1:
                raise Finding("two readers of records differ")
    try:
        data = give_back(data)
    except BadRecord:
        return
    with contextlib.suppress(NotTranscodable):
        if give_back(pack(data)) != data:
            raise Finding("a record gives another JPEG back")


def check_transcoding(data: bytes, random: Random) -> None:
    """A damaged JPEG becomes a record that gives it back, or is refused."""
    with contextlib.suppress(NotTranscodable):
        if give_back(pack(data)) != data:
            raise Finding("a record gives another JPEG back")


def _any_image(random: Random) -> bytes:
    if random.integers(3) == 0:
        return damage_jpeg(random, pick(random, seeds.jpegs()))
    return damage(random, pick(random, seeds.images()), 200 if random.integers(2) else None)


def check_headers(data: bytes, random: Random) -> None:
    """The header scan in guarded memory; where it and Pillow take a file, sizes are equal."""
    file = guarded_file()(data)
    offsets, sizes = np.zeros(1, np.int64), np.array([len(data)])
    formats, verdicts = guarded(1), guarded(1)
    heights, widths = guarded(1, np.int32), guarded(1, np.int32)
    headers.scan_headers(file, offsets, sizes, formats, heights, widths, verdicts)
    height, width, scan = headers.find_ordinary_scan(file)
    headers.is_one_whole_scan(file, height, width)
    if bool(scan) and not 0 < scan < len(data):
        raise Finding("a JPEG's scan lies outside the file")
    if verdicts[0] != headers.OK:
        return
    try:
        size = image_size(data)
        decode_pillow(data)
    except BadImage:
        return
    if size != (heights[0], widths[0]):
        raise Finding(f"the header scan and Pillow read other sizes of a {_format(formats[0])}")


def _format(number: int) -> str:
    return headers.FORMAT_NAMES[number]


def check_image(data: bytes, random: Random) -> None:
    """Any bytes are an image or a BadImage, and what the index uses has the size it says."""
    index = index_image("shard", "0.jpg", data, -1)
    if len(index.samples) + len(index.bad) != 1:
        raise Finding("the index neither uses nor names an image")
    if len(index.samples):
        sample = index.samples[0]
        if min(sample["height"], sample["width"]) < 1:
            raise Finding("the index uses an image without pixels")
        pixels_or_none(_decoder().decode, data, sample)
    elif pixels_or_none(decode_pillow, data) is not None:
        raise Finding("the index refuses an image that Pillow takes")


@functools.cache
def scratch_folder() -> pathlib.Path:
    """A folder for the files of this process; removed with the run's own."""
    return pathlib.Path(tempfile.mkdtemp(prefix="fuzz-"))


def _write(name: str, data: bytes) -> str:
    path = scratch_folder() / name
    path.write_bytes(data)
    return os.fspath(path)


def check_tar(data: bytes, random: Random) -> None:
    """The walk in guarded memory; every image that tarfile lists is used or named."""
    walk_tar(GuardedBytes(len(data))(data) if data else np.empty(0, np.uint8))
    path = _write("shard.tar", data)
    index = index_shard(path)
    ends = index.samples["offset"] + index.samples["size"]
    if len(ends) and (ends.max() > len(data) or index.samples["offset"].min() < 0):
        raise Finding("a sample lies outside its shard")
    if any(entry.key == "" for entry in index.bad):
        return  # the rest of the shard is named as a whole
    images = images_by_tarfile(data)
    # Counted, not compared: what damaged names are read as differs.
    if images is not None and images > len(index.samples) + len(index.bad):
        raise Finding("an image in a tar is neither used nor named")


def images_by_tarfile(data: bytes) -> int | None:
    """Samples with an image, or a link of such a name; None where tarfile does not read on."""
    keys, end = set(), -1
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for member in archive:
                if member.offset <= end:  # a negative size, at which tarfile goes round for ever
                    return None
                end = member.offset
                key, suffix = split_name(member.name)
                if is_image(suffix) and not member.isdir():
                    keys.add(key)
    except Exception:  # what tarfile does not read through has no referee
        return None
    return len(keys)


@functools.cache
def _beton() -> bytes:
    """A sound .beton file."""
    images = [*seeds.jpegs()[:6], seeds.images()[0]]
    shard = _write("sound.tar", seeds.tar({f"{n}.jpg": data for n, data in enumerate(images)}))
    path = scratch_folder() / "sound.beton"
    write_beton(open_dataset(shard, index_folder=scratch_folder()), path, threads=1)
    return path.read_bytes()


def _make_beton(random: Random) -> bytes:
    whole = _beton()
    page = whole.find(b"\xff\xd8\xff")  # the first image; pages before it are nearly empty
    if random.integers(2):
        return damage(random, whole, 4000)
    tail = damage(random, whole[page:])
    return whole[:page] + tail


def check_beton(data: bytes, random: Random) -> None:
    """A damaged .beton file is refused in words, or its samples decode or are refused."""
    path = _write("damaged.beton", data)
    try:
        dataset = open_dataset(path)
    except MaskCoError:
        return
    for index in range(min(len(dataset), 20)):
        try:
            encoded = dataset.read(index)
        except MaskCoError:
            continue
        pixels_or_none(_decoder().decode, encoded, dataset.samples[index])


@functools.cache
def _index_file() -> tuple[str, pathlib.Path, bytes]:
    """A shard, its index file and the file's content."""
    shard = _write("indexed.tar", seeds.tars()[2])
    folder = scratch_folder() / "index"
    folder.mkdir(exist_ok=True)
    open_dataset(shard, index_folder=folder)
    (file,) = folder.iterdir()
    return shard, file, file.read_bytes()


def check_index_file(data: bytes, random: Random) -> None:
    """With a damaged index file, a dataset equals the one that is indexed anew."""
    shard, file, _ = _index_file()
    file.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = open_dataset(shard, index_folder=file.parent)
    truth = index_shard(shard)
    mine = dataset.shards[0]
    if not (np.array_equal(mine.samples, truth.samples) and mine.bad == truth.bad):
        raise Finding("a damaged index file is taken for sound")


_PLAIN = View(jitter_probability=0.0, gray_probability=0.0, blur_probability=0.0)
_VIEWS = ViewConfig(views=(_PLAIN, _PLAIN), size=48)
_MAX_VALUES_APART = 1
"""Levels between the views of the reference and of another loader: rounding of the resize."""


def _make_shard(random: Random) -> bytes:
    members = {}
    for number in range(12):
        data = pick(random, seeds.jpegs() if random.integers(4) else seeds.images())
        if number % 3:
            data = damage_jpeg(random, data) if data[:2] == b"\xff\xd8" else damage(random, data)
        members[f"{number}.jpg"] = data
    return seeds.tar(members)


@functools.cache
def installed_loaders() -> tuple[str, ...]:
    """The loaders whose packages are installed, the reference first."""
    installed = ["reference"]
    shard = _write("sound-jpeg.tar", seeds.tar({"0.jpg": seeds.jpegs()[0]}))
    for name in sorted(set(LOADERS) - {"reference"}):
        try:
            with make_loader(shard, 1, views=_VIEWS, backend=name, index_folder=scratch_folder()):
                installed.append(name)
        except MaskCoError:
            continue
    return tuple(installed)


@dataclass(frozen=True)
class Epoch:
    """What a loader made of a shard."""

    batches: list[Batch]
    quarantine: list[BadSample]

    @property
    def used(self) -> int:
        """Images delivered."""
        return sum(len(batch.sample_id) for batch in self.batches)


def epochs(shard: str, folder: pathlib.Path) -> dict[str, Epoch]:
    """An epoch of each loader by name, and of "native fast"; without batches where none is usable.

    `folder` is where indexes are stored.
    """
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in [*installed_loaders(), "native fast"]:
            backend, _, decode = name.partition(" ")
            try:
                loader = make_loader(
                    shard,
                    4,
                    views=_VIEWS,
                    backend=backend,
                    dtype=torch.uint8,
                    threads=1,
                    decode=decode or "exact",
                    drop_last=False,
                    max_bad_share=1.0,
                    index_folder=folder,
                )
            except EmptyDataset as empty:
                found[name] = Epoch([], list(empty.bad))
                continue
            with loader:
                batches: list[Batch] = []
                with contextlib.suppress(TooManyBadSamples):  # none of the images decodes
                    batches += loader
                found[name] = Epoch(batches, loader.quarantine.entries)
    return found


def differences(epochs: dict[str, Epoch]) -> list[str]:
    """How epochs differ from the reference's, in images or in views."""
    truth = epochs["reference"].batches
    found = []
    for name, epoch in epochs.items():
        if [batch.sample_id.tolist() for batch in epoch.batches] != [
            batch.sample_id.tolist() for batch in truth
        ]:
            found.append(f"{name} uses other images than the reference")
        elif name != "native fast" and any(
            (view.int() - reference.int()).abs().max() > _MAX_VALUES_APART
            for batch, other in zip(epoch.batches, truth)
            for view, reference in zip(batch.views, other.views)
        ):
            found.append(f"{name} yields other views than the reference")
    return found


def check_loaders(data: bytes, random: Random) -> None:
    """All loaders use the same images of a shard; compiled ones yield the same views to the bit."""
    for difference in differences(epochs(_write("mixed.tar", data), scratch_folder())):
        raise Finding(difference)


TARGETS = (
    Target(
        "jpeg", lambda random: damage_jpeg(random, pick(random, seeds.jpegs())), check_jpeg, 4000
    ),
    Target("records", _make_record, check_record, 2000),
    Target(
        "transcoding",
        lambda random: damage_jpeg(random, pick(random, seeds.jpegs())),
        check_transcoding,
        1000,
    ),
    Target("checkpoints", make_checkpoints, check_checkpoints, 2000),
    Target("headers", _any_image, check_headers, 3000),
    Target("images", _any_image, check_image, 2000),
    Target("tars", lambda random: damage(random, pick(random, seeds.tars())), check_tar, 800),
    Target("betons", _make_beton, check_beton, 100),
    Target("index-files", lambda random: damage(random, _index_file()[2]), check_index_file, 300),
    Target("loaders", _make_shard, check_loaders, 20),
)

"""Tar shards as crawls hold them: each image is used, or named with the reason why it is not."""

import io
import tarfile

import numpy as np
import pytest

from maskco_fast.kernels.tar import walk_tar
from maskco_fast.loaders import EmptyDataset, open_dataset
from maskco_fast.loaders.remote.tar_stream import stream_members
from maskco_fast.loaders.shards.build_index import index_shard
from maskco_fast.loaders.shards.names import MAX_NAME
from maskco_fast.loaders.shards.tar_members import list_members
from tests.support.images import encode, picture

END = bytes(1024)
IMAGES = [encode(picture(20 + n, 30, n)) for n in range(4)]
HUGE = [2**62, 2**63 - 1, 2**63 - 1024, 2**64, 2**80, -1, -1536]


def field(number: int, length: int = 12) -> bytes:
    """A header's number: octal, or base 256 where it does not fit."""
    if 0 <= number < 8 ** (length - 1):
        return b"%0*o\0" % (length - 1, number)
    return bytes([0x80 if number >= 0 else 0xFF]) + (number % 256 ** (length - 1)).to_bytes(
        length - 1, "big"
    )


def header(name: bytes, size: int, kind: bytes = b"0", *, link: bytes = b"", **others) -> bytes:
    """A tar header. `others`: `size_field` and `magic` verbatim, `signed` for an old checksum."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108], block[108:116], block[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    block[124:136] = others.get("size_field") or field(size)
    block[136:148], block[156:157], block[157 : 157 + len(link)] = b"00000000000\0", kind, link
    block[257:265] = others.get("magic", b"ustar\x0000")
    block[148:156] = b" " * 8
    total = sum(block) - (256 * sum(byte >> 7 for byte in block) if "signed" in others else 0)
    block[148:156] = b"%06o\0 " % total
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def member(name: bytes, data: bytes, kind: bytes = b"0", **others) -> bytes:
    return header(name, len(data), kind, **others) + padded(data)


def images(*numbers: int) -> bytes:
    return b"".join(member(b"%d.jpg" % n, IMAGES[n]) for n in numbers)


def pax(content: bytes, kind: bytes = b"x", size: int | None = None) -> bytes:
    return header(b"pax", len(content) if size is None else size, kind) + padded(content)


def record(name: bytes, value: bytes) -> bytes:
    rest = b" " + name + b"=" + value + b"\n"
    length = len(rest) + 1
    while len(b"%d" % length) + len(rest) != length:
        length += 1
    return b"%d" % length + rest


def long_name(name: bytes, kind: bytes = b"L") -> bytes:
    return member(b"././@LongLink", name + b"\0", kind)


SPARSE = record(b"GNU.sparse.major", b"1") + record(b"GNU.sparse.name", b"s.jpg")
NOT_OURS = "another image of its sample is used"

# Name: archive, what is used, what is named.
ARCHIVES: dict[str, tuple[bytes, list[str], dict[str, str]]] = {
    "plain": (images(0, 1) + END, ["0.jpg", "1.jpg"], {}),
    "concatenated": (images(0) + END + images(1) + END, ["0.jpg", "1.jpg"], {}),
    "three, with wide gaps": (
        images(0) + bytes(10240) + images(1) + bytes(4096) + images(2) + END,
        ["0.jpg", "1.jpg", "2.jpg"],
        {},
    ),
    "lone zero block": (images(0) + bytes(512) + images(1) + END, ["0.jpg", "1.jpg"], {}),
    "zero block first": (bytes(512) + images(0) + END, ["0.jpg"], {}),
    "trailing rubbish": (images(0) + END + b"\x07" * 3000, ["0.jpg"], {}),
    "no end": (images(0), ["0.jpg"], {"": "shard cut short"}),
    "damaged header": (
        images(0) + b"\x07" * 512 + padded(IMAGES[1]) + images(2) + END,
        ["0.jpg", "2.jpg"],
        {"bytes": "part of the shard is damaged"},
    ),
    "damaged end": (
        images(0) + b"\x07" * 5120,
        ["0.jpg"],
        {"": "shard damaged from here on"},
    ),
    "missing bytes": (
        images(0) + member(b"1.jpg", IMAGES[1])[:-301] + images(2, 3) + END,
        ["0.jpg", "3.jpg"],  # the first block of 2.jpg counts as data of 1.jpg
        {"1": "truncated", "bytes": "part of the shard is damaged"},
    ),
    "signed checksum": (
        member(b"caf\xe9.jpg", IMAGES[0], signed=True) + images(1) + END,
        [r"caf\xe9.jpg", "1.jpg"],
        {},
    ),
    "not UTF-8": (member(b"\xff\xfe.jpg", IMAGES[0]) + END, [r"\xff\xfe.jpg"], {}),
    "not UTF-8, long": (
        long_name(b"\xe9" * 150 + b".jpg") + member(b"x", IMAGES[0]) + END,
        [r"\xe9" * 150 + ".jpg"],
        {},
    ),
    "not UTF-8, PAX": (
        pax(record(b"path", b"\xe9.jpg")) + member(b"x", IMAGES[0]) + END,
        [r"\xe9.jpg"],
        {},
    ),
    "base 256 size": (
        header(b"0.jpg", 0, size_field=b"\x80" + len(IMAGES[0]).to_bytes(11, "big"))
        + padded(IMAGES[0])
        + images(1)
        + END,
        ["0.jpg", "1.jpg"],
        {},
    ),
    "spaces around the size": (
        header(b"0.jpg", 0, size_field=b"%11o " % len(IMAGES[0])) + padded(IMAGES[0]) + END,
        ["0.jpg"],
        {},
    ),
    "size is no number": (
        header(b"0.jpg", 0, size_field=b"12345x78901\0") + padded(IMAGES[0]) + images(1) + END,
        ["1.jpg"],
        {"0.jpg": "damaged tar header"},
    ),
    "hard link": (
        images(0) + header(b"a.jpg", 0, b"1", link=b"0.jpg") + images(1) + END,
        ["0.jpg", "a.jpg", "1.jpg"],
        {},
    ),
    "hard link with a size": (
        images(0) + header(b"a.jpg", len(IMAGES[0]), b"1", link=b"./0.jpg") + images(1) + END,
        ["0.jpg", "a.jpg", "1.jpg"],
        {},
    ),
    "hard link to a hard link": (
        images(0)
        + header(b"a.jpg", 0, b"1", link=b"0.jpg")
        + header(b"b.jpg", 0, b"1", link=b"a.jpg")
        + END,
        ["0.jpg", "a.jpg", "b.jpg"],
        {},
    ),
    "hard link with a long target": (
        member(b"long/" + b"x" * 80 + b".jpg", IMAGES[0])
        + long_name(b"long/" + b"x" * 80 + b".jpg", b"K")
        + header(b"a.jpg", 0, b"1", link=b"long")
        + END,
        ["long/" + "x" * 80 + ".jpg", "a.jpg"],
        {},
    ),
    "link to nothing": (
        images(0) + header(b"a.jpg", 0, b"1", link=b"gone.jpg") + END,
        ["0.jpg"],
        {"a.jpg": "links to a file that the shard does not hold"},
    ),
    "links in a circle": (
        images(0)
        + header(b"a.jpg", 0, b"2", link=b"b.jpg")
        + header(b"b.jpg", 0, b"2", link=b"a.jpg")
        + header(b"c.jpg", 0, b"2", link=b"c.jpg")
        + END,
        ["0.jpg"],
        dict.fromkeys(["a.jpg", "b.jpg", "c.jpg"], "links to a file that the shard does not hold"),
    ),
    "symbolic link": (
        images(0)
        + header(b"f/a.jpg", 0, b"2", link=b"../0.jpg")
        + header(b"f/b.jpg", 0, b"2", link=b"/etc/passwd")
        + END,
        ["0.jpg", "f/a.jpg"],
        {"f/b.jpg": "links to a file that the shard does not hold"},
    ),
    "device and pipe": (
        header(b"a.jpg", 0, b"3") + header(b"b.jpg", 0, b"6") + images(0) + END,
        ["0.jpg"],
        {"a.jpg": "not a regular file", "b.jpg": "not a regular file"},
    ),
    "unknown type": (
        member(b"a.jpg", IMAGES[1], b"W") + images(0) + END,
        ["0.jpg"],
        {"a.jpg": "not a regular file"},
    ),
    "contiguous": (member(b"a.jpg", IMAGES[1], b"7") + END, ["a.jpg"], {}),
    "folders": (
        header(b"f/", 0, b"5") + member(b"old/", b"", b"\0") + images(0) + END,
        ["0.jpg"],
        {},
    ),
    "folder with a size": (header(b"f/", 4096, b"5") + images(0) + END, ["0.jpg"], {}),
    "GNU sparse": (
        header(b"s.bmp", 512, b"S") + bytes(512) + images(0) + END,
        ["0.jpg"],
        {"s.bmp": "stored as a sparse file"},
    ),
    "PAX sparse": (
        pax(SPARSE) + member(b"GNUSparseFile.1/s", b"0\n" + bytes(510)) + images(0) + END,
        ["0.jpg"],
        {"s.jpg": "stored as a sparse file"},
    ),
    "updated": (
        member(b"a.jpg", IMAGES[0]) + images(1) + member(b"a.jpg", IMAGES[2]) + END,
        ["a.jpg", "1.jpg"],
        {"a.jpg": "replaced by a later member of the same name"},
    ),
    "dots in names": (
        b"".join(member(b"www.example.com_%d.jpg" % n, IMAGES[n]) for n in range(3)) + END,
        ["www.example.com_0.jpg"],
        {f"www.example.com_{n}.jpg": NOT_OURS for n in (1, 2)},
    ),
    "depth before the image": (
        member(b"x.depth.png", IMAGES[1]) + member(b"x.jpg", IMAGES[0]) + END,
        ["x.jpg"],
        {"x.depth.png": NOT_OURS},
    ),
    "depth after the image": (
        member(b"x.jpg", IMAGES[0]) + member(b"x.depth.png", IMAGES[1]) + END,
        ["x.jpg"],
        {"x.depth.png": NOT_OURS},
    ),
    "Mac's copies": (
        member(b"._0.jpg", b"\0\5\x16\7") + images(0) + member(b".DS_Store", b"x") + END,
        ["0.jpg"],
        {"._0.jpg": "hidden file"},
    ),
    "other suffixes": (
        member(b"a.JPG", IMAGES[0]) + member(b"b.jfif", IMAGES[1]) + END,
        ["a.JPG", "b.jfif"],
        {},
    ),
    "escapes in names": (
        member(b"\x1b]0;owned\x07.txt", b"x") + images(0) + END,
        ["0.jpg"],
        {r"\x1b]0;owned\x07": "no image member"},
    ),
    "PAX path": (pax(record(b"path", b"p.jpg")) + member(b"x", IMAGES[0]) + END, ["p.jpg"], {}),
    "Solaris": (
        pax(record(b"path", b"p.jpg"), b"X") + member(b"x", IMAGES[0]) + END,
        ["p.jpg"],
        {},
    ),
    "PAX path with a zero": (
        pax(record(b"path", b"p.jpg\0/../x")) + member(b"x", IMAGES[0]) + END,
        ["p.jpg"],
        {},
    ),
    "PAX record of length 0": (pax(b"0 path=p.jpg\n") + images(0) + END, ["0.jpg"], {}),
    "PAX record too long": (pax(b"99 path=p.jpg\n") + images(0) + END, ["0.jpg"], {}),
    "PAX record without =": (pax(b"8 paths\n\n") + images(0) + END, ["0.jpg"], {}),
    "PAX binary": (pax(b"\xff" * 40) + images(0, 1) + END, ["0.jpg", "1.jpg"], {}),
    "PAX global": (
        pax(record(b"path", b"all.jpg"), b"g") + images(0) + END,
        ["0.jpg"],
        {},
    ),
    "PAX global, damaged": (pax(b"12 comment", b"g") + images(0) + END, ["0.jpg"], {}),
    "PAX size": (
        pax(record(b"size", b"%d" % len(IMAGES[0])))
        + header(b"0.jpg", 0)
        + padded(IMAGES[0])
        + images(1)
        + END,
        ["0.jpg", "1.jpg"],
        {},
    ),
    "PAX size, cut": (
        images(1)
        + pax(record(b"size", b"%d" % len(IMAGES[0])))
        + header(b"0.jpg", len(IMAGES[0]))
        + IMAGES[0][:100],
        ["1.jpg"],
        {"0": "shard cut short"},
    ),
    "PAX header claims much": (
        images(0) + pax(record(b"path", b"p.jpg"), size=2**62) + images(1) + END,
        ["0.jpg", "1.jpg"],
        {"bytes": "part of the shard is damaged"},
    ),
    "long name claims much": (
        images(0) + header(b"././@LongLink", 2**63 - 1, b"L") + images(1) + END,
        ["0.jpg", "1.jpg"],
        {},
    ),
    "long name": (
        long_name(b"n" * (MAX_NAME + 1) + b".jpg") + member(b"x", IMAGES[0]) + images(1) + END,
        ["1.jpg"],
        {"n" * 200: f"its name has more than {MAX_NAME} bytes"},
    ),
    "text only": (member(b"a.txt", b"x") + END, [], {"a": "no image member"}),
    "folders only": (header(b"f/", 0, b"5") + END, [], {"": "holds no members"}),
    "zeros": (bytes(10240), [], {"": "holds no members"}),
    "rubbish": (b"\x55" * 5000, [], {"": "not a tar archive"}),
    "gzip": (b"\x1f\x8b\x08" + bytes(5000), [], {"": "compressed by gzip"}),
}
for number in ("abc", "-1536", "0x10", str(2**63), "9" * 40, "1536", ""):
    ARCHIVES[f"PAX size={number}"] = (
        images(0) + pax(record(b"size", number.encode())) + images(1) + images(2) + END,
        ["0.jpg", "1.jpg", "2.jpg"],
        {},
    )
for size in HUGE:
    ARCHIVES[f"size {size}"] = (
        images(0) + header(b"x.jpg", size) + padded(IMAGES[3]) + images(1) + END,
        ["0.jpg", "1.jpg"],
        {"x.jpg": "damaged tar header"},
    )


def named(index) -> dict[str, str]:
    """Reasons by key; those of damaged parts by "bytes"."""
    return {entry.key.split(" ")[0]: entry.reason for entry in index.bad}


@pytest.mark.parametrize("name", ARCHIVES)
def test_every_image_is_used_or_named(tmp_path, name):
    archive, used, expected = ARCHIVES[name]
    (tmp_path / "s.tar").write_bytes(archive)
    index = index_shard(str(tmp_path / "s.tar"))
    assert [name.decode("utf-8", "backslashreplace") for name in index.names] == used
    found = named(index)
    assert len(found) == len(expected)
    for (key, reason), (named_key, named_reason) in zip(
        sorted(expected.items()), sorted(found.items())
    ):
        assert named_key.startswith(key)
        assert named_reason.startswith(reason)
    for sample in index.samples:
        begin, size = int(sample["offset"]), int(sample["size"])
        assert archive[begin : begin + size] in IMAGES


def test_the_last_of_two_members_of_one_name_counts(tmp_path):
    (tmp_path / "s.tar").write_bytes(ARCHIVES["updated"][0])
    assert open_dataset(tmp_path / "s.tar").read(0) == IMAGES[2]


def test_a_shard_without_images_is_named_and_others_are_used(tmp_path):
    for name in ("folders only", "gzip", "plain"):
        (tmp_path / f"{name}.tar").write_bytes(ARCHIVES[name][0])
    dataset = open_dataset(tmp_path)
    assert len(dataset) == 2
    assert [entry.reason.split(" ")[0] for entry in dataset.bad] == ["holds", "compressed"]
    with pytest.raises(EmptyDataset, match="gzip -dc"):
        open_dataset(tmp_path / "gzip.tar")


def streamed(archive: bytes) -> dict[str, bytes | str]:
    """Bytes or problem of each member of a stream."""
    members = stream_members(io.BytesIO(archive), lambda name: True)
    return {one.name: one.problem or one.data for one in members if one.name}


def walked(archive: bytes) -> dict[str, bytes | str]:
    """The same by the compiled walk."""
    data = np.frombuffer(archive, np.uint8)
    members = list_members(data, walk_tar(data)[0])
    found: dict[str, bytes | str] = {}
    for n, name in enumerate(members.names):
        begin, size = members.offsets[n], members.sizes[n]
        whole = begin + size <= len(archive)
        content = archive[begin : begin + size]
        found[name] = members.problems.get(n) or (content if whole else "shard cut short")
    return found


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_stream_reads_what_the_index_reads(name):
    """Except where it needs what has passed by: links, bytes missing, contradicting sizes."""
    archive = ARCHIVES[name][0]
    if name == "missing bytes" or name.startswith("PAX size="):
        return
    mine, theirs = streamed(archive), walked(archive)
    for key in theirs:
        alike = mine.get(key) == theirs[key]
        assert alike or "link" in str(mine[key]) or "1 GiB" in str(mine[key])


def test_whatever_is_damaged_the_walk_and_the_stream_end():
    random = np.random.default_rng(0)
    archives = [archive for archive, _, _ in ARCHIVES.values()]
    for number in range(600):
        damaged = bytearray(archives[number % len(archives)])
        for _ in range(random.integers(1, 4)):
            at = int(random.integers(len(damaged)))
            kind = random.integers(3)
            if kind == 0:
                damaged[at] = random.integers(256)
            elif kind == 1:
                del damaged[at : at + int(random.integers(1, 700))]
            else:
                damaged[at:at] = random.bytes(int(random.integers(1, 700)))
        data = np.frombuffer(bytes(damaged) or b"\0", np.uint8)
        table, damage, _ = walk_tar(data)
        members = list_members(data, table)
        assert (np.diff(table[:, 0]) > 0).all()
        assert all(0 <= begin < end <= len(data) for begin, end in damage.tolist())
        for n, (begin, size) in enumerate(zip(members.offsets, members.sizes)):
            assert n in members.problems or (0 <= begin <= len(data) and size >= 0)
        for _ in stream_members(io.BytesIO(bytes(damaged)), lambda name: True):
            pass


def test_names_are_those_of_tarfile():
    buffer = io.BytesIO()
    names = ["a.jpg", "über/" + "x" * 120 + ".jpg", "d/" * 60 + "e.jpg", "f" * 400 + ".jpg"]
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(IMAGES[0]), 1.5
            archive.addfile(info, io.BytesIO(IMAGES[0]))
    assert (
        walked(buffer.getvalue()) == streamed(buffer.getvalue()) == dict.fromkeys(names, IMAGES[0])
    )


def test_one_long_name_does_not_widen_all_others(tmp_path):
    archive = images(0) * 50 + long_name(b"n" * 200_000 + b".jpg") + images(1) + END
    (tmp_path / "s.tar").write_bytes(archive)
    assert index_shard(str(tmp_path / "s.tar")).names.itemsize <= MAX_NAME

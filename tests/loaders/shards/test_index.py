"""The index: names, labels, verdicts, reuse, and the damage that a web crawl contains."""

import io
import os
import tarfile
from typing import Any

import numpy as np
import pytest

from maskco_fast.loaders import EmptyDataset, open_dataset
from maskco_fast.loaders.shards import index_cache
from maskco_fast.loaders.shards.build_index import index_shard
from maskco_fast.loaders.shards.decode import MAX_PIXELS, BadImage, Decoder, decode_pillow
from maskco_fast.loaders.shards.index import SAMPLE_DTYPE, split_name
from maskco_fast.loaders.shards.index_cache import Indexes, load_or_index
from maskco_fast.loaders.tables.sample_ids import sample_id
from tests.support.images import encode, picture, write_tar


def reasons(index):
    return {entry.key: entry.reason for entry in index.bad}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_offsets_and_sizes_are_tarfiles(tmp_path, form):
    long = "folder/" * 12 + "x" * 60 if form != tarfile.USTAR_FORMAT else "folder/" * 12 + "x"
    names = ["000.jpg", "über.jpg", f"{long}.jpg", "a.b.jpg"]
    path = write_tar(
        tmp_path / "s.tar",
        {name: encode(picture(20 + i, 30, i)) for i, name in enumerate(names)},
        form=form,
    )
    index = index_shard(str(path))
    with tarfile.open(path) as archive:
        members = archive.getmembers()
    assert [name.decode() for name in index.names] == [member.name for member in members]
    assert index.samples["offset"].tolist() == [member.offset_data for member in members]
    assert index.samples["size"].tolist() == [member.size for member in members]
    assert index.samples["height"].tolist() == [20, 21, 22, 23]
    assert not index.bad


def test_a_pax_size_falls_back_to_tarfile(tmp_path):
    path = tmp_path / "s.tar"
    data = encode(picture(20, 30, 0))
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("a.jpg")
        info.size, info.pax_headers = len(data), {"size": str(len(data)), "comment": "x"}
        archive.addfile(info, io.BytesIO(data))
    assert [name.decode() for name in index_shard(str(path)).names] == ["a.jpg"]


def test_keys_follow_webdataset():
    assert split_name("dir.x/000.seg.png") == ("dir.x/000", "seg.png")
    assert split_name("000") == ("000", "")
    assert sample_id("000000000") == sample_id("000000000") != sample_id("000000001")
    assert 0 <= sample_id("any") < 2**63


def test_every_format_that_decodes_is_used(tmp_path):
    image = picture(40, 56, 1)
    members = {
        "jpg.jpg": encode(image),
        "gray.jpg": encode(image[..., 0]),
        "progressive.jpg": encode(image, progressive=True),
        "png.png": encode(image, "png"),
        "palette.gif": encode(image, "gif"),
        "webp.webp": encode(image, "webp"),
        "lossless.webp": encode(image, "webp", lossless=True),
        "alpha.webp": encode(np.dstack([image, image[..., 0]]), "webp"),
        "bmp.bmp": encode(image, "bmp"),
        "tif.tif": encode(image, "tif"),
        "deep.png": encode(image[..., 0].astype(np.uint16) * 257, "png"),
        "wrong.jpg": encode(image, "png"),
        "tail.jpg": encode(image) + b"trailing bytes",
    }
    index = index_shard(str(write_tar(tmp_path / "s.tar", members)))
    assert not index.bad
    assert index.samples["height"].tolist() == [40] * len(members)
    assert index.samples["width"].tolist() == [56] * len(members)
    for data, sample in zip(members.values(), index.samples, strict=True):
        assert (Decoder().decode(data, sample) == decode_pillow(data)).all()


def test_what_cannot_be_used_is_named_with_its_reason(tmp_path):
    good = encode(picture(40, 56, 1))
    bomb = bytearray(encode(picture(16, 16, 0)))
    frame = bomb.index(b"\xff\xc0")
    bomb[frame + 5 : frame + 9] = b"\xff\xdc\xff\xdc"
    members = {
        "good.jpg": good,
        "empty.jpg": b"",
        "html.jpg": b"<html>404</html>",
        "cut.jpg": good[: 3 * len(good) // 4],
        "header.jpg": good[:30],
        "bomb.jpg": bytes(bomb),
        "cutpng.png": encode(picture(40, 56, 1), "png")[:-900],
        "alone.txt": b"caption",
    }
    index = index_shard(str(write_tar(tmp_path / "s.tar", members)))
    assert [name.decode() for name in index.names] == ["good.jpg"]
    assert reasons(index) == {
        "empty": "empty",
        "html": "not an image",
        "cut": "truncated",
        "header": "not an image",
        "bomb": "too many pixels",
        "cutpng": "truncated",
        "alone": "no image member",
    }


def test_the_hostile_shards(shared_data):
    whole = index_shard(str(shared_data / "hostile-0000.tar"))
    assert reasons(whole) == {
        "00008-truncated": "truncated",
        "00009-garbage": "not an image",
        "00010-empty": "empty",
        "00024-html-named-jpg": "not an image",
        "00025-bomb-65500": "too many pixels",
        "99998-no-image": "no image member",
    }
    assert len(whole.samples) == 53
    cut = index_shard(str(shared_data / "hostile-0000-cut.tar"))
    assert reasons(cut)["00037-good"] == "shard cut short"
    assert len(cut.samples) == 32


@pytest.mark.parametrize("cut", [1, 300, 512, 700, 1024, 3000])
def test_a_shard_cut_anywhere_keeps_what_is_whole(tmp_path, cut):
    members = {f"{n}.jpg": encode(picture(30, 30, n)) for n in range(3)}
    path = write_tar(tmp_path / "s.tar", members)
    with tarfile.open(path) as archive:
        last = archive.getmembers()[-1]
    end = last.offset_data + last.size
    os.truncate(path, end - cut if cut < last.size else last.offset)
    index = index_shard(str(path))
    assert [name.decode() for name in index.names] == ["0.jpg", "1.jpg"]
    assert [entry.reason for entry in index.bad] == ["shard cut short"]


def test_damage_between_members_is_reported(tmp_path):
    members = {f"{n}.jpg": encode(picture(30, 30, n)) for n in range(3)}
    path = write_tar(tmp_path / "s.tar", members)
    with tarfile.open(path) as archive:
        offset, end = (member.offset for member in archive.getmembers()[1:3])
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\x07" * 512)
    index = index_shard(str(path))
    assert [name.decode() for name in index.names] == ["0.jpg", "2.jpg"]
    assert reasons(index) == {f"bytes {offset} to {end}": "part of the shard is damaged"}


def test_files_that_are_no_archives(tmp_path):
    (tmp_path / "empty.tar").touch()
    (tmp_path / "text.tar").write_bytes(b"x" * 5000)
    assert reasons(index_shard(str(tmp_path / "empty.tar"))) == {"": "empty file"}
    assert reasons(index_shard(str(tmp_path / "text.tar"))) == {"": "not a tar archive"}
    with pytest.raises(EmptyDataset, match=r"no usable image in 2 shards.*2 quarantined"):
        open_dataset([tmp_path / "empty.tar", tmp_path / "text.tar"])


def test_labels_come_from_cls_and_from_subfolders(tmp_path, make_shards):
    assert index_shard(make_shards(1, 6)[0]).samples["target"].tolist() == [0, 1, 2, 3, 0, 1]
    for name in ("b/1.jpg", "a/2.png", "a/.hidden.jpg", "top.jpg"):
        file = tmp_path / "folder" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode(picture(20, 20, 3), file.suffix[1:]))
    (tmp_path / "folder" / "bad.jpg").write_bytes(b"")
    dataset = open_dataset(tmp_path / "folder")
    assert [name.decode() for name in dataset.shards[0].names] == ["a/2.png", "b/1.jpg", "top.jpg"]
    assert dataset.samples["target"].tolist() == [0, 1, -1]
    assert dataset.read(1) == (tmp_path / "folder" / "b/1.jpg").read_bytes()
    assert reasons(dataset.shards[0]) == {"bad": "empty"}


def test_an_index_is_used_again_until_the_shard_changes(tmp_path, make_shards, monkeypatch):
    path = make_shards(1, 5)[0]
    made = []
    real = index_shard

    def index(name: str, *options: Any) -> object:
        made.append(name)
        return real(name, *options)

    monkeypatch.setattr(index_cache, "index_shard", index)
    first = load_or_index(path, tmp_path / "index")
    again = load_or_index(path, tmp_path / "index")
    assert made == [path]
    assert again.samples.tobytes() == first.samples.tobytes()
    assert again.names.tolist() == first.names.tolist()
    os.utime(path, (1, 1))
    load_or_index(path, tmp_path / "index")
    assert made == [path] * 2
    stored = next((tmp_path / "index").iterdir())
    stored.write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="is rebuilt"):
        load_or_index(path, tmp_path / "index")
    assert made == [path] * 3
    assert len(list((tmp_path / "index").iterdir())) == 1  # no temporary file is left


def test_many_shards_keep_their_order_and_report_progress(tmp_path, make_shards):
    paths = make_shards(6, 4)
    seen = []
    indexes = Indexes(
        paths, tmp_path / "index", threads=3, progress=lambda *facts: seen.append(facts)
    )
    assert [index.path for index in indexes] == [index.path for index in indexes] == paths
    assert seen == [(f"shards indexed, {4 * n} samples", n, 6) for n in range(1, 7)]


def test_decode_refuses_bombs_and_rubbish():
    with pytest.raises(BadImage, match="not an image"):
        Decoder().decode(b"rubbish", np.zeros(1, SAMPLE_DTYPE)[0])
    assert MAX_PIXELS < 65500 * 65500

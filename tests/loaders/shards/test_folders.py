"""Folders of images as they are found: each file is used, or named with the reason why not."""

import os

import pytest

from maskco_fast.loaders import open_dataset
from maskco_fast.loaders.shards.index_cache import load_or_index
from maskco_fast.loaders.shards.names import MAX_NAME
from tests.support.images import encode, picture

IMAGE = encode(picture(24, 30, 1))


@pytest.fixture
def folder(tmp_path):
    """A folder with two classes of an image each."""
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "1.jpg").write_bytes(IMAGE)
    return tmp_path / "images"


def used_and_named(folder):
    dataset = open_dataset(folder)
    for index in range(len(dataset)):
        assert dataset.read(index) == IMAGE
    return (
        [os.fsdecode(name) for name in dataset.shards[0].names],
        {entry.key: entry.reason for entry in dataset.bad},
    )


def test_odd_entries_are_named(folder):
    (folder / "a" / "broken.jpg").symlink_to("nowhere")
    (folder / "a" / "circle.jpg").symlink_to("circle.jpg")
    (folder / "album.jpg").mkdir()
    os.mkfifo(folder / "a" / "pipe.jpg")
    (folder / "a" / "empty.png").touch()
    (folder / "a" / "linked.jpg").symlink_to("1.jpg")
    used, named = used_and_named(folder)
    assert used == ["a/1.jpg", "a/linked.jpg", "b/1.jpg"]
    assert named == {
        "a/broken.jpg": "a broken link",
        "a/circle.jpg": "cannot be read: Too many levels of symbolic links",
        "a/pipe.jpg": "not a regular file",
        "a/empty": "empty",
    }


def test_names_that_are_not_utf8_or_very_long(folder):
    os.rename(os.fsencode(folder / "a" / "1.jpg"), os.fsencode(folder / "a") + b"/caf\xe9.jpg")
    deep = folder
    for _ in range(MAX_NAME // 250 + 1):
        deep = deep / ("d" * 250)
    deep.mkdir(parents=True)
    (deep / "1.jpg").write_bytes(IMAGE)
    used, named = used_and_named(folder)
    assert used == ["a/caf\udce9.jpg", "b/1.jpg"]
    assert list(named.values()) == [f"its name has more than {MAX_NAME} bytes"]


def test_linked_class_folders_are_followed_and_circles_are_not(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "1.jpg").write_bytes(IMAGE)
    (folder / "c").symlink_to(tmp_path / "elsewhere")
    (folder / "a" / "up").symlink_to("..")
    used, named = used_and_named(folder)
    assert used == ["a/1.jpg", "b/1.jpg", "c/1.jpg"]
    assert not named
    assert open_dataset(folder).samples["target"].tolist() == [0, 1, 2]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads any file")
def test_what_may_not_be_read_is_named(folder):
    (folder / "a" / "1.jpg").chmod(0)
    assert used_and_named(folder)[1] == {"a/1.jpg": "cannot be read: Permission denied"}


def test_shards_that_are_no_files_are_named(folder, tmp_path):
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "gone.tar").symlink_to("nowhere")
    for name, reason in (
        ("pipe.tar", "not a regular file"),
        ("gone.tar", "cannot be read: No such file or directory"),
    ):
        index = load_or_index(str(tmp_path / name), tmp_path / "index")
        assert [entry.reason for entry in index.bad] == [reason]
    dataset = open_dataset([folder, tmp_path / "pipe.tar"])
    assert len(dataset) == 2
    assert len(dataset.bad) == 1

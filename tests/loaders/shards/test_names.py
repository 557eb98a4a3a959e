"""Expanding patterns to paths; reading from threads and from files that shrink."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from maskco_fast.loaders.shards.names import expand
from maskco_fast.loaders.shards.reader import MAX_OPEN_FILES, ShardReader


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for number in range(12):
        (tmp_path / f"s-{number:04d}.tar").write_bytes(bytes([number]) * 100)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "numbers"),
    [
        ("s-{0000..0011}.tar", range(12)),
        ("s-<0003..0005>.tar", range(3, 6)),
        ("s-*.tar", range(12)),
        ("s-000[12].tar", (1, 2)),
        ("s-{0001,0004}.tar", (1, 4)),
        (["s-0002.tar", "s-{0000..0001}.tar"], (2, 0, 1)),
    ],
)
def test_patterns(folder, pattern, numbers):
    assert [os.path.basename(path) for path in expand(pattern)] == [
        f"s-{n:04d}.tar" for n in numbers
    ]


def test_a_folder_stands_for_its_tars_or_for_its_images(folder):
    assert len(expand(folder)) == 12
    (folder / "images").mkdir()
    assert expand(folder / "images") == [str(folder / "images")]


def test_a_name_with_braces_in_it_is_a_name(folder):
    (folder / "odd{1..2}.tar").touch()
    assert expand("odd{1..2}.tar") == [str(folder / "odd{1..2}.tar")]


def test_missing_shards_are_all_named(folder):
    with pytest.raises(
        FileNotFoundError, match=r"2 of 14 shards do not exist: s-0012.tar, s-0013.tar"
    ):
        expand("s-{0000..0013}.tar")
    with pytest.raises(FileNotFoundError, match=r"t-\*\.tar"):
        expand("t-*.tar")
    with pytest.raises(FileNotFoundError, match="no shards were given"):
        expand([])


def test_reading_from_more_files_than_stay_open(tmp_path):
    paths = []
    for number in range(MAX_OPEN_FILES + 20):
        path = tmp_path / str(number)
        path.write_bytes(number.to_bytes(2, "little") * 50)
        paths.append(str(path))
    reader = ShardReader()
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda n: reader.read(paths[n], 10, 4), [*range(len(paths))] * 3))
    assert parts == [n.to_bytes(2, "little") * 2 for n in range(len(paths))] * 3
    if before:
        assert len(os.listdir("/proc/self/fd")) - before <= MAX_OPEN_FILES + 1
    reader.close()


def test_a_shard_that_shrank_is_named(tmp_path):
    path = tmp_path / "s.tar"
    path.write_bytes(b"x" * 100)
    reader = ShardReader()
    with pytest.raises(EOFError, match=r"s\.tar: 20 of 50 bytes at offset 80.*index"):
        reader.read(str(path), 80, 50)

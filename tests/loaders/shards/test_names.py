"""Expanding patterns to paths; reading from threads and from files that shrink."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import EmptyDataset, open_dataset
from maskco_fast.loaders.shards.names import (
    expand,
    is_remote,
    redact,
    redact_output,
    redact_text,
    redact_url,
)
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


@pytest.mark.parametrize("name", ["pipe:touch PWNED; cat s-0000.tar #.tar", "http:x.tar"])
def test_what_a_glob_finds_is_a_file(folder, name):
    """And so is the name of a file that exists, as a shell's own glob passes it."""
    (folder / name).touch()
    for found in (expand("*.tar"), expand(folder), expand(name), expand([name])):
        assert str(folder / name) in found
        assert not any(map(is_remote, found))
    with pytest.raises(InvalidInput):
        open_dataset("*.tar")
    assert not (folder / "PWNED").exists()


def test_what_the_user_spells_out_is_an_address(folder):
    assert expand("pipe:cat s-{0000..0001}.tar") == ["pipe:cat s-0000.tar", "pipe:cat s-0001.tar"]
    assert expand("HTTPS://h/s-<0..1>.tar?X=Y") == [
        "https://h/s-0.tar?X=Y",
        "https://h/s-1.tar?X=Y",
    ]
    assert all(map(is_remote, expand(["gs://b/s.tar", "hf://datasets/a/b@main/s.tar"])))


def test_paths_are_absolute_and_survive_a_change_of_folder(make_shards, tmp_path, monkeypatch):
    make_shards(1, 4)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    dataset = open_dataset("shard-0000.tar")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert dataset.read(0)


def test_file_urls_and_the_users_folder_are_paths(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    shard = str(folder / "s-0001.tar")
    for name in (f"file://{shard}", f"file:{shard}", f"file://localhost{shard}", "~/s-0001.tar"):
        assert expand(name) == [shard]
    assert len(expand("~/s-*.tar")) == len(expand("file:s-{0000..0011}.tar")) == 12


@pytest.mark.parametrize("inner", ["a[1]", "b{x,y}", "c*", "d<1..2>", "e{", "f]["])
def test_a_folder_that_exists_is_taken_as_it_is_spelled(folder, inner):
    (folder / inner).mkdir()
    for number in range(2):
        (folder / inner / f"t-{number}.tar").touch()
    found = [str(folder / inner / f"t-{number}.tar") for number in range(2)]
    for pattern in ("t-*.tar", "t-{0..1}.tar", "t-<0..1>.tar", "t-[01].tar", ""):
        assert expand(f"{folder}/{inner}/{pattern}") == found
        assert expand(f"{inner}/{pattern}") == found


def test_all_tars_of_a_folder_are_shards_whatever_their_suffix(folder):
    inner = folder / "mixed"
    inner.mkdir()
    for name in ("a.TAR", "b.tar.gz", "c.tgz", "d.tar.zst", ".hidden.tar", "e.txt", "f.jpg"):
        (inner / name).touch()
    with pytest.warns(UserWarning, match="1 images beside them"):
        names = [os.path.basename(path) for path in expand(inner)]
    assert names == ["a.TAR", "b.tar.gz", "c.tgz", "d.tar.zst"]


def test_tars_one_folder_down_are_named(make_shards, tmp_path):
    (tmp_path / "outer" / "train").mkdir(parents=True)
    shutil.copy(make_shards(1, 4)[0], tmp_path / "outer" / "train" / "s.tar")
    with pytest.raises(EmptyDataset, match="a tar file among images: give it as a shard itself"):
        open_dataset(tmp_path / "outer")
    assert len(open_dataset(tmp_path / "outer" / "*")) == 4


SECRETS = {
    "https://me:secret@host:80/a/b.tar?X-Amz-Signature=secret#secret": "https://host:80/a/b.tar",
    "https://me:se/cret@host/b.tar": "https://host/b.tar",
    "s3://bucket/a@b.tar": "s3://bucket/a@b.tar",
    "hf://datasets/a/b@main/c.tar": "hf://datasets/a/b@main/c.tar",
    "gs://bucket/b.tar?token=secret": "gs://bucket/b.tar",
    "pipe:curl -H 'Authorization: Bearer secret' https://me:secret@h/b.tar?sig=secret": (
        "pipe:curl … https://h/b.tar"
    ),
    "pipe:TOKEN=secret fetch --key=secret b-0001.tar | gunzip": "pipe:… b-0001.tar …",
    "/a?b@c.tar": "/a?b@c.tar",
}


@pytest.mark.parametrize("address", SECRETS)
def test_addresses_lose_their_secrets(address):
    assert redact_url(address) == SECRETS[address]
    assert redact({"a": (address, [address]), "b": 1}) == {
        "a": (SECRETS[address], [SECRETS[address]]),
        "b": 1,
    }
    if not address.startswith("pipe:"):
        assert redact_text(f"cannot read '{address}': 1") == f"cannot read '{SECRETS[address]}': 1"


def test_a_commands_messages_lose_its_secrets():
    command = "curl -H 'Authorization: Bearer s3cr3t' https://me:pass@h/b.tar"
    shown = redact_output(command, "curl: https://me:pass@h/b.tar, s3cr3t is refused")
    assert shown == "curl: https://h/b.tar, … is refused"


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

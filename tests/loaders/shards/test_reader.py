"""Reading several parts of shards at once: as one by one, with the same errors."""

import os

import numpy as np
import pytest

from maskco_fast.kernels import reading
from maskco_fast.loaders import open_dataset
from maskco_fast.loaders.shards.reader import ReadMemory, ShardReader, ShardTruncated


@pytest.fixture(params=["pread", "no pread"])
def pread(request, monkeypatch):
    monkeypatch.setattr(reading, "AVAILABLE", request.param == "pread" and hasattr(os, "pread"))


@pytest.mark.usefixtures("pread")
def test_samples_read_together_are_those_read_alone(make_shards):
    dataset = open_dataset(make_shards(3, 12))
    memory = ReadMemory()
    for indices in ([0], [35, 0, 17, 17], range(36)):
        together = [bytes(part) for part in dataset.read_stored(indices, memory)]
        assert together == [dataset.read(index) for index in indices]


@pytest.mark.usefixtures("pread")
def test_a_shard_that_was_cut_is_named(make_shards, tmp_path):
    dataset = open_dataset(make_shards(1, 8))
    path = dataset.shards.path(0)
    os.truncate(path, int(dataset.samples["offset"][5]) + 10)
    assert len(dataset.read_stored([4], ReadMemory())) == 1
    with pytest.raises(
        ShardTruncated, match=r"10 of \d+ bytes at offset \d+\. The file has changed"
    ):
        dataset.read_stored([4, 5], ReadMemory())


def test_a_failure_that_passes_costs_no_byte(make_shards, monkeypatch):
    """As of a network's file system: the second attempt reads the whole sample."""
    dataset = open_dataset(make_shards(1, 8))
    whole = dataset.reader.read_parts

    def cut(*arguments):
        first, *others = whole(*arguments)
        return [first[:10], *others]

    monkeypatch.setattr(dataset.reader, "read_parts", cut)
    found = dataset.read_stored([3, 4], ReadMemory())
    assert [bytes(part) for part in found] == [dataset.read(3), dataset.read(4)]


def test_a_file_that_is_gone_raises(tmp_path):
    place = np.zeros(1, np.int64)
    with pytest.raises(FileNotFoundError):
        ShardReader().read_parts([str(tmp_path / "gone")], place, place, ReadMemory())


def test_memory_grows_and_is_kept():
    memory = ReadMemory()
    first = memory.room(100)
    assert len(first) >= 100
    assert memory.room(50) is first
    assert len(memory.room(10_000)) >= 10_000


def test_a_files_bytes_outlive_its_place_among_the_open_files(tmp_path, monkeypatch):
    """More files at once than a reader keeps open."""
    monkeypatch.setattr("maskco_fast.loaders.shards.reader.MAX_OPEN_FILES", 2)
    paths = [tmp_path / str(number) for number in range(9)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 5)
    zeros = np.zeros(9, np.int64)
    parts = ShardReader().read_parts([*map(str, paths)], zeros, zeros + 5, ReadMemory())
    assert [bytes(part) for part in parts] == [bytes([number]) * 5 for number in range(9)]

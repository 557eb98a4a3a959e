"""The table of a dataset: mapped, shared, and made anew when it is stale or damaged."""

import copy
import dataclasses
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from maskco_fast.loaders import ViewConfig, make_loader, open_dataset
from maskco_fast.loaders.order import ALL
from maskco_fast.loaders.quarantine import BadSample
from maskco_fast.loaders.shards import index_cache
from maskco_fast.loaders.shards.build_index import index_shard
from maskco_fast.loaders.shards.index_cache import Indexes
from maskco_fast.loaders.system import storage
from maskco_fast.loaders.tables import table
from maskco_fast.loaders.tables.columns import write_columns
from maskco_fast.loaders.tables.table import MappedTable, ShardTable, read_table, write_table
from tests.support.images import encode, picture, write_tar


@pytest.fixture
def opened(tmp_path, make_shards):
    """A function that opens three shards of six samples, of which one is bad, with a field."""
    shards = make_shards(3, 6)
    members = {f"{n:06d}.jpg": encode(picture(30, 40, n)) if n != 8 else b"" for n in range(6, 12)}
    labels = {f"{n:06d}.cls": b"1" for n in range(6, 12)}
    write_tar(Path(shards[1]), members | labels)

    def open_them(**options):
        return open_dataset(shards, index_folder=tmp_path / "index", fields=("cls",), **options)

    return open_them


def headers(folder: Path) -> list[Path]:
    return sorted((folder / "index").glob("table-*.json"))


def test_a_mapped_table_holds_what_the_indexes_hold(opened, tmp_path):
    dataset = opened(labels="cls")
    mine = dataset.shards
    assert isinstance(mine, MappedTable)
    assert not dataset.samples.flags.writeable
    paths = [shard.path for shard in mine]
    source = index_cache.LabelSource("cls")
    truth = ShardTable(Indexes(paths, tmp_path / "index", source, ("cls",)), source)
    for name in ("samples", "sizes", "ends", "remote_sizes", "codes"):
        assert np.array_equal(getattr(mine, name), getattr(truth, name)), name
    for name in ("classes", "fingerprint", "keys_repeat"):
        assert getattr(mine, name) == getattr(truth, name), name
    assert list(mine.bad) == truth.bad == [mine.bad[0]] == mine.bad[-1:]
    for one, other in zip(mine, truth, strict=True):
        assert one.names.tolist() == other.names.tolist()
        assert one.bad == other.bad
        assert one.fields is not None
        assert other.fields is not None
        assert np.array_equal(one.fields.places, other.fields.places)
    with pytest.raises(IndexError):
        mine[3]
    assert mine[-1].path == mine[1:][1].path == paths[2]


def test_copies_map_the_same_files_and_refuse_others(opened, tmp_path):
    dataset = opened()
    stored = pickle.dumps(dataset)
    assert len(stored) < 10_000
    for other in (pickle.loads(stored), copy.deepcopy(dataset)):
        assert other.samples.tobytes() == dataset.samples.tobytes()
        assert other.read(7) == dataset.read(7)
    os.utime(dataset.shards.path(0), (1, 1))
    opened()
    with pytest.raises(ValueError, match="have changed since the dataset was opened"):
        pickle.loads(stored)
    assert dataset.read_fields(0) == [b"0"]  # what is open stays so


def test_a_table_is_written_once_and_again_when_a_shard_changes(opened, tmp_path, monkeypatch):
    written = []
    real = index_cache.write_table

    def write(*arguments, **options):
        written.append(arguments[0])
        real(*arguments, **options)

    monkeypatch.setattr(index_cache, "write_table", write)
    with ThreadPoolExecutor(4) as pool:  # as ranks that start at once
        first, *others = pool.map(lambda _: opened(), range(4))
    assert len(written) == 1
    assert {other.fingerprint for other in others} == {first.fingerprint}
    write_tar(Path(first.shards.path(1)), {"new.jpg": encode(picture(30, 40, 1))})
    again = opened()
    assert len(written) == 2
    assert again.shard_sizes.tolist() == [6, 1, 6]
    assert first.fingerprint != again.fingerprint
    # The folder of the former table is gone; its mapping lives on.
    assert len([path for path in (tmp_path / "index").glob("table-*") if path.is_dir()]) == 1
    assert len(first.samples.tobytes()) == 17 * first.samples.itemsize


@pytest.mark.parametrize("damage", ["header", "shards", "cut", "lost", "older"])
def test_a_damaged_table_is_made_anew(opened, tmp_path, damage):
    truth = opened().samples.tobytes()
    (header,) = headers(tmp_path)
    (folder,) = [path for path in (tmp_path / "index").glob("table-*") if path.is_dir()]
    if damage == "header":
        text = header.read_bytes()
        header.write_bytes(text.replace(b'"keys_repeat": false', b'"keys_repeat": true'))
        assert header.read_bytes() != text
    elif damage == "shards":
        data = bytearray((folder / "shards").read_bytes())
        data[3] ^= 1
        (folder / "shards").write_bytes(data)
    elif damage == "cut":
        os.truncate(folder / "samples", 41)
    elif damage == "lost":
        (folder / "names").unlink()
    else:
        with write_columns(header.with_suffix(""), {"table": table.VERSION - 1}):
            pass
    if damage == "older":
        again = opened()
    else:
        with pytest.warns(UserWarning, match=r"table-\w+, is unreadable .*; it is rebuilt"):
            again = opened()
    assert again.samples.tobytes() == truth
    assert opened().shards[2].key(5) == "000017"


def test_columns_that_do_not_fit_together_are_refused(opened, tmp_path):
    shards = list(opened().shards)
    path = tmp_path / "table"
    wrong = dataclasses.replace(shards[0], fields=None, names=shards[0].names[1:])
    write_table(path, [wrong], {})
    with pytest.raises(ValueError, match="do not fit together"):
        read_table(path)


def test_a_shard_that_cannot_be_read_is_tried_at_each_opening(opened, tmp_path, monkeypatch):
    broken: list[bool] = []

    def index(path, *options):
        if broken and path.endswith("shard-0001.tar"):
            raise OSError(5, "Input/output error")
        return index_shard(path, *options)

    monkeypatch.setattr(index_cache, "index_shard", index)
    broken.append(True)
    dataset = opened()
    assert [entry.reason for entry in dataset.bad] == ["cannot be read: Input/output error"]
    broken.clear()
    assert opened().shard_sizes.tolist() == [6, 5, 6]


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    path = tmp_path / "columns"

    def write():
        with write_columns(path, {}) as columns:
            columns.append("one", b"abc")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write()
    assert list(tmp_path.iterdir()) == []


def test_many_bad_samples_are_read_when_asked_for(tmp_path, opened):
    shards = [
        dataclasses.replace(
            shard,
            fields=None,
            bad=tuple(
                BadSample(shard=shard.path, key=f"{n}", reason="odd\n", found="index")
                for n in range(count)
            ),
        )
        for shard, count in zip(opened().shards, (2, 0, 3), strict=True)
    ]
    write_table(tmp_path / "table", shards, {})
    bad = read_table(tmp_path / "table").bad
    assert (
        [entry.key for entry in bad] == [bad[n].key for n in range(5)] == ["0", "1", "0", "1", "2"]
    )
    assert {entry.reason for entry in bad} == {"odd\n"}
    with pytest.raises(IndexError):
        bad[5]


def test_the_default_block_is_all_where_it_costs_nothing(tmp_path, make_shards, monkeypatch):
    shards = make_shards(17, 1)
    monkeypatch.setattr(storage, "_MOUNTS", str(tmp_path / "mounts"))
    device = os.stat(tmp_path).st_dev
    line = f"1 0 {os.major(device)}:{os.minor(device)} / /data rw shared:1 - KIND /dev/x rw"
    found = {}
    for kind in ("ext4", "nfs4", "fuse.s3fs"):
        (tmp_path / "mounts").write_text(line.replace("KIND", kind))
        found[kind] = open_dataset(shards, index_folder=tmp_path / "index").default_block
    assert found == {"ext4": ALL, "nfs4": 16, "fuse.s3fs": 16}
    assert open_dataset(shards[:16], index_folder=tmp_path / "index").default_block == 16
    with make_loader(shards, 4, views=ViewConfig.moco_v2(32), shuffle_block=ALL) as loader:
        assert loader.state_dict()["block"] == ALL


def test_shards_that_move_have_a_table_of_their_own(opened, tmp_path):
    first = opened()
    (tmp_path / "moved").mkdir()
    for shard in first.shards:
        shutil.copy(shard.path, tmp_path / "moved")
    second = open_dataset(tmp_path / "moved", index_folder=tmp_path / "index")
    assert second.fingerprint == first.fingerprint
    assert len(headers(tmp_path)) == 2

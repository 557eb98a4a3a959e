"""Sample ids: equal keys in several shards, the same ids in every loader, and older positions."""

import itertools
import shutil

import numpy as np
import pytest

from maskco_fast.loaders import ViewConfig, make_loader, open_dataset
from maskco_fast.loaders.shards.beton_writer import write_beton
from maskco_fast.loaders.tables.sample_ids import (
    SKETCH,
    keys_repeat,
    sample_id,
    shard_codes,
    sketch,
    with_shard,
)

VIEWS = ViewConfig.maskco(32)


def make(shards, **options):
    return make_loader(shards, 4, views=VIEWS, **options)


def ids_of(loader):
    return [batch.sample_id.tolist() for batch in loader]


@pytest.fixture
def numbered_anew(make_shards, tmp_path):
    """Two shards with the same keys."""
    first = make_shards(1, 8)[0]
    return [first, shutil.copy(first, tmp_path / "shard-0001.tar")]


def test_shards_that_share_keys_are_found_and_others_not():
    keys = np.array([sample_id(f"{n:09d}") for n in range(20_000)])
    apart = [sketch(keys[begin : begin + 5000]) for begin in range(0, 20_000, 5000)]
    assert all(len(one) == SKETCH for one in apart)
    assert not keys_repeat(apart)
    assert not keys_repeat([])
    for begin in (0, 2500, 3500):  # all, a half and three tenths of the first shard's keys
        assert keys_repeat([apart[0], sketch(keys[begin : begin + 5000])])
    # A key that comes twice in one shard, as in a folder of x.jpg and x.png, says nothing.
    assert not keys_repeat([sketch(np.array([5, 5, 6])), sketch(np.array([7]))])
    assert sketch(np.array([3, 1, 3])).tolist() == [1, 3]


def test_a_shard_counts_by_its_name_wherever_it_lies():
    here = shard_codes(["/data/a/0.tar", "/data/b/0.tar", "/data/folder/"])
    there = shard_codes(
        ["https://me:pw@host/x/0.tar?t=1", "pipe:aws s3 cp s3://b/0.tar -", "folder"]
    )
    assert here[0] == there[0]
    assert here[2] == there[2]
    assert len(set(here.tolist())) == 3
    ids = with_shard(np.array([5, 5, 6]), here)
    assert ids.dtype == np.int64
    assert (ids >= 0).all()
    assert len(set(ids.tolist())) == 3


def test_equal_keys_get_ids_and_plans_of_their_own(numbered_anew):
    with make(numbered_anew, shuffle=False) as loader:
        assert loader.dataset.keys_repeat
        batches = list(loader)
    ids = [one for batch in batches for one in batch.sample_id.tolist()]
    assert len(set(ids)) == 16
    assert not (batches[0].masked_box == batches[2].masked_box).all()
    # A shard alone has the ids of its keys, as ever.
    with make(numbered_anew[:1], shuffle=False) as loader:
        assert ids_of(loader)[0][0] == sample_id("000000")


def test_ids_are_equal_in_every_loader_and_in_a_beton(numbered_anew, tmp_path):
    with make(numbered_anew) as loader:
        truth = ids_of(loader)
    with make(numbered_anew, backend="reference") as loader:
        assert ids_of(loader) == truth
    write_beton(open_dataset(numbered_anew), tmp_path / "all.beton")
    with make(tmp_path / "all.beton") as loader:
        assert ids_of(loader) == truth


def test_a_run_from_before_goes_on_with_the_ids_of_its_keys(numbered_anew):
    with make(numbered_anew) as loader:
        keys = loader.dataset.samples["sample_id"]
        truth = [keys[batch.index.numpy()].tolist() for batch in loader]
        loader.set_epoch(0)
        list(itertools.islice(loader, 2))
        now = loader.state_dict()
    before = {**now, "version": 1}
    del before["shard_in_id"]
    for options in ({}, {"loader_process": True}):
        with make(numbered_anew, **options) as loader:
            loader.load_state_dict(before)
            assert ids_of(loader) == truth[2:]
            assert loader.state_dict()["shard_in_id"] is False

"""`benchmarks.speed.shuffle_block`: copied shards have keys of their own, and a run measures."""

from collections.abc import Callable

import pytest

from benchmarks.speed import shuffle_block
from maskco_fast.loaders import open_dataset


def test_copies_are_shuffled_in_both_ways(
    make_shards: Callable[..., list[str]], tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    (shard,) = make_shards(1, 4)
    copies = shuffle_block.copy_shard(shard, tmp_path, 3)
    dataset = open_dataset(copies, index_folder=tmp_path)
    assert len(dataset) == 12
    assert len(set(dataset.samples["sample_id"].tolist())) == 12
    dataset.close()

    shuffle_block.main(shuffle_block.Options(shards=(shard,), copies=17, batch_size=8, rounds=1))
    heading, _, some, every = capsys.readouterr().out.splitlines()
    assert heading.endswith("17 shards")
    assert [some.split()[0], every.split()[0]] == ["16", "all"]

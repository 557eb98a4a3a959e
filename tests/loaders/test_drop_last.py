"""`drop_last=False` for every backend: each sample exactly once, short batches, bad samples."""

import collections
import itertools

import pytest
import torch

from maskco_fast.kernels.views import IMAGENET_STD
from maskco_fast.loaders import RemoteConfig, TooManyBadSamples, ViewConfig, make_loader
from maskco_fast.loaders.device_stage import DeviceStage, InOrderStreams
from maskco_fast.loaders.loader import _without_left_out
from tests.support.images import skip_without_packages

VIEWS = ViewConfig.maskco(48)


def rank_loader(shards, backend, rank=0, world_size=1, batch_size=4, **options):
    return make_loader(
        shards,
        batch_size,
        views=VIEWS,
        backend=backend,
        rank=rank,
        world_size=world_size,
        drop_last=False,
        **options,
    )


def indices(batches):
    return [batch.index.tolist() for batch in batches]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_each_sample_comes_once_in_the_shards_order(backend, make_shards, world_size):
    """13 samples: of 4 ranks with batches of 4, three have a full batch and the last has one."""
    shards = make_shards(1, 13)
    ranks = []
    for rank in range(world_size):
        with rank_loader(shards, backend, rank, world_size, shuffle=False) as loader:
            batches = indices(loader)
            assert len(batches) == len(loader)
            assert loader.epoch == 1
        ranks.append(batches)
    by_batch = itertools.zip_longest(*ranks, fillvalue=[])
    assert [i for batches in by_batch for part in batches for i in part] == list(range(13))
    sizes = [[len(batch) for batch in batches] for batches in ranks]
    assert (
        sizes
        == {
            1: [[4, 4, 4, 1]],
            2: [[4, 4], [4, 1]],
            4: [[4], [4], [4], [1]],
        }[world_size]
    )


def test_a_rank_without_samples_has_empty_epochs(backend, make_shards):
    with rank_loader(make_shards(1, 5), backend, rank=2, world_size=3) as loader:
        assert len(loader) == 0
        assert list(loader) == []
        assert loader.epoch == 1
        assert list(loader) == []
        assert loader.epoch == 2


def test_a_short_batch_holds_the_same_views(backend, make_shards):
    """The short batch equals the first rows of a full batch over the same samples."""
    shards = make_shards(1, 8)
    with rank_loader(shards, backend, batch_size=6, labels="cls") as loader:
        first, last = loader
        assert loader.dataset.classes == ("0", "1", "2", "3")
    with make_loader(shards, 8, views=VIEWS, backend=backend) as loader:
        (whole,) = loader
    assert (len(first), len(last)) == (6, 2)
    assert last.query.is_contiguous(memory_format=torch.channels_last)
    for name in ("query", "key", "masked_box", "key_boxes", "sample_id", "target", "index"):
        joined = torch.cat([getattr(first, name), getattr(last, name)])
        assert torch.equal(joined, getattr(whole, name)), name


def test_a_run_resumes_before_the_short_batch(backend, make_shards):
    shards = make_shards(1, 11)
    with rank_loader(shards, backend) as loader:
        truth = indices(loader)
        loader.set_epoch(0)
        list(itertools.islice(loader, 2))
        state = loader.state_dict()
    with rank_loader(shards, backend) as loader:
        loader.load_state_dict(state)
        assert indices(loader) == truth[2:]
        assert loader.epoch == 1
        assert loader.state_dict()["consumed"] == 0
    parts = []
    for rank in range(2):  # the same global batch on two ranks
        with rank_loader(shards, backend, rank, 2, batch_size=2) as loader:
            loader.load_state_dict(state)
            parts += indices(loader)
    assert [i for part in parts for i in part] == truth[2]


def test_a_bad_sample_is_left_out_and_counted(backend, make_shards):
    """Samples 4 to 7 are a whole batch: it is not delivered, and no other sample comes twice."""
    shards = make_shards(1, 14, bad=(1, 4, 5, 6, 7, 12))
    with rank_loader(shards, backend, shuffle=False) as loader:
        assert len(loader) == 4
        for _ in range(2):  # known bad samples are left out of later epochs, too
            assert indices(loader) == [[0, 2, 3], [8, 9, 10, 11], [13]]
        assert loader.epoch == 2
        keys = sorted(entry.key for entry in loader.quarantine.entries)
        assert keys == ["000001", "000004", "000005", "000006", "000007", "000012"]
        assert loader.quarantine.tried == 2 * 8 + 6
        loader.set_epoch(0)
        iterator = iter(loader)
        next(iterator)
        assert loader.state_dict()["consumed"] == 4
        assert next(iterator).index.tolist() == [8, 9, 10, 11]
        assert loader.state_dict()["consumed"] == 12
        state = loader.state_dict()
    with rank_loader(shards, backend, shuffle=False) as loader:
        loader.load_state_dict(state)
        assert indices(loader) == [[13]]


def test_an_epoch_may_end_with_bad_samples(backend, make_shards):
    with rank_loader(make_shards(1, 9, bad=(4, 5, 6, 7, 8)), backend, shuffle=False) as loader:
        assert indices(loader) == [[0, 1, 2, 3]]
        assert loader.epoch == 1
        assert loader.state_dict()["consumed"] == 0
    with (
        rank_loader(make_shards(1, 3, bad=range(3)), backend) as loader,
        pytest.raises(TooManyBadSamples, match="3 of 3 samples"),
    ):
        list(loader)


@pytest.mark.parametrize("backend", ["native", "dali"])
def test_the_device_stage_takes_short_batches(backend, make_shards):
    """Short first, in the middle and last: a slot is made anew for another length."""
    skip_without_packages(backend)
    shards = make_shards(1, 7, bad=(1, 4))
    with rank_loader(shards, backend, batch_size=2, shuffle=False) as loader:
        truth = list(loader)
    loader = rank_loader(shards, backend, batch_size=2, shuffle=False, device="meta")
    rendered = loader._run(loader._requests(0, 1, len(loader)))
    stage = DeviceStage(loader.dataset, loader.config, InOrderStreams(), torch.device("cpu"))
    made = list(stage.batches(_without_left_out(rendered, collections.deque())))
    assert [len(batch) for batch in made] == [len(batch) for batch in truth] == [1, 2, 1, 1]
    for mine, theirs in zip(made, truth, strict=True):
        for name in ("sample_id", "target", "index", "masked_box", "key_boxes"):
            assert torch.equal(getattr(mine, name), getattr(theirs, name)), name
        assert (mine.query - theirs.query).abs().max() <= 2 / (255 * min(IMAGENET_STD))


def test_remote_shards_come_once_over_more_ranks_than_batches(make_shards, tmp_path):
    """14 samples, one of them bad, in batches of 4: the last of five ranks has none."""
    make_shards(2, 7, bad=(9,))
    config = RemoteConfig(cache_folder=str(tmp_path / "cache"))
    seen = []
    for rank in range(5):
        with rank_loader(
            f"pipe:cat {tmp_path}/shard-{{0000..0001}}.tar",
            "native",
            rank,
            5,
            remote=config,
            index_folder=tmp_path / "index",
            shuffle=False,
        ) as loader:
            seen.append(indices(loader))
            assert loader.epoch == 1
    assert seen == [[[0, 1, 2, 3]], [[4, 5, 6, 7]], [[8, 10, 11]], [[12, 13]], []]


def test_a_stream_is_refused(make_shards, tmp_path):
    config = RemoteConfig(mode="stream", epoch_samples=8, cache_folder=str(tmp_path))
    with pytest.raises(ValueError, match="`drop_last` must be True for a stream"):
        make_loader(make_shards(1, 8), 4, remote=config, drop_last=False)

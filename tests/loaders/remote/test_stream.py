"""The streaming mode: a fault neither loses nor repeats a sample, and a seed fixes the order."""

import collections
import itertools
import tarfile
import threading

import pytest
import torch

from benchmarks.correctness import faulty_server as faulty
from maskco_fast.loaders import make_loader
from tests.support.batches import key_boxes
from tests.support.images import encode, picture, write_tar
from tests.support.remote_servers import VIEWS, assert_same, hurried

pytest.importorskip(
    "s3fs", reason="pip install 'maskco-fast[remote]' brings what reads remote shards"
)


def stream(shards, folder, *, count=None, samples=48, **options):
    """The first `count` batches of the stream (default: the whole epoch), and the quarantine."""
    config = hurried(folder, mode="stream", epoch_samples=samples, shuffle_buffer=20)
    with make_loader(shards, 8, views=VIEWS, remote=config, **options) as loader:
        return list(itertools.islice(loader, count)), loader.quarantine


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_faults_change_nothing(backend, make_shards, tmp_path):
    shards = make_shards(3, 16)
    truth, _ = stream(shards, tmp_path, backend=backend)
    ids = torch.cat([batch.sample_id for batch in truth])
    assert len(set(ids.tolist())) == len(ids) == 48
    with faulty.FaultyServer(tmp_path, faulty.at_random(0.3, seed=4)) as server:
        mine, _ = stream(f"{server.url}/shard-{{0000..0002}}.tar", tmp_path, backend=backend)
        assert sum(server.injected.values()) > 2
    assert_same(mine, truth)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("remote-")]


def test_views_and_labels_are_those_of_the_same_samples_elsewhere(make_shards, tmp_path):
    shards = make_shards(2, 8)
    mine, _ = stream(shards, tmp_path, samples=16, seed=3)
    with make_loader(shards, 16, views=VIEWS, seed=3) as loader:
        (truth,) = loader
    place = {sample: n for n, sample in enumerate(truth.sample_id.tolist())}
    for batch in mine:
        rows = [place[sample] for sample in batch.sample_id.tolist()]
        assert torch.equal(batch.query, truth.query[rows])
        assert torch.equal(key_boxes(batch), key_boxes(truth)[rows])
        assert torch.equal(batch.target, truth.target[rows])


def test_pass_after_pass_in_other_orders(make_shards, tmp_path):
    mine, _ = stream(make_shards(2, 8), tmp_path, samples=64)
    ids = [batch.sample_id.tolist() for batch in mine]
    assert collections.Counter(itertools.chain.from_iterable(ids)).most_common()[-1][1] == 4
    assert sorted(ids[0] + ids[1]) == sorted(ids[2] + ids[3])
    assert ids[:2] != ids[2:4]


def test_each_rank_reads_shards_of_its_own(make_shards, tmp_path):
    shards = make_shards(4, 8)
    seen = [
        {
            int(i)
            for batch in stream(shards, tmp_path, samples=32, rank=rank, world_size=2)[0]
            for i in batch.sample_id
        }
        for rank in range(2)
    ]
    assert len(seen[0] | seen[1]) == 32
    assert not seen[0] & seen[1]
    with pytest.raises(ValueError, match="4 shards are too few for 5 processes"):
        stream(shards, tmp_path, samples=80, rank=4, world_size=5)


def test_bad_samples_and_damaged_shards_are_left_out_and_named_once(make_shards, tmp_path):
    shards = make_shards(2, 16, bad=(5,))
    write_tar(
        tmp_path / "odd.tar",
        {"a.jpg": encode(picture(50, 60, 1)), "b.jpg": b"no image", "c.txt": b"alone"},
    )
    write_tar(tmp_path / "cut.tar", {f"cut{n}.jpg": encode(picture(60, 70, n)) for n in range(4)})
    with tarfile.open(tmp_path / "cut.tar") as archive:
        third = archive.getmembers()[2].offset_data
    with (tmp_path / "cut.tar").open("r+b") as file:
        file.truncate(third + 100)
    names = [*shards, str(tmp_path / "odd.tar"), str(tmp_path / "cut.tar")]
    mine, quarantine = stream(names, tmp_path, samples=96)
    assert sum(map(len, mine)) == 96
    assert quarantine.by_reason() == {
        "does not decode": 1,
        "no image member": 1,
        "not an image": 1,
        "shard cut short": 1,
    }
    report = {(entry.shard.rpartition("/")[2], entry.key) for entry in quarantine.entries}
    assert report == {
        ("shard-0000.tar", "000005"),
        ("odd.tar", "b"),
        ("odd.tar", "c"),
        ("cut.tar", "cut2.jpg"),
    }


def test_a_missing_shard_ends_the_stream_by_its_name(make_shards, tmp_path):
    make_shards(2, 8)
    with (
        faulty.FaultyServer(tmp_path) as server,
        pytest.raises(FileNotFoundError, match=r"shard-0002\.tar does not exist"),
    ):
        stream(f"{server.url}/shard-{{0000..0002}}.tar", tmp_path)


def test_pipes_stream_too(make_shards, tmp_path):
    shards = make_shards(3, 16)
    mine, _ = stream(f"pipe:cat {tmp_path}/shard-{{0000..0002}}.tar", tmp_path)
    assert_same(mine, stream(shards, tmp_path)[0])


def test_a_stream_resumes_near_where_it_was(make_shards, tmp_path):
    """The number of batches is exact; the shuffle differs from there on."""
    shards = make_shards(3, 16)
    config = hurried(tmp_path, mode="stream", epoch_samples=48, shuffle_buffer=20)
    with make_loader(shards, 8, views=VIEWS, remote=config) as loader:
        list(itertools.islice(loader, 2))
        state = loader.state_dict()
    with make_loader(shards, 8, views=VIEWS, remote=config) as loader:
        loader.load_state_dict(state)
        assert len(list(loader)) == 4
        assert loader.epoch == 1
    with (
        make_loader(shards[:2], 8, views=VIEWS, remote=config) as loader,
        pytest.raises(ValueError, match="this loader"),
    ):
        loader.load_state_dict(state)


def test_a_stream_is_left_at_any_time(make_shards, tmp_path):
    shards = make_shards(3, 16)
    for count in (0, 1, 3):
        stream(shards, tmp_path, count=count)
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("remote-")]


def test_ffcv_is_no_loader_for_streams(make_shards, tmp_path):
    with pytest.raises(ValueError, match="ffcv"):
        stream(make_shards(1, 8), tmp_path, backend="ffcv")

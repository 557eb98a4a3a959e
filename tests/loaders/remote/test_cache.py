"""The shard cache between threads and processes: one download a shard, none removed in use."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest

from benchmarks.correctness import faulty_server as faulty
from maskco_fast.loaders import RemoteError, make_loader, open_dataset
from maskco_fast.loaders.remote.cache import ShardCache
from maskco_fast.loaders.remote.prefetch import ShardPrefetcher
from maskco_fast.loaders.remote.store import RemoteShard
from tests.support.processes import fork_context
from tests.support.remote_servers import VIEWS, assert_same, batches, hurried

pytest.importorskip(
    "s3fs", reason="pip install 'maskco-fast[remote]' brings what reads remote shards"
)

SIZE = 100_000


@pytest.fixture
def objects(tmp_path):
    """A folder of five files of random bytes."""
    folder = tmp_path / "objects"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(5):
        (folder / f"{number}.tar").write_bytes(random.bytes(SIZE))
    return folder


def cached(folder: pathlib.Path) -> list[int]:
    """Bytes of every shard and part in the cache."""
    return sorted(
        file.stat().st_size for file in (folder / "cache").iterdir() if file.suffix != ".lock"
    )


def downloads(server, name: str) -> int:
    """How often a file's first bytes were requested."""
    return sum(
        method == "GET" and name in path and asked.startswith("bytes=0-")
        for method, path, asked in server.requests
    )


def look_up(cache: ShardCache, server, number: int) -> RemoteShard:
    return cache.store.look_up(f"{server.url}/{number}.tar")


def test_least_recently_used_goes_first_and_what_is_in_use_stays(objects, tmp_path):
    with faulty.FaultyServer(objects) as server:
        cache = ShardCache(hurried(tmp_path, cache_gb=3.5 * SIZE / 1e9))
        shards = [look_up(cache, server, number) for number in range(5)]
        pins = [cache.acquire(shard) for shard in shards[:3]]
        for pin in (pins[1], pins[0]):  # 1 is now the least recently used; 2 is in use
            pin.release()
        assert cache.acquire_if_room(shards[3]) is not None
        assert downloads(server, "/3.tar") == 1
        assert cache.acquire(shards[0]).read(5, 50) == (objects / "0.tar").read_bytes()[5:55]
        assert downloads(server, "/0.tar") == 1
        assert cached(tmp_path) == [SIZE] * 3
        cache.acquire(shards[1])
        assert downloads(server, "/1.tar") == 2


def test_no_room_ahead_of_time_and_a_warning_where_it_is_needed(objects, tmp_path, monkeypatch):
    monkeypatch.setattr("maskco_fast.loaders.remote.cache.ROOM_PATIENCE", 0.1)
    with faulty.FaultyServer(objects) as server:
        cache = ShardCache(hurried(tmp_path, cache_gb=1.5 * SIZE / 1e9))
        shards = [look_up(cache, server, number) for number in range(3)]
        in_use = cache.acquire(shards[0])
        assert cache.acquire_if_room(shards[1]) is None
        assert cached(tmp_path) == [SIZE]
        with pytest.warns(UserWarning, match=r"may hold 0\.00015 GB.*--remote\.cache-gb"):
            assert cache.acquire(shards[1]).read(0, SIZE) == (objects / "1.tar").read_bytes()
        assert in_use.read(0, 1)


def test_threads_that_wait_for_room_do_not_wait_for_each_other(objects, tmp_path):
    """Five threads need a shard each, and the cache holds two: no warning, no excess."""
    with (
        faulty.FaultyServer(objects) as server,
        ThreadPoolExecutor(5) as pool,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("error")
        cache = ShardCache(hurried(tmp_path, cache_gb=2.5 * SIZE / 1e9))
        shards = [look_up(cache, server, number) for number in range(5)]
        started = threading.Barrier(5)

        def use(shard: RemoteShard) -> int:
            started.wait()
            with cache.acquire(shard) as pin:
                time.sleep(0.05)
                return len(pin.read(0, SIZE))

        assert list(pool.map(use, shards)) == [SIZE] * 5
        assert len(cached(tmp_path)) <= 2


def test_a_released_shard_is_unlocked_at_once(objects, tmp_path):
    """Though a variable, such as that of a frame in a reference cycle, still refers to the pin."""
    with faulty.FaultyServer(objects) as server:
        cache = ShardCache(hurried(tmp_path, cache_gb=1.5 * SIZE / 1e9, downloads=1))
        shards = [look_up(cache, server, number) for number in range(2)]
        ahead = ShardPrefetcher(cache, shards[:1], np.array([1]), [np.arange(1)], threading.Event())
        try:
            assert ahead.read(0, 0, 0, SIZE) == (objects / "0.tar").read_bytes()
            pin = cache.acquire_if_room(shards[1])
            assert pin is not None
            assert pin.retain()
            pin.release()
            assert cache.acquire_if_room(shards[0]) is None
            pin.release()
            assert not pin.retain()
            assert cache.acquire_if_room(shards[0]) is not None
        finally:
            ahead.close()


def test_one_download_for_many_threads(objects, tmp_path):
    with faulty.FaultyServer(objects) as server:
        caches = [ShardCache(hurried(tmp_path)) for _ in range(4)]
        shard = look_up(caches[0], server, 0)
        with ThreadPoolExecutor(8) as pool:
            parts = list(pool.map(lambda n: caches[n % 4].acquire(shard).read(n, 10), range(40)))
        data = (objects / "0.tar").read_bytes()
        assert parts == [data[n : n + 10] for n in range(40)]
        assert downloads(server, "/0.tar") == 1


def test_a_download_goes_on_where_a_killed_process_left_it(objects, tmp_path):
    """A stalled process is killed midway; the next process requests only the rest."""
    with faulty.FaultyServer(objects) as server:
        server.plan = lambda exchange: (
            "stall" if exchange.number == 4 else None
        )  # HEAD, then the fourth request
        code = (
            "import sys, pathlib; from tests.support.remote_servers import hurried\n"
            "from maskco_fast.loaders.remote.cache import ShardCache\n"
            "cache = ShardCache(hurried(pathlib.Path(sys.argv[1]), timeout=60))\n"
            "cache.acquire(cache.store.look_up(sys.argv[2]))\n"
        )
        environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[3])}
        command = [sys.executable, "-c", code, str(tmp_path), f"{server.url}/0.tar"]
        process = subprocess.Popen(command, env=environment)
        while not server.injected:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert cached(tmp_path) == [60_000]
        server.requests.clear()
        cache = ShardCache(hurried(tmp_path))
        assert (
            cache.acquire(look_up(cache, server, 0)).read(0, SIZE)
            == (objects / "0.tar").read_bytes()
        )
        asked = [part for method, _, part in server.requests if method == "GET"]
        assert asked == ["bytes=60000-79999", "bytes=80000-99999"]


def test_a_part_that_nobody_works_at_is_room(objects, tmp_path):
    with faulty.FaultyServer(objects) as server:
        cache = ShardCache(hurried(tmp_path, cache_gb=1.5 * SIZE / 1e9))
        (tmp_path / "cache" / f"maskco-{0:032x}.90000.part").write_bytes(b"x" * 1000)
        assert cache.acquire_if_room(look_up(cache, server, 0)) is not None
        assert cached(tmp_path) == [SIZE]


def test_a_cached_shard_that_was_cut_is_downloaded_again(objects, tmp_path):
    with faulty.FaultyServer(objects) as server:
        cache = ShardCache(hurried(tmp_path))
        shard = look_up(cache, server, 0)
        path = cache.acquire(shard).path
        os.truncate(path, 10)
        assert cache.acquire(shard).read(0, SIZE) == (objects / "0.tar").read_bytes()


def test_a_full_disk_is_named(objects, tmp_path, monkeypatch):
    with faulty.FaultyServer(objects) as server:
        cache = ShardCache(hurried(tmp_path))

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(
            OSError, match=r"the disk of the shard cache is full.*--remote\.cache-gb"
        ):
            cache.acquire(look_up(cache, server, 0))


def test_a_waiting_read_can_be_ended(objects, tmp_path):
    stop = threading.Event()
    with faulty.FaultyServer(objects) as server:
        cache = ShardCache(hurried(tmp_path, patience=1000, backoff=30.0))
        shard = look_up(cache, server, 0)
        server.plan = faulty.always("503")
        threading.Timer(0.2, stop.set).start()
        with pytest.raises(RemoteError, match="the read was cancelled"):
            cache.acquire(shard, stop)


def test_a_cache_too_small_for_the_shuffle_is_refused_with_the_size_it_wants(
    make_shards, tmp_path, monkeypatch
):
    monkeypatch.setattr("maskco_fast.loaders.remote.cache.ROOM_PATIENCE", 0.05)
    make_shards(4, 16)
    with (
        faulty.FaultyServer(tmp_path) as server,
        make_loader(
            f"{server.url}/shard-{{0000..0003}}.tar",
            8,
            views=VIEWS,
            remote=hurried(tmp_path, cache_gb=1e-4),
            index_folder=tmp_path / "index",
        ) as loader,
        pytest.raises(
            ValueError,
            match=r"the 0\.0\d+ GB of shards that the shuffle reads.*Give --remote\.cache-gb",
        ),
    ):
        next(iter(loader))


def test_shards_come_ahead_of_their_turn_and_in_order(objects, tmp_path):
    """Three samples a shard, in order; two shards ahead of the one in use."""
    with faulty.FaultyServer(objects) as server:
        cache = ShardCache(hurried(tmp_path, ahead=2, downloads=1))
        shards = [look_up(cache, server, number) for number in range(5)]
        parts = [np.arange(6), np.arange(6, 15)]
        ahead = ShardPrefetcher(
            cache, shards, np.array([3, 6, 9, 12, 15]), parts, threading.Event()
        )
        try:
            for number in range(5):
                soon = [f"/{n}.tar" for n in range(min(number + 3, 5))]
                while [path for path in soon if not downloads(server, path)]:
                    time.sleep(0.01)
                assert not [n for n in range(number + 3, 5) if downloads(server, f"/{n}.tar")]
                for index in range(3 * number, 3 * number + 3):
                    assert (
                        ahead.read(number, index, index, 4)
                        == (objects / f"{number}.tar").read_bytes()[index : index + 4]
                    )
                assert ahead.read(number, 3 * number, 0, 4) is None  # released with its last sample
                ahead.advance(3 * number + 3)
        finally:
            ahead.close()
        assert all(downloads(server, f"/{n}.tar") == 1 for n in range(5))


def _rank(rank: int, names: str, folder: pathlib.Path) -> list[list[int]]:
    """The sample ids of one of two processes that share a cache, in two epochs."""
    with make_loader(
        names,
        4,
        views=VIEWS,
        rank=rank,
        world_size=2,
        threads=1,
        index_folder=folder / "index",
        remote=hurried(folder),
    ) as loader:
        return [batch.sample_id.tolist() for epoch in range(2) for batch in loader]


def test_two_processes_share_a_cache(make_shards, tmp_path):
    """With faults and an empty cache: one download of each shard, and each sample read once."""
    shards = make_shards(4, 16)
    with (
        faulty.FaultyServer(tmp_path, faulty.at_random(0.2, seed=2)) as server,
        ProcessPoolExecutor(2, fork_context()) as pool,
    ):
        names = f"{server.url}/shard-{{0000..0003}}.tar"
        ranks = list(pool.map(_rank, range(2), [names] * 2, [tmp_path] * 2))
        begun = [request for request in server.requests if request[2] == "bytes=0-19999"]
        assert 4 <= len(begun) <= 4 + sum(server.injected.values())
    with make_loader(shards, 8, views=VIEWS) as loader:
        truth = [batch.sample_id.tolist() for epoch in range(2) for batch in loader]
    assert [one + two for one, two in zip(*ranks, strict=True)] == truth


def test_two_jobs_in_different_orders_share_a_small_cache(make_shards, tmp_path):
    shards = make_shards(6, 16)
    size = sum(os.path.getsize(shard) for shard in shards)
    with faulty.FaultyServer(tmp_path) as server:
        config = hurried(tmp_path, cache_gb=1.1 * size / 1e9)
        names = f"{server.url}/shard-{{0000..0005}}.tar"
        open_dataset(names, index_folder=tmp_path / "index", remote=config)
        with ThreadPoolExecutor(2) as pool:
            both = list(pool.map(lambda seed: batches(names, tmp_path, config, seed=seed), (1, 2)))
    for seed, mine in zip((1, 2), both):
        assert_same(mine, batches(shards, tmp_path, seed=seed))

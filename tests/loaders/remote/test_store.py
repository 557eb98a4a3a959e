"""Shards on real servers that fail: nothing is lost or repeated, in the order of a local run."""

import contextlib
import gc
import itertools
import os
import pathlib
import signal
import threading
import warnings
import weakref

import pytest

from benchmarks.correctness import faulty_server as faulty
from maskco_fast.loaders import RemoteConfig, RemoteError, make_loader, open_dataset
from maskco_fast.loaders.remote.errors import ShardChanged
from maskco_fast.loaders.remote.store import RemoteStore
from maskco_fast.loaders.shards.names import redact_url
from tests.support.images import encode, picture, write_tar
from tests.support.remote_servers import VIEWS, assert_same, batches, hurried

pytest.importorskip(
    "s3fs", reason="pip install 'maskco-fast[remote]' brings what reads remote shards"
)


def pattern(server, name="shard-{0000..0002}.tar"):
    return f"{server.url}/{name}"


def bytes_in(folder):
    """The size of all files; those removed meanwhile count as empty."""
    total = 0
    for file in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += file.stat().st_size
    return total


@pytest.mark.parametrize("fault", faulty.BODY_FAULTS)
def test_a_body_that_fails_is_read_again(fault, make_shards, tmp_path):
    shards = make_shards(3, 16)
    with faulty.FaultyServer(tmp_path, faulty.every(3, "GET", fault)) as server:
        mine = batches(pattern(server), tmp_path)
        assert server.injected[fault] > 3
    assert_same(mine, batches(shards, tmp_path))


@pytest.mark.parametrize("fault", faulty.HEAD_FAULTS)
def test_a_look_up_that_fails_is_repeated(fault, make_shards, tmp_path):
    shards = make_shards(3, 16)
    with faulty.FaultyServer(tmp_path, faulty.every(3, "HEAD", fault)) as server:
        mine = batches(pattern(server), tmp_path)
        assert server.injected[fault] > 0
    assert_same(mine, batches(shards, tmp_path))


def test_a_length_reported_too_short_repeatedly_is_noticed(make_shards, tmp_path):
    shards = make_shards(1, 16)
    methods = []

    def plan(exchange):
        methods.append(exchange.method)
        return "short" if exchange.method == "HEAD" and methods.count("HEAD") <= 3 else None

    with faulty.FaultyServer(tmp_path, plan) as server:
        mine = batches(pattern(server, "shard-0000.tar"), tmp_path)
        assert server.injected["short"] == 3
    assert_same(mine, batches(shards, tmp_path))


def test_all_faults_at_once_and_a_cache_that_is_too_small_for_all_shards(make_shards, tmp_path):
    """The cache holds three of six shards; its limit holds after each batch, without a warning."""
    shards = make_shards(6, 16)
    size = max(os.path.getsize(shard) for shard in shards)
    with make_loader(shards, 8, views=VIEWS, shuffle=False) as loader:
        truth = list(loader) + list(loader)
    with (
        faulty.FaultyServer(tmp_path, faulty.at_random(0.25, seed=3)) as server,
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("error", "the shards in use at the same time must fit")
        config = hurried(tmp_path, cache_gb=3.5 * size / 1e9, downloads=1, timeout=0.2)
        names = pattern(server, "shard-{0000..0005}.tar")
        options = {"views": VIEWS, "shuffle": False, "index_folder": tmp_path / "index"}
        with make_loader(names, 8, remote=config, **options) as loader:
            mine = []
            for batch in itertools.chain(loader, loader):
                mine.append(batch)
                assert bytes_in(tmp_path / "cache") <= config.cache_gb * 1e9
        assert sum(server.injected.values()) > 10
    assert_same(mine, truth)


def test_a_repeated_request_releases_its_frames(tmp_path):
    """Otherwise blocks and pins of the callers stay alive until the garbage collector runs."""
    (tmp_path / "any.tar").write_bytes(b"bytes")
    store = RemoteStore(hurried(tmp_path))

    class Local:
        pass

    def look_up(store, url):
        local = Local()
        store.look_up(url)
        return weakref.ref(local)

    with faulty.FaultyServer(tmp_path, lambda _: None if store.faults else "503") as server:
        gc.disable()
        try:
            assert look_up(store, f"{server.url}/any.tar")() is None
        finally:
            gc.enable()
    assert store.faults == {"status 503": 1}


def test_a_garbled_download_is_repeated(make_shards, tmp_path):
    shards = make_shards(2, 16)
    truth = batches(shards, tmp_path)
    with faulty.FaultyServer(tmp_path) as server:
        config = hurried(tmp_path)
        batches(pattern(server, "shard-{0000..0001}.tar"), tmp_path, config)
        for file in (tmp_path / "cache").glob("*.tar"):
            file.unlink()
        broken: list[object] = []

        def once(exchange):
            if exchange.method == "GET" and len(broken) < 2:
                broken.append(exchange)
                return "garbled"
            return None

        server.plan = once
        assert_same(batches(pattern(server, "shard-{0000..0001}.tar"), tmp_path, config), truth)
        assert server.injected["garbled"] == 2


def test_missing_shards_are_named_before_anything_is_downloaded(make_shards, tmp_path):
    make_shards(2, 8)
    with faulty.FaultyServer(tmp_path) as server:
        with pytest.raises(
            FileNotFoundError, match=r"1 of 3 remote shards do not exist: http.*/shard-0002\.tar"
        ):
            batches(pattern(server), tmp_path)
        assert not [
            request
            for request in server.requests
            if request[0] == "GET" and "0002" not in request[1]
        ]


def test_a_shard_that_goes_missing_ends_the_epoch_by_its_name(make_shards, tmp_path):
    make_shards(3, 16)
    with faulty.FaultyServer(tmp_path) as server:
        config = hurried(tmp_path)
        dataset = open_dataset(pattern(server), index_folder=tmp_path / "index", remote=config)
        for file in (tmp_path / "cache").glob("*.tar"):
            file.unlink()
        server.plan = faulty.always("missing", "shard-0001")
        with (
            make_loader(dataset, 8, views=VIEWS) as loader,
            pytest.raises(
                FileNotFoundError, match=r"shard-0001\.tar does not exist.*take it out of --shards"
            ),
        ):
            list(loader)
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("remote-")]


@pytest.mark.parametrize("fault", ["503", "stall", "truncated"])
def test_a_fault_that_never_ends_ends_the_run(fault, make_shards, tmp_path):
    make_shards(3, 8)
    with faulty.FaultyServer(tmp_path) as sound:
        batches(pattern(sound), tmp_path / "sound")  # imports the client, for longer than a timeout
    with faulty.FaultyServer(tmp_path, faulty.always(fault, "shard-0001", method="GET")) as server:
        config = hurried(tmp_path, patience=1.0, timeout=0.2)
        with pytest.raises(
            RemoteError, match=r"shard-0001\.tar: \d+ attempts .*--remote\.patience"
        ):
            batches(pattern(server), tmp_path, config)


def test_a_refusal_is_not_repeated(make_shards, tmp_path):
    make_shards(3, 8)
    with faulty.FaultyServer(tmp_path, faulty.always("refused", "shard-0000")) as server:
        with pytest.raises(
            RemoteError,
            match=r"shard-0000\.tar: refused, status 403\. Check its address and your cred",
        ):
            batches(pattern(server), tmp_path)
        assert (
            len([request for request in server.requests if "0000" in request[1]]) <= 2
        )  # HEAD, and the GET that fsspec sends in its place


def test_a_server_without_ranges(make_shards, tmp_path, monkeypatch):
    shards = make_shards(2, 8)
    real = faulty._file

    def whole(folder, handler):
        if "Range" in handler.headers:
            del handler.headers["Range"]
        return real(folder, handler)

    monkeypatch.setattr(faulty, "_file", whole)
    with faulty.FaultyServer(tmp_path) as server:
        mine = batches(pattern(server, "shard-{0000..0001}.tar"), tmp_path)
    assert_same(mine, batches(shards, tmp_path))


def test_a_changed_shard_is_indexed_anew_and_refused_in_mid_run(make_shards, tmp_path):
    shards = make_shards(2, 8)
    with faulty.FaultyServer(tmp_path) as server:
        names, config = pattern(server, "shard-{0000..0001}.tar"), hurried(tmp_path)
        dataset = open_dataset(names, index_folder=tmp_path / "index", remote=config)
        for file in (tmp_path / "cache").glob("*.tar"):
            file.unlink()
        write_tar(pathlib.Path(shards[1]), {"new.jpg": encode(picture(50, 60, 9))})
        with (
            make_loader(dataset, 8, views=VIEWS) as loader,
            pytest.raises(ShardChanged, match=r"shard-0001\.tar has changed since it was indexed"),
        ):
            list(loader)
        assert len(open_dataset(names, index_folder=tmp_path / "index", remote=config)) == 9


def test_of_many_shards_some_are_looked_up_and_a_change_of_another_is_found_later(
    make_shards, tmp_path, monkeypatch
):
    shards = make_shards(4, 4)
    monkeypatch.setattr("maskco_fast.loaders.remote.dataset.LOOKED_UP", 2)
    monkeypatch.setattr("random.sample", lambda numbers, count: numbers[:count])
    with faulty.FaultyServer(tmp_path) as server:
        names, config = pattern(server, "shard-{0000..0003}.tar"), hurried(tmp_path)

        def opened():
            server.requests.clear()
            return open_dataset(names, index_folder=tmp_path / "index", remote=config)

        opened()
        for file in (tmp_path / "cache").glob("*.tar"):
            file.unlink()
        dataset = opened()
        asked = sorted(path for _, path, _ in server.requests)
        assert asked == ["/shard-0000.tar", "/shard-0001.tar"]
        assert dataset.read(5) == open_dataset(shards).read(5)
        write_tar(pathlib.Path(shards[3]), {"new.jpg": encode(picture(50, 60, 9))})
        dataset = opened()
        assert len(dataset) == 16
        with pytest.raises(ShardChanged, match=r"shard-0003\.tar has changed since it was indexed"):
            dataset.read(15)
        assert len(opened()) == 13
        # A change of one that is looked up is seen at once.
        write_tar(pathlib.Path(shards[0]), {"new.jpg": encode(picture(50, 60, 9))})
        assert len(opened()) == 10


def test_the_index_outlives_the_shards(make_shards, tmp_path):
    make_shards(3, 8)
    with faulty.FaultyServer(tmp_path) as server:
        config = hurried(tmp_path)
        first = open_dataset(pattern(server), index_folder=tmp_path / "index", remote=config)
        for file in (tmp_path / "cache").glob("*.tar"):
            file.unlink()
        server.requests.clear()
        again = open_dataset(pattern(server), index_folder=tmp_path / "index", remote=config)
        assert [method for method, _, _ in server.requests] == ["HEAD"] * 3
        assert again.fingerprint == first.fingerprint
        assert again.shards[2].key(1) == "000017"
        assert again.read(17) == open_dataset(tmp_path / "shard-0002.tar").read(1)


def test_state_resumes_from_a_remote_run_on_local_shards_and_back(make_shards, tmp_path):
    shards = make_shards(3, 16)
    truth = batches(shards, tmp_path)
    options = {"views": VIEWS, "index_folder": tmp_path / "index", "remote": hurried(tmp_path)}
    with faulty.FaultyServer(tmp_path, faulty.at_random(0.2, seed=5)) as server:
        with make_loader(pattern(server), 8, **options) as loader:
            iterator = iter(loader)
            mine = [next(iterator), next(iterator)]
            state = loader.state_dict()
        with make_loader(shards, 8, **options) as loader:
            loader.load_state_dict(state)
            iterator = iter(loader)
            mine.append(next(iterator))
            state = loader.state_dict()
        with make_loader(pattern(server), 8, **options) as loader:
            loader.load_state_dict(state)
            mine += list(loader)
    assert_same(mine, truth)


def test_every_loader_reads_through_the_cache(backend, make_shards, tmp_path):
    shards = make_shards(3, 16, bad=(20,))
    with faulty.FaultyServer(tmp_path, faulty.at_random(0.2, seed=6)) as server:
        mine = batches(pattern(server), tmp_path, hurried(tmp_path, timeout=0.2), backend=backend)
    assert_same(mine, batches(shards, tmp_path, backend=backend))


def test_local_and_remote_shards_together(make_shards, tmp_path):
    shards = make_shards(3, 16)
    with faulty.FaultyServer(tmp_path) as server:
        mine = batches([shards[0], pattern(server, "shard-0001.tar"), shards[2]], tmp_path)
    assert_same(mine, batches(shards, tmp_path))


def test_bad_samples_are_replaced_as_they_are_locally(make_shards, tmp_path):
    shards = make_shards(3, 16, bad=(3, 15, 16, 31))
    with faulty.FaultyServer(tmp_path) as server:
        mine = batches(pattern(server), tmp_path)
    assert_same(mine, batches(shards, tmp_path))


def test_leaving_early_does_not_wait_for_a_server_that_is_down(make_shards, tmp_path):
    make_shards(3, 16)
    with faulty.FaultyServer(tmp_path) as server:
        config = hurried(tmp_path, patience=1000, timeout=0.2, backoff=30.0)
        dataset = open_dataset(pattern(server), index_folder=tmp_path / "index", remote=config)
        for file in (tmp_path / "cache").glob("*.tar"):
            file.unlink()
        server.plan = faulty.always("503")
        with make_loader(dataset, 8, views=VIEWS) as loader:
            main = threading.main_thread().ident
            threading.Timer(0.5, signal.pthread_kill, (main, signal.SIGINT)).start()
            with pytest.raises(KeyboardInterrupt):
                next(iter(loader))
        assert server.injected["503"]
        assert not [
            thread
            for thread in threading.enumerate()
            if thread.name.startswith(("remote-", "native"))
        ]


def test_a_long_outage_warns(make_shards, tmp_path, monkeypatch):
    monkeypatch.setattr("maskco_fast.loaders.remote.store.WARN_AFTER", 0.0)
    make_shards(1, 8)
    fails = iter([True] * 3)
    with (
        faulty.FaultyServer(tmp_path, lambda _: "503" if next(fails, False) else None) as server,
        pytest.warns(
            UserWarning,
            match=r"shard-0000\.tar: \d attempts have failed, the last with: status 503",
        ),
    ):
        batches(pattern(server, "shard-0000.tar"), tmp_path)


def test_secrets_are_not_shown():
    assert (
        redact_url("https://me:secret@host/a/b.tar?X-Amz-Signature=secret")
        == "https://host/a/b.tar"
    )
    assert redact_url("s3://bucket/b.tar") == "s3://bucket/b.tar"
    assert redact_url("/a?b@c.tar") == "/a?b@c.tar"


def test_waits_grow_and_are_random(tmp_path, monkeypatch):
    waits = []
    store = RemoteStore(RemoteConfig(backoff=1.0))

    def uniform(low: float, high: float) -> float:
        waits.append((low, high))
        return 0.0

    monkeypatch.setattr(store._random, "uniform", uniform)
    with faulty.FaultyServer(tmp_path, faulty.always("503")) as server, warnings.catch_warnings():
        store.config = RemoteConfig(backoff=1.0, patience=0.2)
        with pytest.raises(RemoteError, match="status 503"):
            store.look_up(f"{server.url}/any.tar")
    assert waits[:7] == [(0, 1.0), (0, 2.0), (0, 4.0), (0, 8.0), (0, 16.0), (0, 30.0), (0, 30.0)]


def test_options_that_do_not_fit_are_refused():
    for wrong in ({"cache_gb": 0}, {"downloads": 0}, {"ahead": -1}, {"mode": "stream"}):
        with pytest.raises(ValueError, match=r"RemoteConfig\.\w+ must be"):
            RemoteConfig(**wrong)

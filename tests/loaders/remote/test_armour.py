"""Hostile and odd servers, other protocols, credentials, and files that are not the cache's."""

import contextlib
import gzip
import http.server
import os
import pathlib
import threading
import tracemalloc

import pytest

from benchmarks.correctness import faulty_server as faulty
from maskco_fast.kernels.errors import InvalidInput, MissingPackage
from maskco_fast.loaders import (
    Quarantine,
    RemoteConfig,
    RemoteError,
    make_loader,
    open_dataset,
)
from maskco_fast.loaders.remote.cache import ShardCache
from maskco_fast.loaders.remote.errors import ShardTooLarge
from maskco_fast.loaders.remote.store import RemoteShard, RemoteStore
from maskco_fast.loaders.shards.beton_writer import write_beton
from tests.support.remote_servers import VIEWS, hurried

pytest.importorskip(
    "s3fs", reason="pip install 'maskco-fast[remote]' brings what reads remote shards"
)

fsspec = pytest.importorskip("fsspec")


class Server:
    """An HTTP server on this machine whose GET is a function of the handler."""

    def __init__(self, get, size: int = 1000, head=None) -> None:
        self.headers: list[dict[str, str]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                outer.headers.append(dict(self.headers))
                if head is not None:
                    return head(self)
                self.send_response(200)
                self.send_header("Content-Length", str(size))
                self.end_headers()

            def do_GET(self) -> None:
                outer.headers.append(dict(self.headers))
                get(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/s.tar"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def endless(handler, status: int = 206) -> None:
    handler.send_response(status)
    handler.end_headers()
    with contextlib.suppress(OSError):
        while True:
            handler.wfile.write(bytes(1 << 16))


def endless_whole(handler) -> None:
    endless(handler, 200)


def unpacks_to_a_gigabyte(handler) -> None:
    body = gzip.compress(bytes(10 << 20)) * 100
    handler.send_response(206)
    handler.send_header("Content-Encoding", "gzip")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    with contextlib.suppress(OSError):
        handler.wfile.write(body)


def another_range(handler) -> None:
    handler.send_response(206)
    handler.send_header("Content-Range", "bytes 7-1006/1000")
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(bytes(1000))


def endless_error(handler) -> None:
    endless(handler, 500)


ODD = [endless, endless_whole, unpacks_to_a_gigabyte, another_range]


@pytest.mark.parametrize(
    ("protocol", "get"),
    [*(("http", get) for get in ODD), *(("s3", get) for get in [*ODD[1:], endless_error])],
)
def test_an_answer_that_is_too_long_or_another_is_given_up(protocol, get, tmp_path, monkeypatch):
    monkeypatch.setattr("maskco_fast.loaders.remote.s3.MAX_TEXT", 1 << 20)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with Server(get) as server:
        endpoint = server.url.removesuffix("/s.tar")
        # The limit of time is far off, so that the one of length has to act.
        config = hurried(tmp_path, patience=0.3, timeout=30.0, s3_endpoint=endpoint)
        url = server.url if protocol == "http" else "s3://bucket/s.tar"
        tracemalloc.start()
        with pytest.raises(RemoteError, match="wrong length"):
            list(RemoteStore(config).blocks(RemoteShard(url=url, size=1000, tag="")))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 100e6


def test_an_endless_list_of_s3_is_given_up(tmp_path, monkeypatch):
    """s3fs lists a key's folder where the key is missing."""
    monkeypatch.setattr("maskco_fast.loaders.remote.s3.MAX_TEXT", 1 << 20)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")

    def missing(handler) -> None:
        handler.send_response(404)
        handler.end_headers()

    with Server(endless_whole, head=missing) as server:
        endpoint = server.url.removesuffix("/s.tar")
        config = hurried(tmp_path, patience=0.3, timeout=30.0, s3_endpoint=endpoint)
        tracemalloc.start()
        with pytest.raises(RemoteError, match="wrong length"):
            RemoteStore(config).look_up("s3://bucket/s.tar")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 100e6


def test_an_answer_of_another_file_system_that_is_too_long_is_given_up(tmp_path):
    from fsspec.implementations.memory import MemoryFileSystem

    class TooMuch(MemoryFileSystem):
        def cat_file(self, path, start=None, end=None, **_):
            return bytes(end - start + 1)

    fsspec.register_implementation("toomuch", TooMuch, clobber=True)
    store = RemoteStore(hurried(tmp_path, patience=0.3))
    with pytest.raises(RemoteError, match="wrong length"):
        list(store.blocks(RemoteShard(url="toomuch://s.tar", size=1000, tag="")))


@pytest.mark.parametrize("device", ["zero", "urandom"])
def test_an_endless_command_ends_in_a_stream(device, make_shards, tmp_path, monkeypatch):
    monkeypatch.setattr("maskco_fast.loaders.remote.tar_stream.MAX_GAP", 1 << 20)
    stream = hurried(tmp_path, mode="stream", epoch_samples=8)
    names = [f"pipe:cat /dev/{device}", make_shards(1, 8)[0]]
    with make_loader(names, 8, views=VIEWS, remote=stream) as loader:
        assert len(list(loader)) == 1
        reasons = [entry.reason for entry in loader.quarantine.entries]
    assert all("tar" in reason or "damaged" in reason for reason in reasons), reasons


def test_a_server_that_ignores_ranges_is_read_in_large_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("maskco_fast.loaders.remote.ranges.UNRANGED", 70_000)
    data = os.urandom(200_000)

    def whole(handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        with contextlib.suppress(OSError):
            handler.wfile.write(data)

    store = RemoteStore(hurried(tmp_path))
    with Server(whole, len(data)) as server:
        shard = store.look_up(server.url)
        blocks = list(store.blocks(shard))
        assert b"".join(blocks) == data
        assert len(blocks) == 3
        assert store.ends_at_size(shard)
        assert not store.ends_at_size(RemoteShard(url=server.url, size=len(data) - 5, tag=""))


def test_a_claimed_petabyte_is_named_and_other_shards_are_used(make_shards, tmp_path):
    make_shards(1, 6)
    with faulty.FaultyServer(tmp_path) as good, Server(endless, 10**15) as bad:
        names = [f"{good.url}/shard-0000.tar", bad.url]
        with pytest.warns(UserWarning, match=r"1e\+06 GB. Raise --remote\.cache-gb"):
            dataset = open_dataset(
                names, index_folder=tmp_path / "index", remote=hurried(tmp_path, cache_gb=0.01)
            )
    assert len(dataset) == 6
    assert [entry.reason for entry in dataset.bad] == ["larger than the shard cache may be"]
    assert sum(file.stat().st_size for file in (tmp_path / "cache").iterdir()) < 1e6


def test_an_endless_command_stops_at_the_limit(tmp_path):
    cache = ShardCache(hurried(tmp_path, cache_gb=0.005))
    with pytest.raises(ShardTooLarge, match=r"more than 0\.005 GB"):
        cache.acquire(RemoteShard(url="pipe:cat /dev/zero", size=-1, tag=""))
    assert sum(file.stat().st_size for file in (tmp_path / "cache").iterdir()) < 1e6


def test_the_cache_leaves_files_alone_that_it_did_not_write(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    own = ["mine.tar", "a.part", f"{7:032x}.tar", "x.9.part", f"maskco-{7:032x}-copy.tar"]
    for name in own:
        (folder / name).write_bytes(b"x" * 400_000)
    cache = ShardCache(hurried(tmp_path, cache_gb=0.0003))
    source = tmp_path / "bytes"
    for number in range(3):
        source.write_bytes(bytes([number]) * 200_000)
        with cache.acquire(RemoteShard(url=f"pipe:cat {source} #{number}", size=-1, tag="")):
            pass
    left = sorted(file.name for file in folder.iterdir() if file.suffix == ".tar")
    assert [name for name in own if (folder / name).exists()] == own
    assert len(left) == 3 + 1  # what fits of the cache's own


def test_other_protocols_are_read_where_fsspec_can(make_shards, tmp_path):
    path = make_shards(1, 8)[0]
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/shards/s.tar", pathlib.Path(path).read_bytes())
    views = {"views": VIEWS, "index_folder": tmp_path / "index", "remote": hurried(tmp_path)}
    with make_loader("memory://shards/s.tar", 8, **views) as loader:
        (mine,) = loader
    with make_loader(path, 8, views=VIEWS) as loader:
        (truth,) = loader
    assert mine.sample_id.tolist() == truth.sample_id.tolist()
    assert (mine.query == truth.query).all()
    with pytest.raises(FileNotFoundError, match=r"memory://shards/t\.tar"):
        open_dataset("memory://shards/t.tar", remote=hurried(tmp_path))


@pytest.mark.parametrize(("url", "package"), [("gs://b/s.tar", "gcsfs"), ("az://b/s.tar", "adlfs")])
def test_a_missing_package_is_named(url, package, tmp_path):
    try:
        __import__(package)
    except ImportError:
        pass
    else:
        pytest.skip(f"{package} is installed")
    with pytest.raises(MissingPackage, match=rf"{url}.*pip install {package}"):
        open_dataset(url, remote=hurried(tmp_path))


def test_an_unknown_protocol_is_named(tmp_path):
    for url in ("bogus://x/s.tar", "simplecache::s3://x/s.tar"):
        with pytest.raises(InvalidInput, match=rf"{url}: .*gs://.*hf://"):
            open_dataset(f"{url}?token=secret", remote=hurried(tmp_path))


def small(handler) -> None:
    handler.send_response(206)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(bytes(1000))


def requested(config: RemoteConfig, url: str, size: int = 1000) -> None:
    list(RemoteStore(config).blocks(RemoteShard(url=url, size=size, tag="")))


def test_proxies_and_netrc_are_honoured(tmp_path, monkeypatch):
    with Server(small) as proxy:
        host = proxy.url.removesuffix("/s.tar")
        monkeypatch.setenv("HTTP_PROXY", host)
        monkeypatch.setenv("http_proxy", host)
        requested(hurried(tmp_path), "http://shards.invalid/s.tar")
        assert proxy.headers[-1]["Host"] == "shards.invalid"
        monkeypatch.delenv("HTTP_PROXY")
        monkeypatch.delenv("http_proxy")
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password s3cret\n")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        requested(hurried(tmp_path), proxy.url)
        assert proxy.headers[-1]["Authorization"].startswith("Basic ")


def test_headers_are_sent_and_never_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "Bearer s3cret")
    headers = ("Authorization: $MY_TOKEN", "X-Other: s3cret2")
    config = hurried(tmp_path, headers=headers)
    with Server(small) as server:
        requested(config, server.url)
        assert server.headers[-1]["Authorization"] == "Bearer s3cret"
        assert server.headers[-1]["X-Other"] == "s3cret2"
    assert "s3cret" not in repr(config)
    for bad in ("s3cret", "A b: s3cret", "X: $NOT_THERE_s3", "X: s3cret\r\nY: 1"):
        with pytest.raises(InvalidInput) as caught:
            hurried(tmp_path, headers=(bad,)).http_headers()
        assert "s3cret" not in str(caught.value)


def test_a_redirect_to_another_host_does_not_bring_the_headers_along(tmp_path):
    headers = ("Authorization: Bearer s3cret", "X-Api-Key: s3cret", "PRIVATE-TOKEN: s3cret")
    config = hurried(tmp_path, headers=headers)

    def leads_to(target):
        def redirect(handler) -> None:
            handler.send_response(302)
            handler.send_header("Location", target())
            handler.end_headers()

        return redirect

    def has_moved(handler) -> None:
        if handler.path == "/s.tar":
            leads_to(lambda: "/t.tar")(handler)
        else:
            small(handler)

    with Server(small) as other:
        redirect = leads_to(lambda: other.url)
        with Server(redirect, head=redirect) as first:
            RemoteStore(config).look_up(first.url)
            requested(config, first.url)
            assert [sent["X-Api-Key"] for sent in first.headers] == ["s3cret"] * 2
            assert len(other.headers) == 2  # of HEAD and GET
            assert "s3cret" not in str(other.headers)
    with Server(has_moved) as server:
        requested(config, server.url)
        assert [sent["PRIVATE-TOKEN"] for sent in server.headers] == ["s3cret"] * 2


def test_files_hold_no_secrets(make_shards, tmp_path):
    path = make_shards(1, 4, bad=(1,))[0]
    (tmp_path / "text.tar").write_bytes(b"no archive" * 100)
    names = [f"pipe:cat {name} # token=s3cret" for name in (path, tmp_path / "text.tar")]
    dataset = open_dataset(names, index_folder=tmp_path / "index", remote=hurried(tmp_path))
    assert len(dataset.bad) == 1
    Quarantine(dataset.bad).write(tmp_path / "quarantine.json")
    bad = write_beton(dataset, tmp_path / "s.beton")
    assert len(bad) == 0
    with make_loader(dataset, 2, views=VIEWS) as loader:
        list(loader)
        loader.quarantine.write(tmp_path / "failed.json")
    for file in ("quarantine.json", "s.beton", "failed.json"):
        content = (
            (tmp_path / file).read_bytes().replace(b"\0", b"")
        )  # NumPy's text has 4 bytes each
        assert b"s3cret" not in content
        assert b"pipe:cat" in content
    assert not [file for file in tmp_path.rglob("*") if "s3cret" in file.name]


def test_errors_name_no_secrets(tmp_path):
    url = "http://me:s3cret@127.0.0.1:9/s.tar?X-Amz-Signature=s3cret"
    command = "pipe:curl --s3cret -H 'A: Bearer s3cret' 'http://me:s3cret@127.0.0.1:9/s.tar'"
    for address in (url, command):
        with pytest.raises(OSError, match=r"127\.0\.0\.1:9/s\.tar") as caught:
            open_dataset(address, remote=hurried(tmp_path, patience=0.2))
        error: BaseException | None = caught.value
        while error is not None and not error.__suppress_context__:
            assert "s3cret" not in str(error)
            error = error.__cause__ or error.__context__
        assert error is None or "s3cret" not in str(error)

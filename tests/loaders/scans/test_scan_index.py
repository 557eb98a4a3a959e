"""The scan index: the same batches with and without, whatever has happened to its files."""

import contextlib
import itertools
import os
import pathlib
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest

from benchmarks.correctness import faulty_server
from maskco_fast.commands.index import IndexConfig, index
from maskco_fast.kernels.jpeg.checkpoints import checksum, find_checkpoints
from maskco_fast.loaders import Loader, ViewConfig, make_loader, open_dataset
from maskco_fast.loaders.scans import scan_dataset as module
from maskco_fast.loaders.scans import scan_file
from maskco_fast.loaders.scans.scan_dataset import scan_dataset
from maskco_fast.loaders.scans.scan_file import HEADER, SUFFIX
from maskco_fast.loaders.scans.scan_index import ScanIndex
from maskco_fast.loaders.shards.beton_writer import write_beton
from tests.loaders.test_conformance import same
from tests.support.images import encode, picture, write_shards, write_tar
from tests.support.remote_servers import hurried

VIEWS = ViewConfig.maskco(32)
LIMIT = 1e9


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_shards(tmp_path_factory.mktemp("shards"), 2, 7, bad=(5,), side=160)


@pytest.fixture(scope="module")
def epochs(shards):
    """Three epochs without a scan index."""
    with make_loader(shards, 4, views=VIEWS, threads=1, scan_index_gb=0) as loader:
        return [list(loader) for _ in range(3)]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "index"


@pytest.fixture
def made(shards, folder):
    """The folder of a complete scan index."""
    scan_dataset(open_dataset(shards, index_folder=folder), limit=LIMIT, threads=1)
    return folder


@pytest.fixture(autouse=True)
def uses(monkeypatch) -> list[int]:
    """How many of the samples of each call had checkpoints."""
    counts: list[int] = []
    read = ScanIndex.read

    def counting(self, indices):
        found = read(self, indices)
        counts.append(0 if found is None else int((np.diff(found.begins) > 0).sum()))
        return found

    monkeypatch.setattr(ScanIndex, "read", counting)
    return counts


def native(shards, folder, **options) -> Loader:
    return make_loader(shards, 4, views=VIEWS, threads=1, index_folder=folder, **options)


def scan_files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(folder.glob(f"*{SUFFIX}"))


def stored(shards, folder) -> list[bytes | None]:
    """The checkpoints of all samples in a folder."""
    scanned = ScanIndex(open_dataset(shards, index_folder=folder), limit=LIMIT)
    return [one.rows or None if one else None for one in scanned.read_each(range(14))]


def truth(shards) -> list[bytes | None]:
    """The checkpoints of all samples, found anew."""
    dataset = open_dataset(shards)
    rows = [find_checkpoints(dataset.read(index)) for index in range(len(dataset))]
    return [None if one is None else one.tobytes() for one in rows]


def equal(mine, theirs) -> bool:
    return all(itertools.starmap(same, zip(mine, theirs, strict=True)))


def test_the_first_epoch_makes_it_and_the_second_uses_it(shards, epochs, folder, uses):
    with native(shards, folder) as loader:
        assert equal(loader, epochs[0])
        assert sum(uses) == 0
        found = stored(shards, folder)
        assert all(one in (None, true) for one, true in zip(found, truth(shards)))
        assert found.count(None) <= 3  # the bad one, and two beyond the last batch
        uses.clear()
        assert equal(loader, epochs[1])
        assert sum(uses) >= 8


def test_a_resumed_run_uses_it(shards, epochs, made, uses):
    with native(shards, made) as loader:
        next(iter(loader))
        state = loader.state_dict()
    with native(shards, made) as loader:
        loader.load_state_dict(state)
        uses.clear()
        assert equal(loader, epochs[0][1:])
        assert sum(uses) >= 7


def test_a_process_of_its_own_makes_it(shards, epochs, folder):
    with native(shards, folder, loader_process=True) as loader:
        assert equal(loader, epochs[0])
        assert equal(loader, epochs[1])
    found = stored(shards, folder)
    assert all(one in (None, true) for one, true in zip(found, truth(shards)))
    assert found.count(None) <= 3


def test_ranks_share_it(shards, folder, uses):
    """What one rank finds in the first epoch, the other uses in the second."""

    def ranks(**options) -> list[Loader]:
        return [
            make_loader(shards, 3, views=VIEWS, threads=2, rank=rank, world_size=2, **options)
            for rank in range(2)
        ]

    with contextlib.ExitStack() as stack:
        mine, theirs = (
            [stack.enter_context(rank) for rank in made]
            for made in (ranks(index_folder=folder), ranks(scan_index_gb=0))
        )
        for _ in range(2):
            uses.clear()
            running = [itertools.zip_longest(*pair) for pair in zip(mine, theirs)]
            for pairs in zip(*running):  # both ranks read at a time
                assert all(same(*pair) for pair in pairs)
        assert sum(uses) >= 9
    assert stored(shards, folder).count(None) <= 3  # the bad one, and two beyond the last batch


def test_no_changed_byte_changes_a_checkpoint(shards, made):
    """Each is found sound or not at all, wherever a byte is changed or the file is cut."""
    whole, random = stored(shards, made), np.random.default_rng(0)
    assert sum(one is not None for one in whole) == 13
    (file, _) = scan_files(made)
    sound, lost = file.read_bytes(), 0
    for number in range(120):
        damaged = bytearray(sound)
        if number % 4 == 0:
            del damaged[int(random.integers(len(damaged))) :]
        else:  # half of them in header and table, which are short
            room = (len(damaged), HEADER.size + 7 * 32)[number % 2]
            damaged[int(random.integers(room))] ^= 1 << int(random.integers(8))
        file.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = stored(shards, made)
        assert all(one in (None, true) for one, true in zip(found, whole))
        lost += found != whole
    assert lost > 90


@pytest.mark.parametrize("damage", ["header", "table", "checkpoints", "cut", "not a file"])
def test_a_damaged_file_is_made_anew_with_a_warning(shards, epochs, made, damage):
    whole = stored(shards, made)
    file = scan_files(made)[0]
    data = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(data[: len(data) // 2])
    elif damage == "not a file":
        file.unlink()
        file.mkdir()
    else:
        at = {"header": 9, "table": HEADER.size + 3 * 32 + 9, "checkpoints": len(data) - 5}[damage]
        data[at] ^= 64
        file.write_bytes(data)
    with native(shards, made) as loader:
        with pytest.warns(UserWarning, match=f"{file.name}.*is damaged|cannot be written"):
            assert equal(loader, epochs[0])
        if damage == "not a file":
            return
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            assert equal(loader, epochs[1])
    assert stored(shards, made) == whole


def test_changed_images_are_noticed_by_their_checksum(tmp_path, folder, uses):
    """The index, which compares size and modification time, does not see this change. The changed
    JPEG is read from its beginning, in every epoch."""
    images = {f"{n}.jpg": encode(picture(160, 200, n), quality=90) for n in range(4)}
    shard = write_tar(tmp_path / "s.tar", images)
    scan_dataset(open_dataset(str(shard), index_folder=folder), limit=LIMIT, threads=1)
    status = shard.stat()
    other = bytearray(images["2.jpg"])
    other[other.index(b"\xff\xdb") + 5] += 9  # the first quantisation step
    shard.write_bytes(shard.read_bytes().replace(images["2.jpg"], other))
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
    with native(shard, folder) as loader, native(shard, folder, scan_index_gb=0) as without:
        assert equal(loader, without)
        assert equal(loader, without)
    dataset = open_dataset(str(shard), index_folder=folder)
    scanned = ScanIndex(dataset, limit=LIMIT).read_each([2])[0]
    assert scanned is not None
    assert scanned.checksum == checksum(images["2.jpg"]) != checksum(bytes(other))


def test_a_shard_with_other_samples_has_a_new_file(tmp_path, folder):
    datasets = []
    for names in ("abc", "bcd"):
        shard = write_tar(
            tmp_path / "s.tar", {f"{n}.jpg": encode(picture(160, 200, ord(n))) for n in names}
        )
        datasets.append(open_dataset(str(shard), index_folder=folder))
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            assert scan_dataset(datasets[-1], limit=LIMIT, threads=1) == 3
        if len(datasets) == 1:
            earlier = ScanIndex(datasets[0], limit=LIMIT)
            scanned = earlier.read_each([0])[0]
    (file,) = scan_files(folder)
    assert file.stat().st_size == 64 + 3 * 32 + 3 * 20 * 10
    newer = file.read_bytes()
    assert scanned is not None
    earlier._add_one(0, scanned)
    earlier.close()  # a run that still reads the earlier shard leaves the file alone
    assert file.read_bytes() == newer


def test_its_bytes_are_limited(shards, folder, epochs):
    with (
        native(shards, folder, scan_index_gb=1e-6) as loader,
        pytest.warns(UserWarning, match="is full: 0 MB of the 0.001 MB of `scan_index_gb`"),
    ):
        assert equal(loader, epochs[0])
    assert scan_files(folder) == []


def test_index_scans_ahead_and_only_once(shards, folder, capsys, monkeypatch):
    config = IndexConfig(shards=tuple(shards), index_folder=folder, scan=True, threads=2)
    index(config)
    assert "13 with a scan index" in capsys.readouterr().out
    assert stored(shards, folder) == truth(shards)
    monkeypatch.setattr(module, "find_checkpoints", None)
    index(config)
    assert "13 with a scan index" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["folder", "beton"])
def test_folders_and_betons_have_one_too(kind, shards, tmp_path, folder, uses):
    source = tmp_path / f"images.{kind}"
    if kind == "beton":
        write_beton(open_dataset(shards), source)
    else:
        source.mkdir()
        for number in range(4):
            (source / f"{number}.jpg").write_bytes(encode(picture(160, 200, number)))
    with native(source, folder) as loader, native(source, folder, scan_index_gb=0) as without:
        for _ in range(3):
            uses.clear()
            assert equal(loader, without)
        assert sum(uses) >= 4
    assert len(scan_files(folder)) == (2 if kind == "beton" else 1)  # one a shard


def test_tiny_images_and_streams_have_none(tmp_path, folder):
    shards = write_shards(tmp_path, 1, 4)
    with native(shards, folder) as loader:
        list(loader)
    assert scan_files(folder) == []


def test_many_append_at_once_without_loss(shards, made, monkeypatch):
    """Four writers, each with a file descriptor of its own, as of other processes."""
    write_all = scan_file._write

    def write_late(*arguments) -> None:
        time.sleep(5e-4)  # after the file's end was looked up
        write_all(*arguments)

    monkeypatch.setattr(scan_file, "_write", write_late)
    dataset = open_dataset(shards, index_folder=made)
    source = ScanIndex(dataset, limit=LIMIT)
    every = {n: one for n in range(14) if (one := source.read_each([n])[0]) is not None}
    for file in scan_files(made):
        file.unlink()
    writers = [ScanIndex(dataset, limit=LIMIT) for _ in range(4)]

    def write(writer: ScanIndex) -> None:
        for number, one in every.items():
            writer._add_one(number, one)
            writer.close()

    threads = [threading.Thread(target=write, args=(writer,)) for writer in writers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written = ScanIndex(dataset, limit=LIMIT)
    assert not any(writer._warned for writer in writers)
    assert dict(zip(every, written.read_each([*every]))) == every


def test_remote_shards_have_one_by_their_bytes(shards, epochs, tmp_path, uses):
    pytest.importorskip(
        "s3fs", reason="pip install 'maskco-fast[remote]' brings what reads remote shards"
    )
    folder = tmp_path / "index"
    with faulty_server.FaultyServer(pathlib.Path(shards[0]).parent) as server:
        urls = [f"{server.url}/{pathlib.Path(shard).name}" for shard in shards]
        with native(urls, folder, remote=hurried(tmp_path)) as loader:
            assert equal(loader, epochs[0])
            uses.clear()
            assert equal(loader, epochs[1])
            assert sum(uses) >= 8
        scanned = [file.name for file in scan_files(folder)]
        assert len(scanned) == 2


def test_a_script_may_end_in_an_epoch(shards, tmp_path, folder):
    """The loader is then finalised with the interpreter, when files can no longer be opened: a
    function keeps the script's names until then."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from maskco_fast.loaders import ViewConfig, make_loader\n"
        "def function(): pass\n"
        "folder, *shards = sys.argv[1:]\n"
        "views = ViewConfig.maskco(32)\n"
        "loader = make_loader(shards, 4, views=views, threads=1, index_folder=folder)\n"
        "batches = iter(loader)\n"
        "next(batches)\n"
    )
    folder.mkdir()
    command = [sys.executable, str(script), str(folder), *shards]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_file_that_goes_leaves_the_others(shards, folder):
    """Removed while it was not open; those of the other shards are read all the same."""
    dataset = open_dataset(shards, index_folder=folder)
    scan_dataset(dataset, limit=LIMIT, threads=1)
    scan_index = ScanIndex(dataset, limit=LIMIT)
    everything = scan_index.read_each(range(len(dataset)))
    first = int(dataset.shard_sizes[0])
    pathlib.Path(scan_index._file(0).path).unlink()
    scan_index._reader.close()
    with pytest.warns(UserWarning, match="No such file"):
        found = scan_index.read_each(range(len(dataset)))
    assert found == [None] * first + everything[first:]
    assert any(everything[:first])
    assert any(everything[first:])

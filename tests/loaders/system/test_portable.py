"""Systems without Linux's calls: a process that lacks them indexes, loads and writes."""

import os
import subprocess
import sys
import threading

import pytest

from maskco_fast.loaders.system import portable
from tests.support.images import encode, picture, write_tar

REMOVED = """
import os, signal, sys
for name in (
    "sched_getaffinity", "pread", "pwrite", "fdatasync", "getuid", "memfd_create", "killpg",
    "getppid", "fork",
):
    delattr(os, name)
for name in ("SIGUSR1", "SIGHUP", "SIGKILL"):
    delattr(signal, name)
sys.modules["fcntl"] = sys.modules["resource"] = None

import pathlib
from maskco_fast.loaders import ViewConfig, make_loader, open_dataset
from maskco_fast.loaders.shards.beton_writer import write_beton
from maskco_fast.run_lock import lock_run_folder
from maskco_fast.training import trainer

shard, folder = sys.argv[1:]
with lock_run_folder(pathlib.Path(folder, "run")):
    dataset = open_dataset(shard, index_folder=folder)
    write_beton(dataset, pathlib.Path(folder, "all.beton"))
    for shards in (shard, f"{folder}/all.beton"):
        with make_loader(
            shards, 2, views=ViewConfig.maskco(32), backend="native", index_folder=folder
        ) as loader:
            print(sum(len(batch) for batch in loader))
"""


def test_a_process_without_linux_calls_indexes_loads_and_writes(tmp_path):
    members = {f"{n}.jpg": encode(picture(40, 50, n)) for n in range(4)}
    shard = write_tar(tmp_path / "s.tar", members)
    done = subprocess.run(
        [sys.executable, "-c", REMOVED, shard, tmp_path],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1", "LOGNAME": "user"},  # torch asks getuid else
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["4", "4"]


def test_reading_and_writing_at_an_offset_without_the_calls(tmp_path, monkeypatch):
    for name in ("pread", "pwrite", "fdatasync"):
        monkeypatch.delattr(os, name)
    path = tmp_path / "file"
    path.write_bytes(bytes(range(200)) * 50)
    with path.open("r+b") as file:
        number = file.fileno()
        wrong = []

        def read(begin):
            for offset in range(begin, 10_000, 7):
                if portable.read_at_offset(number, 1, offset) != bytes([offset % 200]):
                    wrong.append(offset)

        threads = [threading.Thread(target=read, args=(begin,)) for begin in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert portable.write_at_offset(number, b"abc", 5) == 3
        portable.sync_data(number)
        assert portable.read_at_offset(number, 5, 4) == b"\x04abc\x08"


@pytest.mark.skipif(portable.fcntl is None, reason="this system has no flock")
def test_locks_exclude_each_other(tmp_path, monkeypatch):
    with (tmp_path / "f").open("wb") as one, (tmp_path / "f").open("rb") as other:
        assert portable.try_lock(other.fileno(), shared=True)
        assert not portable.try_lock(one.fileno())
        monkeypatch.setattr(portable, "fcntl", None)
        assert portable.try_lock(one.fileno())


def test_memory_for_child_processes_without_memfd(monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    file = portable.shared_memory("name")
    os.ftruncate(file, 100)
    assert portable.read_at_offset(file, 200, 0) == bytes(100)
    os.close(file)
    assert portable.known_signals("SIGTERM", "SIGNOTHING") == (portable.signal.SIGTERM,)

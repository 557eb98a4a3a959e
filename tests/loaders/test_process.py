"""The loader in a process of its own: the contract, its errors, and what is left when one dies."""

import contextlib
import ctypes
import functools
import itertools
import mmap
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Any, ClassVar

import pytest
import torch

from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import ReadEnded, TooManyBadSamples, ViewConfig, make_loader, open_dataset
from maskco_fast.loaders.process import (
    HELD,
    SIGNALS,
    LoaderProcessDied,
    ProcessLoader,
    SharedSlots,
    _Run,
    command,
)
from maskco_fast.loaders.shards.dataset import Dataset
from tests.loaders.test_conformance import same
from tests.support.images import write_shards

VIEWS = ViewConfig.maskco(32)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """More batches than the shared memory holds: no process finishes an epoch that nobody reads."""
    return write_shards(tmp_path_factory.mktemp("shards"), 2, 26, bad=(5,))


@pytest.fixture(scope="module")
def loader(shards):
    """One process serves all tests that leave it intact."""
    with make_loader(shards, 4, views=VIEWS, threads=1, loader_process=True) as made:
        assert isinstance(made, ProcessLoader)
        assert len(made) > SharedSlots(made.config).count + 1
        yield made


@pytest.fixture(scope="module")
def epochs(shards):
    """Two epochs of the loader in this process, and its quarantine."""
    with make_loader(shards, 4, views=VIEWS, threads=1) as made:
        return [list(made), list(made)], made.quarantine.report()


def process_of(loader: ProcessLoader) -> "subprocess.Popen[bytes]":
    assert loader._child is not None
    return loader._child._process


def test_batches_quarantine_and_epochs_are_the_same(loader, epochs):
    """All batches are kept, more than there are slots: the caller owns them."""
    (first, second), quarantine = epochs
    loader.set_epoch(0)
    kept = [*loader, *loader]
    assert len(kept) > loader.config.prefetch + HELD + 1
    assert loader.epoch == 2
    assert all(same(one, other) for one, other in zip(first + second, kept, strict=True))
    assert all(view.is_contiguous(memory_format=torch.channels_last) for view in kept[0].views)
    assert loader.quarantine.report() == quarantine
    assert loader.quarantine.tried > 0


def test_positions_resume_in_the_same_process(loader, epochs):
    (first, _), _ = epochs
    loader.set_epoch(0)
    head = list(itertools.islice(loader, 2))
    state = loader.state_dict()
    assert state["consumed"] == 8
    loader.set_epoch(5)
    next(iter(loader))
    process = process_of(loader)
    loader.load_state_dict(state)
    rest = list(loader)
    assert process_of(loader) is process
    assert all(same(one, other) for one, other in zip(first, head + rest, strict=True))


def test_many_iterators_left_early_lose_no_slot(loader, epochs):
    (first, _), _ = epochs
    for _ in range(3 * loader.config.prefetch + HELD):
        loader.set_epoch(1)
        loader.set_epoch(0)
        assert same(next(iter(loader)), first[0])


def test_a_killed_process_is_named_and_another_starts(loader, epochs, monkeypatch):
    """The other one gets signals from its first moment, as from a terminal, and goes on."""
    (first, _), _ = epochs
    loader.set_epoch(3)
    loader.set_epoch(0)
    iterator = iter(loader)
    next(iterator)
    dead = process_of(loader)
    dead.kill()
    with pytest.raises(LoaderProcessDied, match=f"{dead.pid} was killed by SIGKILL: if the mach"):
        list(iterator)
    assert dead.returncode == -signal.SIGKILL
    done = loader.state_dict()["consumed"] // 4

    def signalled(*arguments: Any, **options: Any) -> "subprocess.Popen[bytes]":
        process = popen(*arguments, **options)
        for number in SIGNALS:
            process.send_signal(number)
        return process

    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", signalled)
    loader.load_state_dict(loader.state_dict())
    rest = list(loader)
    assert all(same(one, other) for one, other in zip(first[done:], rest, strict=True))
    process_of(loader).send_signal(signal.SIGTERM)
    loader.set_epoch(0)
    assert same(next(iter(loader)), first[0])


def test_interrupts_end_waiting_until_close(loader):
    loader.set_epoch(0)
    iterator = iter(loader)
    next(iterator)
    os.kill(process_of(loader).pid, signal.SIGSTOP)  # as if it waited for a server
    threading.Timer(0.2, loader.interrupt).start()
    with pytest.raises(ReadEnded):
        list(iterator)
    assert loader.state_dict()["consumed"] >= 4
    process = process_of(loader)
    process.send_signal(signal.SIGCONT)
    loader.close()
    assert process.returncode == 0


def test_errors_keep_their_type_and_traceback(make_shards):
    """One process meets them all: each new iterator tries again."""
    paths = [pathlib.Path(path) for path in make_shards(2, 4, bad=(0, 1, 2, 3, 4, 5, 6, 7))]
    with make_loader(paths, 2, views=VIEWS, threads=1, loader_process=True) as loader:
        paths[0].rename(paths[0].with_suffix(".away"))
        with pytest.raises(FileNotFoundError, match=paths[0].name) as caught:
            next(iter(loader))
        assert "in open_dataset" in str(caught.value.__cause__)
        shutil.copy(paths[1], paths[0])
        with pytest.raises(InvalidInput, match="the shards have changed since they were opened"):
            next(iter(loader))
        paths[0].with_suffix(".away").rename(paths[0])
        with pytest.raises(TooManyBadSamples, match="8 of 8 samples"):
            list(loader)
        assert len(loader.quarantine) == 8


def test_other_backends_and_the_seam(shards):
    """Pixels of a backend with memory of its own are copied; nothing is augmented here."""
    make = functools.partial(
        make_loader, shards, 4, views=VIEWS, threads=1, backend="reference", device="meta"
    )
    with make() as here, make(loader_process=True) as there:
        pairs = zip(here._rendered(0, 1, 2), there._rendered(0, 1, 2), strict=True)
        for one, other in pairs:
            assert one.memory is not None
            assert other.memory is not None
            assert other.memory.dtype == torch.uint8
            assert torch.equal(one.memory, other.memory)
            assert (one.request.rows == other.request.rows).all()


def test_views_of_unequal_sizes_and_a_short_batch(shards):
    views = ViewConfig.swav(32, 16, 2)
    make = functools.partial(make_loader, shards, 7, views=views, threads=1, drop_last=False)
    with make() as here, make(loader_process=True) as there:
        pairs = list(zip(here, there, strict=True))
    assert [len(one) for one, _ in pairs] == [7, 7, 7, 7, 7, 7, 6, 3]
    for one, other in pairs:
        assert [view.shape[2] for view in other.views] == [32, 32, 16, 16]
        assert all(torch.equal(*views) for views in zip(one.views, other.views, strict=True))


LAUNCHER = """
import subprocess, sys, time
child = subprocess.Popen(sys.argv[2:], pass_fds=[int(number) for number in sys.argv[1].split()])
print(child.pid, flush=True)
time.sleep(600)
"""


def test_a_killed_parent_leaves_nothing(loader):
    """Even where another process holds the socket open, as this one does."""
    mine, theirs = socket.socketpair()
    slots = SharedSlots(loader._opening.config)
    descriptors = (theirs.fileno(), slots.file)
    numbers = " ".join(map(str, descriptors))
    parent = subprocess.Popen(
        [sys.executable, "-S", "-c", LAUNCHER, numbers, *command(*descriptors)],
        pass_fds=descriptors,
        stdout=subprocess.PIPE,
        text=True,
    )
    theirs.close()
    os.close(slots.file)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    connection = Connection(mine.detach())
    connection.send((parent.pid, loader._opening))
    connection.send(_Run(1, 0, 0, 0, 1, 2, {}))
    assert connection.recv().slot == 0
    before = set(os.listdir("/dev/shm"))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert ends(child)
    assert set(os.listdir("/dev/shm")) <= before


def test_pages_are_unlocked_before_they_are_unmapped(loader, monkeypatch):
    class Runtime:
        locked: ClassVar[dict[int, int]] = {}

        def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
            self.locked[address] = size
            return flags

        def cudaHostUnregister(self, address: int) -> None:
            ctypes.string_at(address, 1)  # still mapped
            del self.locked[address]

    monkeypatch.setattr(torch.cuda, "cudart", Runtime)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "check_error", lambda code: None)
    slots = SharedSlots(loader._opening.config)
    os.close(slots.file)
    slots.page_lock(torch.device("cuda"))
    array = slots.arrays[0]
    begin = array.ctypes.data
    assert Runtime.locked == {
        begin: slots.count * -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    }
    tensor = torch.from_numpy(array)
    del slots, array
    assert Runtime.locked
    del tensor
    assert not Runtime.locked


def ends(process: int) -> bool:
    """Whether the process ends within ten seconds."""
    for _ in range(100):
        if not is_running(process):
            return True
        time.sleep(0.1)
    return False


def is_running(process: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        state = pathlib.Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_what_cannot_be_opened_again_is_refused(shards):
    dataset = open_dataset(shards)
    other = Dataset(dataset.shards)
    with pytest.raises(ValueError, match="`loader_process` must be False for a dataset"):
        make_loader(other, 4, views=VIEWS, loader_process=True)
    with pytest.raises(ValueError, match="`loader_process` must be False for the dali loader"):
        make_loader(dataset, 4, views=VIEWS, backend="dali", device="cuda", loader_process=True)

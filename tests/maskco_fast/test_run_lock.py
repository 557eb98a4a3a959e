"""One run folder, one job."""

import os
import signal
import subprocess
import sys

import pytest

from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.run_lock import RunFolderInUse, lock_run_folder

HOLDER = """
import pathlib, sys, time
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.run_lock import lock_run_folder
with lock_run_folder(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_job_is_refused_until_the_first_is_gone_even_if_killed(tmp_path):
    run_dir = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run_dir)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(RunFolderInUse, match=f"in use by process {holder.pid} on "),
            lock_run_folder(run_dir, patience=0.2),
        ):
            pytest.fail("two jobs hold one folder")
        os.kill(holder.pid, signal.SIGKILL)
        with lock_run_folder(run_dir):
            assert str(os.getpid()) in (run_dir / "lock").read_text()


@pytest.mark.parametrize("kind", ["link", "broken link", "hard link", "pipe", "folder", "text"])
def test_another_file_in_place_of_the_lock_is_left_alone(tmp_path, kind):
    mine = tmp_path / "mine"
    if kind != "broken link":
        mine.write_text("precious")
    lock = tmp_path / "run" / "lock"
    lock.parent.mkdir()
    if kind.endswith("link") and kind != "hard link":
        lock.symlink_to(mine)
    elif kind == "hard link":
        lock.hardlink_to(mine)
    elif kind == "pipe":
        os.mkfifo(lock)
    elif kind == "folder":
        lock.mkdir()
    else:
        lock.write_text("precious, too")
    with (
        pytest.raises((InvalidInput, IsADirectoryError), match="lock"),
        lock_run_folder(tmp_path / "run", patience=0),
    ):
        pytest.fail("locked")
    assert not mine.exists() if kind == "broken link" else mine.read_text() == "precious"
    if kind == "text":
        assert lock.read_text() == "precious, too"


def test_the_lock_is_given_back(tmp_path):
    for _ in range(2):
        with lock_run_folder(tmp_path, patience=0):
            assert str(os.getpid()) in (tmp_path / "lock").read_text()

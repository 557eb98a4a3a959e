"""One run folder, one job."""

import os
import signal
import subprocess
import sys

import pytest

from maskco_fast.training.run_lock import RunFolderInUse, lock_run_folder

HOLDER = """
import pathlib, sys, time
from maskco_fast.training.run_lock import lock_run_folder
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


def test_the_lock_is_given_back(tmp_path):
    for _ in range(2):
        with lock_run_folder(tmp_path, patience=0):
            assert str(os.getpid()) in (tmp_path / "lock").read_text()

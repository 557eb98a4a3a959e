"""Several processes train one run: one process's losses, a common stop, errors end the job."""

import concurrent.futures
import dataclasses
import datetime
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch
import torch.distributed.run

from maskco_fast.networks.config import ModelConfig
from maskco_fast.training import checkpoint, distributed
from maskco_fast.training.config import TrainConfig
from maskco_fast.training.recipes import RECIPES
from tests.support.processes import Ended, fork_context, free_port, rank_environments, run_mains
from tests.support.tiny_run import BATCH, program, tiny_config, tiny_trainer

PROGRAM = str(pathlib.Path(__file__).parents[2] / "support" / "tiny_run.py")


def ranks(run_dir: pathlib.Path, *arguments: str) -> list[Ended]:
    """`tiny_run.py` in two processes with torchrun's environment; AssertionError if they hang."""
    return run_mains(program, ["--run-dir", str(run_dir), *arguments], rank_environments(2))


FORKED = ["--start-method", "forkserver", "--run-path", PROGRAM]
"""torchrun's options that run a program in forks of the server, not in new interpreters."""


def launch(arguments: Sequence[str]) -> int:
    """torchrun's command; a server of its own forks its ranks, where they are `FORKED`."""
    fork_context()
    torch.distributed.run.main(list(arguments))
    return 0


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """torchrun's command, which starts an interpreter for each rank."""
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def lines(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same_run(run_dir: pathlib.Path, whole: pathlib.Path) -> None:
    """Losses, images of every step, weights and running statistics are equal up to rounding."""
    for line, truth in zip(
        lines(run_dir / "metrics.jsonl"), lines(whole / "metrics.jsonl"), strict=True
    ):
        for name in ("step", "epoch", "loss", "accuracy", "learning_rate"):
            assert line[name] == pytest.approx(truth[name], rel=1e-5), (line["step"], name)
    assert lines(run_dir / "samples.jsonl") == lines(whole / "samples.jsonl")
    resumed = checkpoint.load_newest(run_dir / "checkpoints")
    expected = checkpoint.load_newest(whole / "checkpoints")
    assert resumed is not None
    assert expected is not None
    for name, value in expected["method"].items():
        torch.testing.assert_close(resumed["method"][name], value, rtol=1e-4, atol=1e-6, msg=name)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Twelve float32 steps of 6 images in two groups, on one process."""
    run_dir = tmp_path_factory.mktemp("one-process")
    tiny_trainer(tiny_config(run_dir, log_samples=True)).fit()
    return run_dir


def test_two_processes_train_as_one_with_two_groups(tmp_path, one_process):
    for ended in ranks(tmp_path):
        assert ended.returncode == 0, ended.stderr
    assert_same_run(tmp_path, one_process)


def test_a_signal_to_one_rank_stops_all_and_one_process_goes_on(tmp_path, one_process):
    for stopped in ranks(tmp_path, "--rank", "1", "--kill", "SIGUSR1", "--kill-at", "4"):
        assert stopped.returncode == 0, stopped.stderr
        assert stopped.stdout.strip() == "SIGUSR1"
    assert checkpoint.checkpoints(tmp_path / "checkpoints")[-1].name == "step-000000003.pt"
    with pytest.warns(RuntimeWarning, match="resumed with processes 1 after 2"):
        tiny_trainer(tiny_config(tmp_path, log_samples=True)).fit()
    assert_same_run(tmp_path, one_process)


def test_two_launchers_meet_as_on_two_nodes(tmp_path, one_process):
    """Both ranks are the first of their node."""
    meeting = [
        "--rdzv-backend",
        "c10d",
        "--rdzv-id",
        "tiny",
        "--rdzv-endpoint",
        f"localhost:{free_port()}",
    ]
    arguments = ["--nnodes", "2", "--nproc-per-node", "1", *meeting, *FORKED]
    for ended in run_mains(launch, [*arguments, "--run-dir", str(tmp_path)], [{}, {}]):
        assert ended.returncode == 0, ended.stderr
    assert_same_run(tmp_path, one_process)


def test_a_killed_rank_is_started_again_and_the_run_goes_on(tmp_path, one_process):
    """torchrun's elastic restart: it starts all ranks again, from the newest checkpoint."""
    elastic = ["--standalone", "--nproc-per-node", "2", "--max-restarts", "1", *FORKED]
    kill = ["--rank", "1", "--kill", "SIGKILL", "--kill-at", "5"]
    (ended,) = run_mains(launch, [*elastic, "--run-dir", str(tmp_path), *kill])
    assert ended.returncode == 0, ended.stderr
    assert "Signal 9 (SIGKILL)" in ended.stderr or "exitcode: -9" in ended.stderr, ended.stderr
    assert_same_run(tmp_path, one_process)


def test_ranks_whose_launcher_is_killed_stop_and_save(tmp_path):
    """All of them, within seconds: they would hold the run folder for ever."""
    orphan = ["--rank", "1", "--orphan-at", "5"]
    ended = run(["--nproc-per-node", "2", PROGRAM, "--run-dir", str(tmp_path), *orphan])
    assert ended.returncode == -9
    assert ended.stdout.split() == ["SIGTERM"] * 2  # read until both ranks have ended
    newest = checkpoint.load_newest(tmp_path / "checkpoints")
    assert newest is not None
    assert newest["step"] == 4


def parts(
    store: torch.distributed.Store, present: list[int], size: int
) -> list[torch.distributed.Store]:
    """The store of each of the ranks that are present."""
    with concurrent.futures.ThreadPoolExecutor(len(present)) as pool:
        return list(pool.map(lambda rank: distributed._fresh_store(store, rank, size), present))


def test_ranks_meet_where_none_has_met_before():
    store = torch.distributed.HashStore()
    for start in range(3):
        found = parts(store, [2, 0, 1], 3)
        assert not any(one.check(["address"]) for one in found)
        found[0].set("address", str(start))
        assert [one.get("address") for one in found] == [str(start).encode()] * 3


def test_a_rank_that_does_not_start_is_named(monkeypatch):
    monkeypatch.setattr(distributed, "GRADIENT_TIMEOUT", datetime.timedelta(seconds=0.3))
    store = torch.distributed.HashStore()
    store.set("token of 2", "long ago")
    with pytest.raises(distributed.PeerLost, match=r"ranks \[2\] of 3 have not started"):
        parts(store, [0, 1], 3)
    with pytest.raises(distributed.PeerLost, match="rank 0 has not started"):
        parts(torch.distributed.HashStore(), [1], 3)


def test_a_rank_that_fails_ends_the_job_with_its_own_error(tmp_path):
    fail = ["--rank", "1", "--fail-at", "5"]
    standalone = ["--standalone", "--nproc-per-node", "2", PROGRAM]
    (failed,) = run_mains(launch, [*standalone, "--run-dir", str(tmp_path), *fail])
    assert failed.returncode != 0
    assert "rank 1: error: the disk of rank 1 is on fire" in failed.stderr
    assert "Traceback" not in failed.stderr.partition("rank 1: error")[0]
    assert "rank      : 1 " in failed.stderr.partition("Root Cause")[2]
    assert [path.name for path in checkpoint.checkpoints(tmp_path / "checkpoints")] == [
        "step-000000003.pt"
    ]


def test_a_run_that_its_processes_cannot_share_is_refused():
    config = TrainConfig(batch_size=BATCH, model=ModelConfig(view_size=64, group_size=BATCH // 2))
    assert config.images_per_process(1) == BATCH
    assert config.images_per_process(2) == BATCH // 2
    with pytest.raises(
        ValueError, match=r"3 processes times 1 .*, got 2 \(6 images.*Give `--batch-size 9`"
    ):
        config.images_per_process(3)
    with pytest.raises(ValueError, match="Give `--batch-size 64`"):
        RECIPES["cpu_small"]().images_per_process(2)
    assert dataclasses.replace(RECIPES["cpu_small"](), batch_size=64).images_per_process(2) == 32
    one_group = TrainConfig(batch_size=16, accumulate=2)
    with pytest.raises(ValueError, match="1 processes times 2 micro-batches, got 1 "):
        one_group.images_per_process(1)

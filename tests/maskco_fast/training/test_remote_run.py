"""Training from failing servers: the losses of a local run, or one line and exit code 1."""

import json
import pathlib
import signal
import threading
import time
from collections.abc import Callable

import pytest

from benchmarks.correctness import faulty_server as faulty
from maskco_fast.cli import main
from tests.support.processes import rank_environments, started

pytest.importorskip(
    "s3fs", reason="pip install 'maskco-fast[remote]' brings what reads remote shards"
)

LIMIT = 240
"""Seconds for a step that takes a few, on a machine with much other work."""


def train(shards: str, run_dir: pathlib.Path, *options: str) -> int:
    """Run three steps of the demo recipe on few small images; returns the exit code."""
    steps = (
        "--loader",
        "native",
        "--max-steps",
        "3",
        "--batch-size",
        "8",
        "--model.group-size",
        "8",
        "--model.view-size",
        "32",
        "--no-tensorboard",
        "--device",
        "cpu",
    )
    hurry = ("--remote.request-mb", "0.02", "--remote.timeout", "0.3", "--remote.backoff", "0.02")
    cache = ("--remote.cache-folder", str(run_dir.parent / "cache"))
    return main(
        [
            "train",
            "--recipe",
            "demo",
            "--shards",
            shards,
            "--run-dir",
            str(run_dir),
            *steps,
            *hurry,
            *cache,
            *options,
        ]
    )


def losses(run_dir: pathlib.Path) -> list[float]:
    """The loss of each step."""
    return [
        json.loads(line)["loss"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()
    ]


def wait_for(true: Callable[[], object]) -> None:
    """Wait until `true()` holds; AssertionError after `LIMIT` seconds."""
    end = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < end, f"waited for {LIMIT} s"
        time.sleep(0.1)


def test_losses_are_those_of_the_local_run(make_shards, tmp_path):
    make_shards(2, 16)
    assert train(f"{tmp_path}/shard-{{0000..0001}}.tar", tmp_path / "local") == 0
    with faulty.FaultyServer(tmp_path, faulty.at_random(0.3, seed=1)) as server:
        assert train(f"{server.url}/shard-{{0000..0001}}.tar", tmp_path / "remote") == 0
        assert server.injected
    assert len(losses(tmp_path / "local")) == 3
    assert losses(tmp_path / "remote") == losses(tmp_path / "local")


def test_a_stream_trains(make_shards, tmp_path):
    make_shards(2, 16)
    with faulty.FaultyServer(tmp_path, faulty.at_random(0.3, seed=1)) as server:
        stream = ("--remote.mode", "stream", "--remote.epoch-samples", "16")
        assert train(f"{server.url}/shard-{{0000..0001}}.tar", tmp_path / "run", *stream) == 0
    assert len(losses(tmp_path / "run")) == 3
    assert (tmp_path / "run" / "views.png").exists()


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("missing", "1 of 2 remote shards do not exist"),
        ("refused", "refused, status 403. Check its address and your credentials"),
        ("503", "--remote.patience survives longer outages"),
    ],
)
def test_what_does_not_mend_is_a_line_and_exit_code_1(fault, says, make_shards, tmp_path, capsys):
    make_shards(2, 8)
    with faulty.FaultyServer(tmp_path, faulty.always(fault, "shard-0001")) as server:
        names = f"{server.url}/shard-{{0000..0001}}.tar"
        assert train(names, tmp_path / "run", "--remote.patience", "0.5") == 1
    printed = capsys.readouterr().err
    assert says in printed
    assert "shard-0001.tar" in printed
    assert "Traceback" not in printed


@pytest.mark.timeout(4 * LIMIT)
@pytest.mark.parametrize(
    ("mode", "processes"),
    [((), 2), (("--remote.mode", "stream", "--remote.epoch-samples", "32"), 1)],
    ids=["cache-2", "stream-1"],
)
def test_a_signal_in_an_outage_saves_without_waiting_for_its_end(
    mode, processes, make_shards, tmp_path
):
    """The server stalls after a few batches; waiting for it would take an hour."""
    make_shards(4, 16)
    out = threading.Event()
    with faulty.FaultyServer(
        tmp_path, lambda exchange: "stall" if out.is_set() else None, stall=3600
    ) as server:
        names = f"{server.url}/shard-{{0000..0003}}.tar"
        command = ["train", "--recipe", "demo", "--shards", names, "--device", "cpu"]
        small = (
            "--batch-size",
            "8",
            "--model.group-size",
            "4",
            "--model.view-size",
            "32",
            "--max-steps",
            "100000",
            "--log-every",
            "1",
        )
        cache = ("--remote.cache-folder", str(tmp_path / "cache"), "--remote.request-mb", "0.02")
        patience = ("--remote.timeout", "3600", "--remote.patience", "3600")
        to = ("--run-dir", str(tmp_path / "run"), "--no-tensorboard", "--loader", "native")
        arguments = [*command, *small, *cache, *patience, *to, *mode]
        with started(main, arguments, rank_environments(processes)) as ranks:
            wait_for(
                lambda: (tmp_path / "run" / "metrics.jsonl").exists() and losses(tmp_path / "run")
            )
            out.set()
            for path in (tmp_path / "cache").glob("*.tar"):
                path.unlink()
            wait_for(lambda: server.injected["stall"])
            steps = -1
            # until the batches that arrived before the stall are used up
            while steps != (steps := len(losses(tmp_path / "run"))):
                time.sleep(1)
            for rank in ranks:  # as torchrun does
                rank.send_signal(signal.SIGTERM)
            ends = [rank.wait(LIMIT) for rank in ranks]
    printed = "".join(end.stderr for end in ends)
    assert [end.returncode for end in ends] == [0] * processes, printed
    steps = len(losses(tmp_path / "run"))  # a slow machine may have taken one more
    assert f"SIGTERM: saved at step {steps} of 100000" in printed
    assert (tmp_path / "run" / "checkpoints" / f"step-{steps:09d}.pt").exists()

"""Smoke tests of the benchmarks of the first batch and of checkpoints."""

import re
import types
from typing import Any

import torch

from benchmarks.speed import checkpoints, first_batch


def test_checkpoints_are_timed(tmp_path, capsys):
    options = checkpoints.Options(trunk="resnet18", batch=4, steps=1, rounds=1, folder=tmp_path)
    checkpoints.main(options)
    line = capsys.readouterr().out.splitlines()[-1]
    found = re.match(r"round 1: (\d+) MiB; copied in \d+ ms, written during \d+ steps in", line)
    assert found, line
    assert int(found[1]) > 40  # both networks of a ResNet-18, and the momentum
    assert not list(tmp_path.iterdir())


def test_a_write_that_ends_before_the_first_step(tmp_path):
    trainer: Any = types.SimpleNamespace(step=1, state_dict=lambda: {"weight": torch.ones(3)})

    with checkpoints.CheckpointWriter(tmp_path, keep=1) as writer:

        def slow_step() -> float:
            if writer._pending is not None:
                writer._pending.result()
            return 0.01

        line = checkpoints.one_round(checkpoints.Options(), trainer, writer, tmp_path, slow_step)
    assert "written during 1 steps" in line


def test_the_first_batch_is_timed(make_shards, capsys):
    options = first_batch.Options(shards=tuple(make_shards(1, 8)), batch_size=4, runs=1)
    first_batch.main(options)
    out = capsys.readouterr().out
    assert "the run that filled the caches" in out
    seconds = []
    for part in first_batch.PARTS:
        found = re.search(rf"^{part} +([\d.]+)  ", out, re.MULTILINE)
        assert found
        seconds.append(float(found[1]))
    assert sum(seconds[:-1]) <= seconds[-1] + 0.02

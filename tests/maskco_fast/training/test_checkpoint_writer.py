"""Asynchronous checkpoints: of one moment, one at a time, with their errors raised."""

import threading

import pytest
import torch

from maskco_fast.training import checkpoint
from maskco_fast.training.checkpoint_writer import CheckpointWriter, Snapshot


def state(value: float) -> dict:
    weight = torch.full((2, 3, 4, 4), value).contiguous(memory_format=torch.channels_last)
    return {"method": {"weight": weight}, "lists": [1, {"a": (2.5, torch.tensor(value))}]}


def test_the_file_holds_the_moment_of_the_call_whatever_the_steps_do_meanwhile(tmp_path):
    training, go_on = state(1.0), threading.Event()
    with CheckpointWriter(tmp_path, keep=3) as writer:
        writer.save(1, training, before_write=lambda: go_on.wait(60))
        training["method"]["weight"].fill_(2.0)
        training["lists"][1]["a"][1].fill_(2.0)
        assert not checkpoint.checkpoints(tmp_path)
        go_on.set()
        writer.save(
            2, training, before_write=lambda: None
        )  # waits for the first, whose memory it takes
        training["method"]["weight"].fill_(3.0)
    for step, path in enumerate(checkpoint.checkpoints(tmp_path), 1):
        loaded = checkpoint.load(path)
        assert loaded["step"] == step
        assert torch.equal(loaded["method"]["weight"], state(step)["method"]["weight"])
        assert loaded["method"]["weight"].is_contiguous(memory_format=torch.channels_last)
        assert loaded["lists"] == [1, {"a": (2.5, torch.tensor(float(step)))}]
    assert step == 2


def test_memory_is_kept_where_it_fits():
    snapshot = Snapshot()
    first = snapshot.take(state(1.0))
    second = snapshot.take(state(2.0))
    assert first["method"]["weight"].data_ptr() == second["method"]["weight"].data_ptr()
    grown = snapshot.take({"method": {"weight": torch.ones(5)}})
    assert torch.equal(grown["method"]["weight"], torch.ones(5))


def test_a_failed_write_is_told_at_the_next_call(tmp_path):
    def full_disk() -> None:
        raise OSError(28, "No space left on device")

    with CheckpointWriter(tmp_path, keep=3) as writer:
        writer.save(1, state(1.0), before_write=full_disk)
        with pytest.raises(OSError, match="No space"):
            writer.finish()
        writer.save(2, state(2.0), before_write=lambda: None)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step-000000002.pt"]
    with pytest.raises(OSError, match="No space"), CheckpointWriter(tmp_path, keep=3) as writer:
        writer.save(3, state(3.0), before_write=full_disk)


def test_another_error_is_not_hidden_and_the_write_is_finished(tmp_path):
    def save_and_fail() -> None:
        with CheckpointWriter(tmp_path, keep=3) as writer:
            writer.save(1, state(1.0), before_write=lambda: None)
            raise KeyError("the step")

    with pytest.raises(KeyError, match="the step"):
        save_and_fail()
    assert checkpoint.load(checkpoint.checkpoints(tmp_path)[0])["step"] == 1

"""Checkpoints: whole or absent, verified by checksum; the newest intact one is read."""

import hashlib
import pathlib

import pytest
import torch

from maskco_fast.training import checkpoint
from tests.support.small_disk import small_disk


def state(value: float) -> dict:
    weight = torch.full((2, 3, 4, 4), value).contiguous(memory_format=torch.channels_last)
    return {"method": {"weight": weight}, "lists": [1, {"a": (2.5, "x")}]}


def newest_step(folder: pathlib.Path) -> int:
    """The step of the newest intact checkpoint."""
    loaded = checkpoint.load_newest(folder)
    assert loaded is not None
    return loaded["step"]


def test_round_trip_keeps_values_and_layout(tmp_path):
    path = checkpoint.save(tmp_path, 7, state(1.5), keep=2)
    loaded = checkpoint.load(path)
    assert loaded["step"] == 7
    assert loaded["lists"] == [1, {"a": (2.5, "x")}]
    assert torch.equal(loaded["method"]["weight"], state(1.5)["method"]["weight"])
    assert loaded["method"]["weight"].is_contiguous(memory_format=torch.channels_last)


def test_checksum_is_sha256sums(tmp_path):
    path = checkpoint.save(tmp_path, 7, state(1), keep=2)
    text = (tmp_path / "step-000000007.pt.sha256").read_text()
    assert text == f"{hashlib.sha256(path.read_bytes()).hexdigest()}  step-000000007.pt\n"


def test_keeps_the_newest(tmp_path):
    for step in (5, 10, 100_000, 15):
        checkpoint.save(tmp_path, step, state(step), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-000000015.pt",
        "step-000000015.pt.sha256",
        "step-000100000.pt",
        "step-000100000.pt.sha256",
    ]


def test_only_what_was_written_here_is_removed_and_never_the_newest(tmp_path):
    own = [
        "step-epoch_a.pt",
        "step-epoch_b.pt",
        "step-zzz.pt",
        "step-000000002-keep.pt",
        "step-000000001.pt",  # without a checksum
        "best.pt",
    ]
    for name in own:
        (tmp_path / name).write_bytes(b"the user's")
    for step in range(2, 7):
        checkpoint.save(tmp_path, step, state(step), keep=2)
    left = sorted(path.name for path in tmp_path.glob("*.pt"))
    assert left == sorted([*own, "step-000000005.pt", "step-000000006.pt"])
    assert newest_step(tmp_path) == 6


def test_checkpoints_of_given_steps_stay(tmp_path):
    for step in range(1, 7):
        checkpoint.save(tmp_path, step, state(step), keep=1, keep_steps=(2, 4))
    left = sorted(path.name for path in tmp_path.glob("*.pt"))
    assert left == [f"step-{step:09d}.pt" for step in (2, 4, 6)]


def test_the_newest_stays_where_later_steps_are_damaged(tmp_path):
    for step in (2, 5, 6, 7):
        path = checkpoint.save(tmp_path, step, state(step), keep=4)
        if step > 2:
            path.write_bytes(b"damaged")
    assert checkpoint.save(tmp_path, 3, state(3), keep=3).exists()
    assert checkpoint.save(tmp_path, 4, state(4), keep=1).exists()


def test_one_that_torch_refuses_is_passed_over(tmp_path):
    checkpoint.save(tmp_path, 1, state(1), keep=3)
    for content in (b"", b"PK\3\4 no checkpoint", b"\x80\2]q\1."):
        newest = checkpoint.save(tmp_path, 2, state(2), keep=3)
        newest.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        newest.with_name(newest.name + ".sha256").write_text(f"{digest}  {newest.name}\n")
        with pytest.warns(RuntimeWarning, match="no checkpoint that torch .* reads"):
            assert newest_step(tmp_path) == 1


def test_a_full_disk_is_named_with_the_path_and_the_space(tmp_path):
    with small_disk(tmp_path / "disk", "1m") as disk:
        checkpoint.save(disk, 1, state(1), keep=2)
        with pytest.raises(
            checkpoint.CheckpointNotWritten,
            match=r"step-000000002\.pt cannot be written: it needs 4\.19 MB, .* MB free\. Free",
        ) as caught:
            checkpoint.save(disk, 2, {"weight": torch.zeros(1 << 20)}, keep=2)
        assert "\n" not in str(caught.value)
        assert newest_step(disk) == 1
        assert len(list(disk.iterdir())) == 2


@pytest.mark.parametrize("damage", ["truncated", "flipped", "no checksum", "empty checksum"])
def test_a_damaged_one_is_passed_over_with_a_warning(tmp_path, damage):
    checkpoint.save(tmp_path, 1, state(1), keep=3)
    newest = checkpoint.save(tmp_path, 2, state(2), keep=3)
    checksum = newest.with_name(newest.name + ".sha256")
    data = bytearray(newest.read_bytes())
    if damage == "truncated":
        newest.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        data[len(data) // 2] ^= 1
        newest.write_bytes(data)
    elif damage == "no checksum":
        checksum.unlink()
    else:
        checksum.write_text("")
    with pytest.warns(RuntimeWarning, match="step-000000002.pt .*trying the one before it"):
        loaded = checkpoint.load_newest(tmp_path)
    assert loaded is not None
    assert loaded["step"] == 1


def test_nothing_and_nothing_intact_are_different(tmp_path):
    assert checkpoint.load_newest(tmp_path / "absent") is None
    checkpoint.save(tmp_path, 1, state(1), keep=3).write_bytes(b"")
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(checkpoint.CheckpointError, match="None of the 1 checkpoints"),
    ):
        checkpoint.load_newest(tmp_path)


def test_a_crash_while_writing_leaves_the_older_ones_and_no_half_file(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, state(1), keep=1)

    def full_disk(state, path):
        pathlib.Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.torch, "save", full_disk)
        with pytest.raises(OSError, match="No space"):
            checkpoint.save(tmp_path, 2, state(2), keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-000000001.pt",
        "step-000000001.pt.sha256",
    ]
    (tmp_path / ".step-000000002.pt.0123abcd.maskco-tmp").write_bytes(b"of a killed process")
    (tmp_path / ".step-mine").write_bytes(b"the user's")
    checkpoint.save(tmp_path, 3, state(3), keep=1)
    assert [path.name for path in tmp_path.glob(".*")] == [".step-mine"]


def test_another_layout_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "VERSION", 999)
    path = checkpoint.save(tmp_path, 1, state(1), keep=1)
    monkeypatch.undo()
    with pytest.raises(checkpoint.CheckpointError, match="layout version 999"):
        checkpoint.load(path)


def test_a_checkpoint_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return pathlib.Path.touch, (tmp_path / "ran",)

    path = checkpoint.save(tmp_path, 1, {"evil": Evil()}, keep=1)
    with pytest.raises(Exception, match=r"no checkpoint that torch .* reads: Weights only"):
        checkpoint.load(path)
    assert not (tmp_path / "ran").exists()

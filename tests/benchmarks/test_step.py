"""The command that times the training step, at small size: its sides compute one loss, and all of
it runs."""

import pytest

from benchmarks.speed import step


def test_both_sides_compute_one_loss_and_are_timed(capsys: pytest.CaptureFixture[str]) -> None:
    step.main(step.Options(trunk="resnet18", size=32, batch_size=4, rounds=1, precision="fp32"))
    shown, told = capsys.readouterr()
    assert "loss of ours in fp32" in told
    assert all(stage in shown for stage in step.STAGES)


def test_another_loss_ends_the_command() -> None:
    step.check("ours", 5.0004, 5.0, 1e-4)
    with pytest.raises(SystemExit, match="they must agree"):
        step.check("ours", 5.001, 5.0, 1e-4)

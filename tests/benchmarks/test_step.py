"""The command that times the training step, at small size: its sides compute one loss, and all of
it runs."""

from benchmarks.speed import step


def test_both_sides_compute_one_loss_and_are_timed(capsys):
    step.main(step.Options(trunk="resnet18", size=64, batch_size=4, rounds=1, precision="fp32"))
    out = capsys.readouterr().out
    assert "loss of ours in fp32" in out
    assert all(stage in out for stage in step.STAGES)

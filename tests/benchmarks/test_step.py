"""The check that the sides of the training step's command compute one loss. The command itself runs
in test_figures.py."""

import pytest

from benchmarks.speed import step


def test_another_loss_ends_the_command() -> None:
    step.check("ours", 5.0004, 5.0, 1e-4)
    with pytest.raises(SystemExit, match="they must agree"):
        step.check("ours", 5.001, 5.0, 1e-4)

"""The commands that compare our loaders, at small size: parity and loss curves."""

import json
import pathlib
from collections.abc import Callable

import pytest

from benchmarks.correctness import loss_curves, parity
from maskco_fast.bench.parity import Difference
from maskco_fast.loaders import LOADERS
from tests.support.images import skip_without_packages

MakeShards = Callable[..., list[str]]
OTHERS = [name for name in LOADERS if name != "reference"]


@pytest.fixture(autouse=True)
def _needs_every_loader() -> None:
    for name in LOADERS:
        skip_without_packages(name)


def test_every_loader_is_within_its_limits_at_every_seam(
    make_shards: MakeShards, capsys: pytest.CaptureFixture[str]
) -> None:
    options = parity.Options(shards=tuple(make_shards(1, 8)), images=8, batch_size=4, size=48)
    assert parity.main(options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[3:]] == [
        *(f"| {name}" for name in OTHERS),
        f"| {parity.DEVICE_GRAPH}",
    ]


def test_a_red_row_ends_the_parity_command(
    make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(parity.LIMITS, parity.SEAM, Difference(0, 0, 0))
    options = parity.Options(shards=tuple(make_shards(1, 4)), images=4, batch_size=4, size=48)
    assert parity.main(options) == 1


def test_losses_are_the_references_within_the_noise(
    make_shards: MakeShards, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same weights, samples and order: the first losses differ by the effect of a fraction of a
    level."""
    # One run for the noise, where the command has three.
    monkeypatch.setattr(loss_curves, "NOISE", loss_curves.NOISE[:1])
    monkeypatch.setattr(loss_curves, "RUNS", ("reference", loss_curves.NOISE[0], *OTHERS))
    out = tmp_path / "runs"
    options = loss_curves.Options(
        shards=tuple(make_shards(1, 8)), out=out, steps=2, batch_size=4, size=64
    )
    loss_curves.main(options)
    curves = json.loads((out / "loss-curves.json").read_text())
    truth = curves["reference"]
    assert len(set(truth)) == 2
    for name in LOADERS:
        assert curves[name] == pytest.approx(truth, abs=0.2), name
        assert curves[name][0] == pytest.approx(truth[0], abs=0.05), name
    assert curves["native"] == curves["ffcv"]
    assert (out / "loss-curves.png").stat().st_size > 10_000

"""The commands that compare the loaders, at small size: parity, loss curves, DALI's and FFCV's own
operators."""

import json

import pytest

from benchmarks.correctness import loss_curves, parity
from benchmarks.speed import dali_peers, ffcv_peers
from maskco_fast.loaders import open_dataset
from maskco_fast.loaders.shards.beton_writer import write_beton
from tests.support.images import skip_without_packages


@pytest.fixture(autouse=True)
def _needs_every_loader() -> None:
    skip_without_packages("dali")
    skip_without_packages("ffcv")


def test_every_loader_is_within_its_limits_at_every_seam(make_shards, capsys):
    options = parity.Options(shards=tuple(make_shards(1, 8)), images=8, batch_size=4, size=48)
    assert parity.main(options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[3:]] == [
        "| native",
        "| dali",
        "| ffcv",
        f"| {parity.DEVICE_GRAPH}",
    ]


def test_a_red_row_ends_the_parity_command(make_shards, monkeypatch):
    monkeypatch.setitem(parity.LIMITS, parity.SEAM, parity.Apart(0, 0, 0))
    assert (
        parity.main(
            parity.Options(shards=tuple(make_shards(1, 4)), images=4, batch_size=4, size=48)
        )
        == 1
    )


def test_losses_are_the_references_within_the_noise(make_shards, tmp_path):
    """Same weights, samples and order; what is left at the first steps is what a fraction of a
    level makes."""
    out = tmp_path / "runs"
    options = loss_curves.Options(
        shards=tuple(make_shards(1, 16)), out=out, steps=2, batch_size=8, size=64
    )
    loss_curves.main(options)
    curves = json.loads((out / "loss-curves.json").read_text())
    truth = curves["reference"]
    assert len(set(truth)) == 2
    for name in ("native", "dali", "ffcv"):
        assert curves[name] == pytest.approx(truth, abs=0.2), name
        assert curves[name][0] == pytest.approx(truth[0], abs=0.05), name
    assert curves["native"] == curves["ffcv"]
    assert (out / "loss-curves.png").stat().st_size > 10_000


@pytest.mark.parametrize("seam", [True, False])
def test_our_dali_rows_pass_their_gate(make_shards, seam):
    shards = make_shards(1, 16)
    options = dali_peers.Options(shards=tuple(shards), batch_size=16, threads=1, size=64)
    dataset = open_dataset(shards)
    assert "levels from the reference" in dali_peers.check_views(options, dataset, seam=seam)
    assert sum(dali_peers.dali_roi_resize(options, dataset)) == 16


@pytest.mark.parametrize("kind", ["ours_seam", "ours", "ours_without_blur"])
def test_our_ffcv_rows_pass_their_gate(make_shards, tmp_path, kind):
    write_beton(open_dataset(make_shards(1, 16)), tmp_path / "set.beton")
    options = ffcv_peers.Options(beton=str(tmp_path / "set.beton"), batch_size=16, threads=1)
    with ffcv_peers.our_loader(options, kind) as loader:
        assert sum(len(batch) for batch in loader) == 16

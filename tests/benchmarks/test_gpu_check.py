"""The device check and the budget, as far as a machine without a GPU can tell: their logic on the
CPU."""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.estimates import budget
from benchmarks.gpu import check, peers
from maskco_fast.kernels.augment import torch as augment_torch
from maskco_fast.kernels.views import ViewConfig


def options(**changes: Any) -> Any:
    small = {"batch": 6, "size": 32, "checked": 6, "repeats": 2, "calls": 1, "tests": False}
    return check.Options(**{**small, **changes})


def test_says_that_there_is_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert check.main(options()) == 2
    assert "needs a CUDA device" in capsys.readouterr().err


def test_report_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values are green, Triton says why it is absent, what can run is timed, and the text has a
    line for each."""
    monkeypatch.setattr(
        torch, "compile", lambda function, **_: function
    )  # a minute of C++ otherwise
    chosen = options()
    report = check.check(chosen, "cpu")
    assert report.green, report.values
    rows = {row.name: row for row in report.rows}
    assert rows["triton"].note == "Triton has no code for cpu devices"
    assert (rows["plain torch, eager"].ms or 0) > 0
    assert 0 < (rows["plain torch, eager"].of_floor or 0) < 1
    assert (rows["torchvision_v2"].ms or 0) > 0
    text = check.markdown(report, chosen)
    assert all(f"| {name} |" in text for name in rows)


def test_red_values_are_seen_and_ours_is_not_timed() -> None:
    chosen = options()
    problem = check.make_problem(chosen, "cpu")

    def wrong(views: torch.Tensor, rows: torch.Tensor, **arguments: Any) -> torch.Tensor:
        out = augment_torch.augment(views, rows, **arguments)
        out[:, 0, :, 3, 5] += 2
        return out

    verdicts = check.check_values(chosen, problem, wrong)
    assert all(verdict.startswith("RED") for verdict in verdicts.values()), verdicts


def test_a_failing_row_is_noted() -> None:
    def fails() -> None:
        raise RuntimeError("out of luck")

    row = check.measure("peer", fails, options(), "cpu", 1000)
    assert row.ms is None
    assert row.note == "failed: RuntimeError: out of luck"


@pytest.mark.parametrize("name", ["torchvision_v2", "kornia", "dali"])
def test_peers_normalise_as_we_do(name: str) -> None:
    """Each yields both views in full, at values that normalised levels can have."""
    pytest.importorskip({"dali": "nvidia.dali"}.get(name, name.partition("_")[0]))
    views = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32, 3), dtype=np.uint8)
    )
    out = peers.PEERS[name](views)()
    assert len(out) == 2
    for view in out:
        assert view.shape == (3, 3, 32, 32)
        assert -2.2 < view.float().min() < -0.5
        assert 0.5 < view.float().max() < 2.7


def test_budget_counts() -> None:
    """Figures that can be had by hand."""
    passes, floor = budget.fused_bytes(ViewConfig.moco_v2())
    assert floor == 9 * 224**2
    assert passes == pytest.approx(150528 * (0.8 + 1 + 0.5 + 0.5 + 2))
    # ResNet-50 is 4.09e9 multiply-adds; four times forward; the head's three blocks add
    # 4·3·(2·512·2048 + 9·512²)·49.
    by_hand = 8 * 4.089 + 2 * 4 * 3 * (2 * 512 * 2048 + 9 * 512**2) * 49 / 1e9
    assert budget.step_gflops(2) == pytest.approx(by_hand, rel=0.02)
    image = torch.zeros(100, dtype=torch.uint8)
    assert budget.count_bytes(lambda: image.float() + 1) == 100 + 400 + 400 + 400
    assert budget.count_bytes(lambda: image.view(10, 10).T) == 0


def test_budget_of_the_hosts(
    make_shards: Callable[..., list[str]],
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Loaders timed here, a bench's rows, and what is given; cores are images a second times the
    milliseconds."""
    bench, report = tmp_path / "bench.json", tmp_path / "budget.json"
    bench.write_text(
        json.dumps(
            [{"name": "peer", "cpu_ms_per_image": 8.5}, {"name": "red", "cpu_ms_per_image": None}]
        )
    )
    options = budget.Options(
        shards=tuple(make_shards(1, 12)),
        loaders=("native", "reference"),
        rounds=2,
        bench=bench,
        cpu_ms=("mine=2",),
        json=report,
    )
    assert budget.main(options) == 0
    written = json.loads(report.read_text())
    hosts = {host["name"]: host for host in written["hosts"]}
    assert list(hosts) == [
        "native, to the seam",
        "reference, to the seam",
        "peer, by the bench",
        "mine",
    ]
    assert all(
        len(hosts[name]["cpu_ms"]) == 2
        for name in ("native, to the seam", "reference, to the seam")
    )
    asked = next(
        line["value"] for line in written["lines"] if line["name"].endswith("asks for, tuned step")
    )
    printed = capsys.readouterr().out
    assert f"{asked * 2 / 1000:.1f}" in next(
        line for line in printed.splitlines() if line.startswith("mine ")
    )
    options = dataclasses.replace(options, loaders=(), bench=None, cpu_ms=("2",))
    with pytest.raises(ValueError, match="NAME=MILLISECONDS"):
        budget.hosts(options, budget.photographs(options))

"""The bench: rows that are timed have passed their gate, figures add up, failures are shown and not
counted."""

import json
import pathlib
import time

import pytest
import torch
from PIL import Image

from maskco_fast.bench import harness as bench_module
from maskco_fast.bench.harness import BenchConfig, Result, _Runner, bench
from maskco_fast.bench.rows import ROWS, Ours, Setting, _parity
from maskco_fast.bench.stages import stages
from maskco_fast.loaders import ViewConfig, make_loader
from maskco_fast.pictures.bars import bench_picture


def setting(shards, **changes):
    options = {
        "batch_size": 4,
        "size": 64,
        "workers": 2,
        "dtype": "float32",
        "images": None,
        "ffcv_ssl": None,
    }
    options["decode"] = "exact"
    return Setting(shards=tuple(shards), **{**options, **changes})


def test_rows_run_side_by_side(make_shards, tmp_path, capsys):
    out, chart = tmp_path / "bench.json", tmp_path / "bench.png"
    config = BenchConfig(
        shards=tuple(make_shards(1, 12)),
        rows="native,torchvision_pil,decode_only",
        rounds=2,
        batch_size=4,
        size=64,
        workers=1,
        json=out,
        picture=chart,
    )
    assert bench(config) == 0
    rows = {row["name"]: row for row in json.loads(out.read_text())}
    assert list(rows) == ["native", "torchvision_pil", "decode_only"]
    for row in rows.values():
        assert len(row["rounds"]) == 2
        assert row["spread"][0] <= row["images_per_s"] <= row["spread"][1]
        assert row["cpu_ms_per_image"] >= 0
        assert row["peak_mb"] > 10
        assert row["parity"]
    assert rows["native"]["parity"].startswith("green")
    assert rows["native"]["of_decoding"] > 0
    shown = capsys.readouterr().out
    assert "is bound by" in shown
    assert "wants" in shown
    with Image.open(chart) as image:
        assert image.width > 300


def test_a_red_gate_is_never_timed(make_shards):
    shards = make_shards(1, 8)
    batches = []
    for seed in (0, 1):
        with make_loader(shards, 8, views=ViewConfig.maskco(64), seed=seed) as loader:
            batches += list(loader)
    with pytest.raises(RuntimeError, match="parity is red: sample_id differs"):
        _parity(*batches, gate=True)
    wrong = batches[0].to("cpu")
    wrong.views[0][:] += torch.rand_like(wrong.views[0])
    with pytest.raises(RuntimeError, match=r"parity is red: .* levels"):
        _parity(
            wrong,
            batches[0].__class__(**{**vars(wrong), "views": (wrong.views[0] - 1, wrong.views[1])}),
            gate=True,
        )


def test_a_row_is_stopped_while_it_is_not_its_turn(make_shards):
    runner = _Runner("decode_only", setting(make_shards(1, 8)))
    stat = pathlib.Path(f"/proc/{runner._process.pid}/stat")
    try:
        if not stat.exists():
            pytest.skip("no /proc to read a process's state from")
        runner.prepare()
        for _ in range(100):  # the signal is on its way
            if (state := stat.read_text().rpartition(")")[2].split()[0]) == "T":
                break
            time.sleep(0.05)
        assert state == "T"
        runner.round()
        assert len(runner.result.rounds) == 1
    finally:
        runner.close()
    assert runner._process.exitcode == 0


def test_a_row_that_fails_is_shown_with_its_reason(make_shards, monkeypatch, capsys):
    monkeypatch.setattr(bench_module, "DEFAULT_ROWS", "")
    config = BenchConfig(
        shards=tuple(make_shards(1, 2)), rows="native", rounds=1, batch_size=4, size=64
    )
    assert bench(config) == 1
    assert "usable samples make no batch" in capsys.readouterr().out


def test_unknown_rows_are_refused(make_shards, capsys):
    with pytest.raises(ValueError, match="there are no rows fast"):
        bench(BenchConfig(shards=("x",), rows="native,fast"))
    assert bench(BenchConfig(shards=("x",), rows="help")) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ROWS)


@pytest.mark.parametrize("name", ["torchvision_v2", "cached_batch"])
def test_other_rows_yield_their_images(make_shards, name):
    running = ROWS[name].open(setting(make_shards(1, 8)))
    assert sum(running.epoch()) == 8
    running.close()


@pytest.mark.parametrize(
    ("name", "package"),
    [("lightly", "lightly"), ("kornia", "kornia"), ("dali_stock", "nvidia.dali")],
)
def test_peers_that_are_installed_yield_their_images(make_shards, name, package):
    pytest.importorskip(package, reason=f"the {name} row needs {package}")
    running = ROWS[name].open(setting(make_shards(1, 8)))
    assert sum(running.epoch()) == 8


def test_our_rows_stop_at_the_images_asked_for(make_shards):
    running = Ours(setting(make_shards(1, 12), images=8), "native")
    assert sum(running.epoch()) == 8
    running.close()


def test_stages_cover_the_path(make_shards):
    took = stages(setting(make_shards(1, 6)))
    assert list(took) == [
        "index",
        "plan",
        "read",
        "decode",
        "resize",
        "colour",
        "blur",
        "store",
        "hand-over",
    ]
    assert took["decode"] > 0
    assert took["hand-over"] > 0


def test_a_chart_needs_a_speed(tmp_path):
    with pytest.raises(ValueError, match="at least one row must have a speed"):
        bench_picture([vars(Result(name="a", kind="ours", what="", parity=""))], tmp_path / "x.png")

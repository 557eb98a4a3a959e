"""The bench: rows that are timed have passed their gate, figures add up, failures are one line and
not counted."""

import dataclasses
import importlib.util
import json
import pathlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from PIL import Image

from maskco_fast.bench import parity, peers, peers_gpu, timing
from maskco_fast.bench.harness import RowProcess
from maskco_fast.bench.rows import ROWS, Ours, Peer, Row
from maskco_fast.bench.setting import Running, Setting
from maskco_fast.bench.stages import stages
from maskco_fast.bench.timing import Result, TimedRow, time_rows
from maskco_fast.commands.bench import BenchConfig, bench, parse_rows
from maskco_fast.kernels.errors import MissingPackage
from maskco_fast.loaders import Batch, Dataset, ViewConfig, make_loader
from maskco_fast.pictures.bars import bench_picture
from tests.support.images import skip_without_packages

MakeShards = Callable[..., list[str]]


def setting(shards: list[str], **changes: Any) -> Setting:
    options: dict[str, Any] = {"batch_size": 4, "size": 64, "workers": 2, "dtype": "float32"}
    return Setting(shards=tuple(shards), **{**options, **changes})


def result(name: str, **fields: Any) -> dict[str, Any]:
    """A row of the bench's JSON."""
    row = ROWS[name]
    empty = Result(name=name, kind=row.kind, what=row.what, parity="", views=row.views)
    return vars(dataclasses.replace(empty, **fields))


def test_rows_run_side_by_side(
    make_shards: MakeShards, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
    took, alone = rows["native"]["cpu_ms_per_image"], rows["decode_only"]["cpu_ms_per_image"]
    assert f"native takes {took:.2f} CPU-ms an image with all its views" in shown
    assert f"full decoding alone takes {alone:.2f}" in shown
    assert "a GPU that trains 2500 images/s" in shown
    with Image.open(chart) as image:
        assert image.width > 300


def test_a_time_limit_shortens_the_rounds(
    make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_this_process(monkeypatch)
    (timed,) = time_rows(
        ["cached_batch"], setting(make_shards(1, 12), batch_size=2), rounds=1, seconds=0.0
    )
    assert timed.rounds
    with timing.RowProcess("row", Counting) as row:
        assert timing._prepare(row, timed, setting(["x"], batch_size=2), 0.1) == 10


class Counting:
    """Stands for a `TimedRow` of 100 images that makes 100 images/s."""

    def check_parity(self) -> str:
        return ""

    def images(self) -> int:
        return 100

    def timed(self, images: int) -> timing.Pass:
        return timing.Pass(
            images=images, seconds=images / 100, first_batch_s=0.5, cpu_s=1.0, peak_mb=1.0
        )

    def close(self) -> None:
        """Nothing to close."""


def batch_pair(make_shards: MakeShards) -> tuple[Batch, Batch]:
    """Twice the same batch, with float32 views of their own."""
    with make_loader(make_shards(1, 8), 8, views=ViewConfig.maskco(64)) as loader:
        batch = next(iter(loader))
        return batch.to("cpu"), batch._map(torch.clone)


@pytest.mark.parametrize("name", ["index", "sample_id", "target", "masked_box", "key_boxes"])
def test_the_gate_holds_samples_and_boxes_to_the_bit(make_shards: MakeShards, name: str) -> None:
    mine, truth = batch_pair(make_shards)
    assert parity.check(mine, truth, parity.FINISHED_LIMIT) == parity.Difference(0, 0, 0)
    getattr(mine, name).flatten()[-1] += 1
    with pytest.raises(RuntimeError, match=f"parity is red: {name} differs"):
        parity.check(mine, truth, parity.FINISHED_LIMIT)


@pytest.mark.parametrize(
    ("share", "levels"), [(1.0, 0.6), (0.01, 3.5), (0.0001, 17)], ids=["mean", "far", "worst"]
)
@pytest.mark.parametrize("view", [0, 1])
def test_the_gate_limits_each_figure_alone(
    make_shards: MakeShards, share: float, levels: float, view: int
) -> None:
    """Both views count; each changed batch exceeds one limit and keeps the other two."""
    mine, truth = batch_pair(make_shards)
    red_std = parity.IMAGENET_STD[0]
    plane = mine.views[view][:, 0]  # (N, 64, 64), strided: index it by position
    count = max(round(share * mine.views[view].numel() * 2), 1)
    if share == 1.0:
        for changed in mine.views:
            changed += (levels / 255 / torch.tensor(parity.IMAGENET_STD)).view(3, 1, 1)
    else:
        for position in range(count):
            n, rest = divmod(position, 64 * 64)
            plane[n, rest // 64, rest % 64] += levels / 255 / red_std
    apart = parity.compare([mine], [truth])
    limit = parity.FINISHED_LIMIT
    exceeded = [apart.mean > limit.mean, apart.far > limit.far, apart.worst > limit.worst]
    assert sum(exceeded) == 1
    with pytest.raises(RuntimeError, match=r"parity is red: .* levels"):
        parity.check(mine, truth, limit)


class Failing(Running):
    """A row that fails while it opens."""

    def __init__(self, setting: Setting) -> None:
        raise MissingPackage("libmagic is missing: apt-get install libmagic1")

    def epoch(self, images: int) -> Iterator[int]:
        raise NotImplementedError


class Empty(Running):
    """A row that delivers nothing."""

    def epoch(self, images: int) -> Iterator[int]:
        yield from ()


def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer rows here: rows that a test adds to `ROWS` are unknown to its process."""

    class Here(RowProcess):
        def __init__(self, name: str, open_row: Callable[[], Any]) -> None:
            self.name, self.error = name, None
            self._open, self._row = open_row, None

        def ask(self, method: str, *arguments: Any) -> Any:
            from maskco_fast.bench.harness import _row_error

            try:
                self._row = self._open() if self._row is None else self._row
                return getattr(self._row, method)(*arguments)
            except Exception as error:
                self.error = _row_error(error)
                raise self.error from None

        def close(self) -> None:
            if self._row is not None:
                self._row.close()

    monkeypatch.setattr(timing, "RowProcess", Here)


def test_rows_that_cannot_run_are_a_line_each(
    make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_this_process(monkeypatch)
    monkeypatch.setitem(ROWS, "failing", Row(kind="peer", what="", open=Failing))
    monkeypatch.setitem(ROWS, "empty", Row(kind="peer", what="", open=Empty))
    config = BenchConfig(
        shards=tuple(make_shards(1, 8)),
        rows="failing,empty,cached_batch",
        rounds=1,
        batch_size=4,
        size=64,
    )
    assert bench(config) == 0
    shown, told = capsys.readouterr()
    lines = {line.split()[0]: line for line in shown.splitlines() if line}
    assert "libmagic is missing: apt-get install libmagic1" in lines["failing"]
    assert "it delivered no images" in lines["empty"]
    assert "green" not in lines["cached_batch"]
    assert float(lines["cached_batch"].split()[1]) > 0
    assert "Traceback" not in shown + told


def test_without_ffmpeg_spdl_is_one_line(
    make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("spdl.io", reason="pip install 'maskco-fast[bench]' brings SPDL")
    in_this_process(monkeypatch)
    config = BenchConfig(
        shards=tuple(make_shards(1, 8)),
        rows="spdl,cached_batch",
        rounds=1,
        batch_size=4,
        size=64,
        workers=1,
    )
    assert bench(config) == 0
    shown, told = capfd.readouterr()
    line = next(line for line in shown.splitlines() if line.startswith("spdl"))
    if "apt-get install ffmpeg" not in line:
        assert float(line.split()[1]) > 0  # FFmpeg's libraries are here
    assert "Traceback" not in shown + told


def test_a_red_row_of_ours_fails_the_command(
    make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_this_process(monkeypatch)
    monkeypatch.setattr(parity, "FINISHED_LIMIT", parity.Difference(0, 0, 0))
    config = BenchConfig(
        shards=tuple(make_shards(1, 8)),
        rows="native,cached_batch",
        rounds=1,
        batch_size=4,
        size=64,
    )
    assert bench(config) == 1
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("native "))
    assert "parity is red" in line
    assert line.split()[1] == "-"


def test_too_few_images_for_a_batch_fail_the_command(
    make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_this_process(monkeypatch)
    config = BenchConfig(
        shards=tuple(make_shards(1, 2)), rows="native", rounds=1, batch_size=4, size=64
    )
    assert bench(config) == 1
    assert "2 usable samples make no batch of 4" in capsys.readouterr().out


def test_unknown_rows_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="`rows` must be names of rows, got 'native,fast'"):
        parse_rows("native,fast")
    assert parse_rows("native, native") == ["native"]
    assert parse_rows("all") == list(ROWS)
    assert bench(BenchConfig(shards=("x",), rows="help")) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ROWS)


def test_a_peer_stands_beside_the_row_that_does_the_same_work() -> None:
    beside = {name: row.beside for name, row in ROWS.items() if row.beside}
    assert beside == {
        "dali_stock": "dali",
        "dali_dynamic": "dali",
        "dali_roi_resize": "dali_seam",
        "ffcv_ssl": "ffcv_without_blur",
        "ffcv_stock": "ffcv_seam",
        **dict.fromkeys(GPU_PEERS, "native_gpu"),
    }
    assert all(ROWS[name].kind == "ours" for name in beside.values())


@pytest.mark.parametrize("name", ["torchvision_v2", "cached_batch"])
def test_other_rows_yield_their_images(make_shards: MakeShards, name: str) -> None:
    running = ROWS[name].open(setting(make_shards(1, 8)))
    assert [sum(running.epoch(images)) for images in (8, 4, 8)] == [8, 4, 8]
    running.close()


GPU_PEERS = ("dali_gpu", "dali_dynamic_gpu", "dali_torchvision", "nvjpeg", "nvimgcodec")

PACKAGES = {
    "lightly": "lightly",
    "kornia": "kornia",
    "kornia_rs": "kornia_rs",
    "torchcodec": "torchcodec",
    "dali_stock": "nvidia.dali",
    "dali_dynamic": "nvidia.dali",
    "dali_roi_resize": "nvidia.dali",
    "ffcv_stock": "ffcv",
}
"""Rows of packages that import fast. Those of litdata and grain take 16 s each; the figures of
docs/performance.md run them."""


class FirstBatch(TimedRow):
    """A timed row that also counts the views of a batch."""

    def views(self) -> int:
        return len(next(iter(self._running._epochs(4))))  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", list(PACKAGES))
def test_peers_that_are_installed_yield_their_images(
    make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """FFCV's in a process of its own: its loader changes Numba's uint8 arrays for all of it."""
    if importlib.util.find_spec(PACKAGES[name]) is None:
        pytest.skip(f"the row {name} needs {PACKAGES[name]}")
    if name != "ffcv_stock":
        in_this_process(monkeypatch)
    with timing.RowProcess(name, partial(FirstBatch, name, setting(make_shards(1, 8)))) as row:
        assert [row.ask("timed", images).images for images in (8, 4, 8)] == [8, 4, 8]
        assert row.ask("views") == ROWS[name].views


@pytest.mark.parametrize("name", ["dali_seam", "ffcv_seam", "ffcv_without_blur"])
def test_our_rows_beside_peers_pass_their_gate(make_shards: MakeShards, name: str) -> None:
    skip_without_packages(name.partition("_")[0])
    row = TimedRow(name, setting(make_shards(1, 8)))
    assert row.check_parity().startswith("green")
    assert row.timed(8).images == 8
    row.close()


@pytest.mark.parametrize(
    ("name", "device"),
    [
        *((name, "cpu") for name in ("native_gpu", "dali_torchvision", "nvjpeg")),
        *(pytest.param(name, "cuda", marks=pytest.mark.gpu) for name in ("native_gpu", *GPU_PEERS)),
    ],
)
def test_rows_for_a_gpu_yield_their_images(
    make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch, name: str, device: str
) -> None:
    """On a CPU with its decoders and operators in place of the GPU's.

    `dali_stock` and `dali_dynamic` are those of `dali_gpu` and `dali_dynamic_gpu`; nvImageCodec
    needs CUDA's driver.
    """
    if name.startswith("dali"):
        pytest.importorskip("nvidia.dali")
    if name == "nvimgcodec":
        pytest.importorskip("nvidia.nvimgcodec")
    if name in ("nvjpeg", "nvimgcodec"):
        pytest.importorskip("kornia")
    if device == "cpu":
        monkeypatch.setattr(peers_gpu, "cuda_device", lambda what: torch.device("cpu"))
        if name == "dali_torchvision":  # asks torch for its CUDA stream, for tensors of the CPU too
            monkeypatch.setattr(
                "nvidia.dali.types._get_default_stream_for_array", lambda array: None
            )
    row = TimedRow(name, setting(make_shards(1, 8)))
    assert [row.timed(images).images for images in (8, 4)] == [8, 4]
    if name == "native_gpu":
        assert row.check_parity().startswith("green")
    else:
        views = next(iter(row._running._epochs(4)))  # type: ignore[attr-defined]
        assert [view.shape for view in views] == [(4, 3, 64, 64)] * 2
        assert all(view.device.type == device for view in views)
        assert all(0.3 < view.float().std() < 2 for view in views)
    row.close()


def test_rows_for_a_gpu_are_a_line_without_one(
    make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("native_gpu", *GPU_PEERS):
        with pytest.raises(MissingPackage, match="requires a CUDA device, and torch finds none"):
            ROWS[name].open(setting(make_shards(1, 8)))


def test_a_peer_without_its_package_names_the_remedy(make_shards: MakeShards) -> None:
    def make(dataset: Dataset, setting: Setting) -> peers.Epochs:
        raise ModuleNotFoundError("No module named 'fastloader'")

    with pytest.raises(MissingPackage, match="'fastloader'; pip install fastloader"):
        Peer(setting(make_shards(1, 8)), make, "pip install fastloader")


def test_our_rows_stop_at_the_images_asked_for(make_shards: MakeShards) -> None:
    running = Ours(setting(make_shards(1, 12), images=8), "native")
    assert running.images == 8
    assert sum(running.epoch(8)) == 8
    running.close()


def test_stages_cover_the_path(make_shards: MakeShards) -> None:
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


def test_the_picture_shows_two_view_rows_only(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.axes import Axes

    drawn: list[str] = []
    barh = Axes.barh

    def note_barh(axes: Axes, y: list[str], *rest: Any, **more: Any) -> Any:
        drawn.extend(y)
        return barh(axes, y, *rest, **more)

    monkeypatch.setattr(Axes, "barh", note_barh)
    speed = {"images_per_s": 10.0, "spread": [9.0, 11.0]}
    rows = [
        result(name, **speed) for name in ("native", "ffcv_stock", "decode_only", "cached_batch")
    ]
    bench_picture(rows, tmp_path / "x.png")
    assert drawn == ["native"]
    with pytest.raises(ValueError, match="at least one row of two views"):
        bench_picture(rows[1:], tmp_path / "x.png")
    with pytest.raises(ValueError, match="at least one row of two views"):
        bench_picture([result("native")], tmp_path / "x.png")

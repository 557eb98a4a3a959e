"""The report page: complete, escaped, self-contained; curves at the right places."""

import base64
import functools
import html.parser
import json
import re
import shutil

import numpy as np
import pytest

from maskco_fast.commands.report import ReportConfig, report
from maskco_fast.errors import report_user_errors
from maskco_fast.evaluation.paper import PAPER_ROWS
from maskco_fast.pictures.curves import MAX_POINTS, Curve, line_chart, thinned, ticks
from maskco_fast.pictures.report import report_page
from maskco_fast.pictures.run_summary import read_run

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
VOID = {"meta", "img", "circle", "path", "br"}


class Page(html.parser.HTMLParser):
    """Checks that tags are balanced, and collects tags, attributes and text."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def write_run(folder, *, method="maskco", losses=(6.0, 5.0, 4.0), seed=0, knn=True):
    folder.mkdir(parents=True)
    config = {
        "method": method,
        "maskco": {"mph_blocks": 3},
        "moco_v2": {"queue": 1024},
        "shards": ["https://me:hunter2@host/a.tar?signature=hunter3", "pipe:curl -H hunter4 x"],
        "recipe": "demo",
        "max_steps": len(losses),
        "batch_size": 32,
        "seed": seed,
        "compile": False,
        "model": {"trunk": "resnet18", "view_size": 64},
    }
    (folder / "config.json").write_text(json.dumps(config))
    lines = []
    for step, loss in enumerate(losses, 1):
        line = {"step": step, "loss": loss, "images_per_s": 40.0, "data_wait": 0.02}
        lines.append(json.dumps({**line, **({"knn_top1": 10.0 * step} if knn else {})}))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    reasons = {"truncated <JPEG>": 2, "no image": 1}
    (folder / "quarantine.json").write_text(json.dumps({"quarantined": 3, "by_reason": reasons}))
    (folder / "views.png").write_bytes(PIXEL)
    (folder / "knn.json").write_text('{"top1": 41.234, "k": 20, "temperature": 0.07}')
    (folder / "linear.json").write_text('{"conv1": 11.11, "conv5": 55.55, "classes": ["a"]}')
    (folder / "distance.json").write_text('{"map_l2_mean": 0.15463, "images": 64}')
    return folder


def test_a_page_shows_all_parts_and_needs_nothing_else(tmp_path, capsys):
    run = write_run(tmp_path / "a<b>")
    assert report(ReportConfig(runs=(run,))) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}: 1 run\n"
    text = (run / "report.html").read_text()
    page = Page(text)
    shown = " ".join(page.text)
    for part in ("a<b>", "truncated <JPEG>", "41.2", "k 20, T 0.07", "55.5", "0.1546", "3 of 3"):
        assert part in shown
    for paper in PAPER_ROWS:
        assert f"paper: {paper.pretraining}" in shown
    assert "hunter" not in text
    assert "https://host/a.tar" in shown
    assert "queue" not in shown  # the configuration of a method that was not used
    # No request, no script: images are in the page.
    assert "script" not in page.tags
    assert "link" not in page.tags
    sources = [value for name, value in page.attributes if name in ("src", "href", "srcset")]
    assert sources == [f"data:image/png;base64,{base64.b64encode(PIXEL).decode()}"]
    assert not re.search(r"url\(|@import", text)
    policies = [value for _, value in page.attributes if "default-src 'none'" in str(value)]
    assert len(policies) == 1
    assert page.tags.count("svg") == 6  # loss, k-NN and speed, each with one entry of a legend


def test_runs_stand_side_by_side_and_differences_are_marked(tmp_path):
    first = write_run(tmp_path / "x" / "run")
    second = write_run(tmp_path / "y" / "run", method="moco_v2", seed=1, knn=False)
    out = tmp_path / "both.html"
    assert report(ReportConfig(runs=(first, second), out=out)) == 0
    text = out.read_text()
    assert "x/run, y/run" in text
    marked = re.findall(r'<tr class="differs"><th scope="row">([^<]*)</th>', text)
    assert marked == ["method", "maskco.mph_blocks", "seed", "moco_v2.queue"]
    # Marked rows come first.
    configuration = text[text.index("<h2>Configuration") :]
    assert configuration.index("moco_v2.queue") < configuration.index("batch_size")
    assert "curve1" in text
    assert "y/run: no k-NN curve" in text


def test_missing_parts_are_named_and_no_error(tmp_path):
    run = write_run(tmp_path / "run", losses=(6.0,))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    (run / "knn.json").write_text("{")
    for name in ("config.json", "views.png", "quarantine.json"):
        (run / name).unlink()
    summary = read_run(run)
    missing = "\n".join(summary.missing)
    for part in ("config.json is absent", "quarantine.json is absent", "views.png is absent"):
        assert part in missing
    assert "metrics.jsonl: 1 lines cannot be read" in missing
    assert "knn.json cannot be read" in missing
    page = Page(report_page([summary]))
    assert all(line in " ".join(page.text) for line in summary.missing)
    (run / "metrics.jsonl").unlink()
    assert "<h2>Loss" not in report_page([read_run(run)])


def test_folders_that_are_no_runs_are_refused(tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder, message in ((tmp_path / "gone", "no folder"), (empty, "neither config.json")):
        config = ReportConfig(runs=(folder,), out=tmp_path / "x.html")
        assert report_user_errors(functools.partial(report, config)) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "x.html").exists()
    with pytest.raises(ValueError, match="at least one run folder"):
        ReportConfig(runs=())
    shutil.rmtree(empty)


def test_a_probe_of_the_last_layer_alone_is_not_put_beside_the_paper_s_conv5(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "linear.json").write_text('{"conv5": 55.55, "protocol": "last"}')
    assert read_run(run).results["linear"] == {"last": 55.55}


def points(svg):
    """The points of the first curve, from its path."""
    path = re.search(r'class="curve[^"]*"[^>]* d="M([^"]*)"', svg)
    assert path is not None
    return [tuple(map(float, point.split())) for point in path[1].split("L")]


def test_a_chart_is_linear_in_steps_and_values():
    steps = np.array([0.0, 50, 100])
    values = np.array([1.0, 3, 5])
    svg = line_chart([Curve(label="a&b", steps=steps, values=values, number=0)], y_label="loss")
    (x0, y0), (x1, y1), (x2, y2) = points(svg)
    assert x1 == pytest.approx((x0 + x2) / 2)
    assert y1 == pytest.approx((y0 + y2) / 2)
    assert x0 < x2
    assert y0 > y2  # larger values are higher
    assert "a&amp;b" in svg
    # Where the axis says 3, the curve's 3 is.
    tick = re.search(r'y="([\d.]+)" text-anchor="end">3<', svg)
    assert tick is not None
    assert float(tick[1]) - 4 == pytest.approx(y1, abs=0.11)


@pytest.mark.parametrize(("low", "high"), [(0, 100), (5.6, 6.3), (0, 0.013), (3, 3), (-1, 1e6)])
def test_ticks_are_round_and_cover(low, high):
    found = ticks(low, high)
    slack = 1e-6 * (high - low)
    assert found[0] <= low + slack
    assert found[-1] >= high - slack
    assert 3 <= len(found) <= 7
    np.testing.assert_allclose(np.diff(found), found[1] - found[0])


def test_thinning_keeps_means_and_ends():
    values = np.random.default_rng(0).normal(size=1013)
    curve = Curve(label="a", steps=np.arange(1.0, 1014), values=values, number=0)
    short = thinned(curve)
    assert len(short.steps) == len(short.values) == 338 <= MAX_POINTS
    np.testing.assert_allclose(short.values[0], values[:3].mean())
    np.testing.assert_allclose(short.steps[0], 2)
    np.testing.assert_allclose(short.values[-1], values[1011:].mean())
    assert thinned(short) is short

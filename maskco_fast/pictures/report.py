"""The report page: one or several runs as a single HTML file that needs nothing else.

Pictures are data URIs and curves inline SVG; there is no script, and a content security policy
forbids every request. All text from the runs is escaped.
"""

import base64
import html
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from maskco_fast import __version__
from maskco_fast.evaluation.paper import PAPER_DISTANCES, PAPER_ROWS
from maskco_fast.evaluation.results import RESULT_COLUMNS, shown
from maskco_fast.pictures.curves import Curve, line_chart
from maskco_fast.pictures.loss import running_mean
from maskco_fast.pictures.report_style import STYLE
from maskco_fast.pictures.run_summary import PICTURES, RunSummary

Row = Sequence[str]

EVALUATION_COLUMNS = {
    "AP": ("detect", "AP"),
    "AP50": ("detect", "AP50"),
    "AP75": ("detect", "AP75"),
    "conv1": ("linear", "conv1"),
    "conv2": ("linear", "conv2"),
    "conv3": ("linear", "conv3"),
    "conv4": ("linear", "conv4"),
    "conv5": ("linear", "conv5"),
    "last layer": ("linear", "last"),
    "k-NN": ("knn", "top1"),
}
"""Heading to the result's command and name."""

PAPER_COLUMNS = ("AP", "AP50", "AP75", "conv4", "conv5")

NONE = "–"  # noqa: RUF001 an en dash is what tables use


def report_page(runs: Sequence[RunSummary]) -> str:
    """The page's HTML. Parts that a run lacks are named in its list of missing parts."""
    names = ", ".join(run.name for run in runs)
    sections = [
        _section("Runs", _facts(runs)),
        _section("Loss", _loss_chart(runs)),
        _section("k-NN accuracy while training", _knn_chart(runs)),
        _section("Speed", _speed_chart(runs)),
        _section("Evaluation", _evaluation(runs)),
        *[_section(title, text) for title, text in _pictures(runs)],
        _section("Quarantined samples", _quarantine(runs)),
        _section("Configuration", _configuration(runs)),
        _section("Missing", _missing(runs)),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{_escape(names)}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{_escape(names)}</h1>\n"
        f"<p>maskco-fast {__version__}</p>\n{''.join(sections)}</body>\n</html>\n"
    )


def _escape(text: object) -> str:
    return html.escape(str(text), quote=True)


def _section(title: str, content: str) -> str:
    """A section with its heading; empty without content."""
    return f"<section>\n<h2>{title}</h2>\n{content}\n</section>\n" if content else ""


def _table(
    head: Row, rows: Iterable[Row], *, marked: Callable[[Row], str] | None = None, name: str = ""
) -> str:
    """A table whose first column is a row's heading. `marked`: the class of a row; `name`: its
    own."""
    lines = []
    for row in rows:
        mark = f' class="{marked(row)}"' if marked and marked(row) else ""
        first, *rest = (_escape(cell) for cell in row)
        cells = "".join(f"<td>{cell}</td>" for cell in rest)
        lines.append(f'<tr{mark}><th scope="row">{first}</th>{cells}</tr>')
    headings = "".join(f'<th scope="col">{_escape(cell)}</th>' for cell in head)
    body = "\n".join(lines)
    return (
        f'<div class="wide"><table class="{name}"><thead><tr>{headings}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _facts(runs: Sequence[RunSummary]) -> str:
    """What each run is and where it stands: a row for each fact, a column for each run."""
    facts: list[tuple[str, Callable[[RunSummary], str]]] = [
        ("method", lambda run: run.config.get("method", NONE)),
        ("recipe", lambda run: run.config.get("recipe", NONE)),
        ("trunk", lambda run: run.config.get("model.trunk", NONE)),
        ("view size, pixels", lambda run: run.config.get("model.view_size", NONE)),
        ("batch size", lambda run: run.config.get("batch_size", NONE)),
        ("steps", _steps),
        ("loss, mean of the last tenth", lambda run: _last(run, "loss", 3)),
        ("k-NN top-1, last, %", lambda run: _at_end(run, "knn_top1")),
        ("images/s, median", lambda run: _median(run, "images_per_s", 1, "")),
        ("waiting for data, median", lambda run: _median(run, "data_wait", 100, " %")),
        ("quarantined samples", _quarantined),
    ]
    return _table(
        ("", *(run.name for run in runs)),
        [(label, *(find(run) for run in runs)) for label, find in facts],
    )


def _steps(run: RunSummary) -> str:
    total = run.config.get("max_steps", "?")
    return f"{run.curves['loss'][0][-1]:g} of {total}" if "loss" in run.curves else NONE


def _last(run: RunSummary, column: str, digits: int) -> str:
    if column not in run.curves:
        return NONE
    values = run.curves[column][1]
    return f"{values[-max(1, len(values) // 10) :].mean():.{digits}f}"


def _at_end(run: RunSummary, column: str) -> str:
    return f"{run.curves[column][1][-1]:.1f}" if column in run.curves else NONE


def _median(run: RunSummary, column: str, factor: float, unit: str) -> str:
    if column not in run.curves:
        return NONE
    return f"{factor * float(np.median(run.curves[column][1])):.0f}{unit}"


def _quarantined(run: RunSummary) -> str:
    return NONE if run.quarantine is None else str(sum(run.quarantine.values()))


def _loss_chart(runs: Sequence[RunSummary]) -> str:
    """Each run's loss, pale, and its running mean over a thirtieth of the run."""
    curves = []
    for number, run in enumerate(runs):
        if "loss" not in run.curves:
            continue
        steps, values = run.curves["loss"]
        window = max(len(steps) // 30, 1)
        label = f"{run.name}: mean of {window} steps"
        curves += [
            Curve(label=run.name, steps=steps, values=values, number=number, faint=True),
            Curve(label=label, steps=steps, values=running_mean(values, window), number=number),
        ]
    return line_chart(curves, y_label="loss (nats)") if curves else ""


def _knn_chart(runs: Sequence[RunSummary]) -> str:
    curves = [
        Curve(label=run.name, steps=steps, values=values, number=number, markers=True)
        for number, run in enumerate(runs)
        if "knn_top1" in run.curves
        for steps, values in [run.curves["knn_top1"]]
    ]
    return line_chart(curves, y_label="k-NN top-1 (%)") if curves else ""


def _speed_chart(runs: Sequence[RunSummary]) -> str:
    curves = []
    for number, run in enumerate(runs):
        if "images_per_s" in run.curves:
            steps, values = run.curves["images_per_s"]
            mean = running_mean(values, max(len(steps) // 30, 1))
            curves.append(Curve(label=run.name, steps=steps, values=mean, number=number))
    return line_chart(curves, y_label="images/s", zero=True) if curves else ""


def _evaluation(runs: Sequence[RunSummary]) -> str:
    """The runs' results beside the paper's rows, then the results that have no paper row."""
    head = ["", "method"]
    columns = [
        name
        for name, (command, key) in EVALUATION_COLUMNS.items()
        if name in PAPER_COLUMNS or any(key in run.results.get(command, {}) for run in runs)
    ]
    rows = []
    for run in runs:
        cells = [_result(run, *EVALUATION_COLUMNS[name]) for name in columns]
        rows.append((run.name, run.config.get("method", NONE), *cells))
    for paper in PAPER_ROWS:
        cells = []
        for name in columns:
            value = getattr(paper, name) if name in PAPER_COLUMNS else None
            cells.append(NONE if value is None else f"{value:.1f}")
        rows.append((f"paper: {paper.pretraining}", paper.method, *cells))
    parts = [
        "<p>Top-1 and AP in per cent. The paper's rows are ResNet-50 at 224 pixels: linear probes "
        "on ImageNet, detection on VOC07+12 (test2007). They compare with a run only under the "
        "same protocol and data.</p>",
        _table((*head, *columns), rows, marked=_of_paper),
        *_knn_settings(runs),
        *_other_results(runs),
    ]
    return "\n".join(parts)


def _of_paper(row: Row) -> str:
    return "paper" if row[0].startswith("paper: ") else ""


def _result(run: RunSummary, command: str, name: str) -> str:
    results = run.results.get(command, {})
    return shown(name, results[name]) if name in results else NONE


def _knn_settings(runs: Sequence[RunSummary]) -> list[str]:
    """A sentence with k and the temperature of each k-NN accuracy."""
    told = [
        f"{run.name}: k {_result(run, 'knn', 'k')}, T {_result(run, 'knn', 'temperature')}"
        for run in runs
        if "knn" in run.results
    ]
    return [f"<p>k-NN of {_escape('; '.join(told))}.</p>"] if told else []


def _other_results(runs: Sequence[RunSummary]) -> list[str]:
    parts = []
    for command, title in (
        ("distance", "ResNet distance between two crops (Table 1), four formulas"),
        ("mph", "Masked against clean images inside the masked region (Figures 6 and 7)"),
    ):
        found = [run for run in runs if command in run.results]
        if not found:
            continue
        columns = RESULT_COLUMNS[command]
        rows = [(run.name, *(_result(run, command, name) for name in columns)) for run in found]
        head = [name.replace("_", " ") for name in columns]
        parts.append(f"<h3>{title}</h3>\n{_table(('', *head), rows)}")
        if command == "distance":
            printed = "; ".join(f"{data} {value:.4f}" for data, value in PAPER_DISTANCES.items())
            parts.append(
                f"<p>The paper prints {_escape(printed)}, for torchvision's ResNet-50 and a "
                "formula that it leaves open.</p>"
            )
    return parts


def _pictures(runs: Sequence[RunSummary]) -> list[tuple[str, str]]:
    """A section for each kind of picture, with that of every run that has one."""
    sections = []
    for file, caption in PICTURES.items():
        figures = [
            f'<figure><img alt="{_escape(run.name)}: {caption}" '
            f'src="data:image/png;base64,{base64.b64encode(run.pictures[file]).decode()}">'
            f"<figcaption>{_escape(run.name)}: {caption}</figcaption></figure>"
            for run in runs
            if file in run.pictures
        ]
        title = {"views.png": "Views", "mph.png": "Mask prediction", "layers.png": "Linear probes"}
        sections.append((title.get(file, "Detections"), "\n".join(figures)))
    return sections


def _quarantine(runs: Sequence[RunSummary]) -> str:
    """Samples by reason, a column for each run that has the file."""
    known = [run for run in runs if run.quarantine is not None]
    reasons = list(dict.fromkeys(reason for run in known for reason in run.quarantine or {}))
    if not known:
        return ""
    if not reasons:
        return "<p>None.</p>"
    rows = [
        (reason, *(str((run.quarantine or {}).get(reason, 0)) for run in known))
        for reason in reasons
    ]
    return _table(("reason", *(run.name for run in known)), rows)


def _configuration(runs: Sequence[RunSummary]) -> str:
    """Every field; with several runs the differing ones come first and are marked."""
    known = [run for run in runs if run.config]
    fields = dict.fromkeys(name for run in known for name in run.config)
    rows = [(name, *(run.config.get(name, NONE) for run in known)) for name in fields]
    if not rows:
        return ""
    rows.sort(key=_agrees)
    note = "<p>Fields that differ come first.</p>\n" if len(known) > 1 else ""
    table = _table(
        ("field", *(run.name for run in known)),
        rows,
        marked=lambda row: "" if _agrees(row) else "differs",
        name="settings",
    )
    return note + table


def _agrees(row: Row) -> bool:
    return len(set(row[1:])) == 1


def _missing(runs: Sequence[RunSummary]) -> str:
    lines = [f"<li>{_escape(f'{run.name}: {line}')}</li>" for run in runs for line in run.missing]
    return f"<ul>{''.join(lines)}</ul>" if lines else ""

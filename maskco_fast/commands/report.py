"""The `report` command: one HTML page about one or several runs."""

import collections
import pathlib
from dataclasses import dataclass
from typing import Annotated

import tyro

from maskco_fast.errors import SUCCESS
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders.system.files import write_atomically
from maskco_fast.pictures.report import report_page
from maskco_fast.pictures.run_summary import read_run


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Write one HTML page about runs: curves, views, evaluation, configuration, quarantine."""

    runs: Annotated[tuple[pathlib.Path, ...], tyro.conf.Positional]
    """Run folders, shown side by side."""
    out: pathlib.Path | None = None
    """The HTML file to write. None: report.html in the first run folder."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise InvalidInput("`runs` must name at least one run folder, got none.")


def report(config: ReportConfig) -> int:
    """Write the page and print its name; returns the exit code.

    Parts that a run lacks are named on the page. Raises InvalidInput for a folder that is no run's.
    """
    runs = [read_run(path, name) for path, name in zip(config.runs, _names(config.runs))]
    out = config.out or config.runs[0] / "report.html"
    with write_atomically(out, "w") as file:
        file.write(report_page(runs))
    print(f"{out}: {len(runs)} run{'s' if len(runs) > 1 else ''}")
    return SUCCESS


def _names(runs: tuple[pathlib.Path, ...]) -> list[str]:
    """The folders' names; with their parents' where two are equal, then numbered."""
    paths = [path.resolve() for path in runs]
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        names = [f"{path.parent.name}/{path.name}" for path in paths]
    counts = collections.Counter(names)
    return [
        f"{name} ({number})" if counts[name] > 1 else name for number, name in enumerate(names, 1)
    ]

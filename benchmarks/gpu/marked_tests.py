"""The tests marked `gpu`, as JSON: counts, the slowest, and each failure with the end of its text.

    python -m benchmarks.gpu.marked_tests --json tests.json

The report is written when pytest ends; a call that is cut off keeps pytest's own output.
"""

import importlib.util
import pathlib
import shlex
import subprocess
import sys
import tempfile
import xml.etree.ElementTree
from dataclasses import dataclass
from typing import Any

import tyro

from benchmarks.gpu import ROOT
from benchmarks.gpu.lines import MAX_TEXT, Lines


@dataclass(frozen=True, kw_only=True)
class Options:
    """Run the tests marked `gpu`."""

    arguments: str = "-m gpu tests"
    """Arguments of pytest, as one text."""
    processes: int = 6
    """Tests at a time, where pytest-xdist is installed; each process takes memory of the GPU."""
    seconds_a_test: int = 60
    """Most for one test, where pytest-timeout is installed."""
    json: pathlib.Path | None = None
    """Where the result is written."""


def command(options: Options, report: pathlib.Path) -> list[str]:
    """pytest's command line, with the plugins that are installed."""
    # The plugin is this package: it finds the product in a plain checkout.
    parts = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "benchmarks.gpu",
        *shlex.split(options.arguments),
    ]
    parts += ["--continue-on-collection-errors", "-p", "no:cacheprovider", f"--junitxml={report}"]
    if importlib.util.find_spec("xdist") is not None and options.processes > 1:
        parts += ["-n", str(options.processes)]
    if importlib.util.find_spec("pytest_timeout") is not None:
        parts += ["--timeout", str(options.seconds_a_test)]
    return parts


def summarise(report: pathlib.Path) -> dict[str, Any]:
    """The facts of a JUnit report."""
    cases = []
    failures = []
    for case in xml.etree.ElementTree.parse(report).getroot().iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        bad = [child for child in case if child.tag in ("failure", "error")]
        skipped = any(child.tag == "skipped" for child in case)
        state = "failed" if bad else "skipped" if skipped else "passed"
        cases.append((name, float(case.get("time", 0)), state))
        for child in bad:
            text = child.text or child.get("message") or ""
            failures.append({"test": name, "text": text[-MAX_TEXT:]})
    states = ("passed", "failed", "skipped")
    return {
        **{state: sum(case[2] == state for case in cases) for state in states},
        "slowest": sorted(cases, key=lambda case: -case[1])[:8],
        "failures": failures,
    }


def main(options: Options) -> int:
    """Run pytest and note what its report says."""
    lines = Lines(options.json)
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder) / "report.xml"
        done = subprocess.run(command(options, report), cwd=ROOT, check=False)
        lines.note("exit code", done.returncode)
        lines.attempt("tests", lambda: summarise(report))
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))

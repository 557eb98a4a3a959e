"""Progress lines: at most one an interval, with the time left."""

import io
import sys

import pytest

from maskco_fast import progress
from maskco_fast.errors import CLEAR_LINE, say
from maskco_fast.progress import ProgressLines, duration


@pytest.mark.parametrize(("interval", "lines"), [(0.5, 20), (10.0, 2)])
def test_one_line_an_interval_with_the_time_left(monkeypatch, capsys, interval, lines):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(progress, "LOG_SECONDS", interval)
    report = ProgressLines()
    for done in range(1, 22):
        report(f"shards indexed, {10 * done} samples", done, 100)
        clock[0] += 1.0
    told = capsys.readouterr().err.splitlines()
    assert len(told) == lines
    assert told[-1] == "maskco-fast: 21/100 shards indexed, 210 samples, 1:15 min left"


def test_the_rate_is_that_of_the_stage_and_the_last_line_has_no_time_left(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    report = ProgressLines()
    for what, second in (("indexed", 1.0), ("written", 3.0)):
        for done in range(1, 11):
            clock[0] += second
            report(what, done, 10)
    assert capsys.readouterr().err.splitlines()[1:] == [
        "maskco-fast: 4/10 written, 0:14 min left",
        "maskco-fast: 8/10 written, 0:05 min left",
    ]


def test_duration():
    assert duration(0.4) == "0:00 min"
    assert duration(59.6) == "1:00 min"
    assert duration(3599) == "59:59 min"
    assert duration(11110) == "3:05:10 h"


def terminal(monkeypatch):
    """A terminal of 60 columns as stderr and a clock set by hand: (stream, clock)."""
    clock = [0.0]
    stream = io.StringIO()
    stream.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    return stream, clock


def test_a_terminal_gets_a_bar_that_is_drawn_over_and_stays_full(monkeypatch):
    stream, clock = terminal(monkeypatch)
    report = ProgressLines()
    for done in range(1, 4):
        clock[0] += 0.4
        report("images written, https://user:secret@host/a.tar", done, 3)
    say("next")
    *bars, last, after = stream.getvalue().split(CLEAR_LINE)[1:]
    assert bars == ["█" * 16 + "░" * 8 + " 2/3 images written, https://host/a\r"]
    assert last == "█" * 24 + " 3/3 images written, https://host/a\n"
    assert after == "maskco-fast: next\n"


def test_no_bar_for_short_work_or_on_a_dumb_terminal(monkeypatch):
    stream, clock = terminal(monkeypatch)
    ProgressLines()("images written", 4, 4)
    assert stream.getvalue() == ""
    monkeypatch.setenv("TERM", "dumb")
    report = ProgressLines()
    clock[0] += 1.0
    report("images written", 1, 4)
    assert stream.getvalue() == "maskco-fast: 1/4 images written\n"

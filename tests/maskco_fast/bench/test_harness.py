"""The harness: rows in processes of their own, stopped between questions; its statistics."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from maskco_fast.bench.harness import RowError, RowProcess, Spread, ratio_by_round, run_rounds


class Counter:
    """A row that counts its questions."""

    def __init__(self) -> None:
        self.count = 0

    def next(self, step: int) -> int:
        self.count += step
        return self.count

    def fail(self) -> None:
        raise ValueError("the first line\nthe second line")

    def leave(self) -> None:
        os._exit(3)


def lacks_a_package() -> None:
    raise ImportError("no such package")


def test_statistics_over_rounds() -> None:
    spread = Spread.of([3.0, 1.0, 2.0])
    assert (spread.median, spread.lowest, spread.highest) == (2, 1, 3)
    assert spread.text(1, "x") == "2.0x (1.0x-3.0x)"
    assert ratio_by_round([2, 9, 8], [1, 3, 2]) == Spread(3, 2, 4)


def test_a_row_keeps_its_state_and_is_stopped_between_questions() -> None:
    with RowProcess("counter", Counter) as row:
        assert [row.ask("next", 2), row.ask("next", 3)] == [2, 5]
        stat = pathlib.Path(f"/proc/{row.pid}/stat")
        if stat.exists():
            for _ in range(100):  # the signal takes a moment
                if (state := stat.read_text().rpartition(")")[2].split()[0]) == "T":
                    break
                time.sleep(0.05)
            assert state == "T"
        assert row.ask("next", 1) == 6
    assert row.exitcode == 0


def test_a_failing_row_says_why_in_a_line_and_the_others_go_on() -> None:
    with RowProcess("good", Counter) as good, RowProcess("bad", Counter) as bad:
        seen = []
        answers = run_rounds(
            [good, bad],
            3,
            lambda row: row.ask("next", 1) if row is good else row.ask("fail"),
            lambda number, newest: seen.append((number, dict(newest))),
        )
    assert answers == {"good": [1, 2, 3], "bad": []}
    assert seen == [(1, {"good": 1}), (2, {"good": 2}), (3, {"good": 3})]
    assert str(bad.error) == "ValueError: the first line"
    assert good.error is None


def test_an_ended_process_and_a_missing_package_are_told_apart() -> None:
    with RowProcess("ends", Counter) as row:
        with pytest.raises(RowError, match="exit code 3") as ended:
            row.ask("leave")
        assert not ended.value.missing
        with pytest.raises(RowError, match="exit code 3"):
            row.ask("next", 1)
    with RowProcess("lacks", lacks_a_package) as row:
        with pytest.raises(RowError, match="no such package") as lacking:
            row.ask("next", 1)
        assert lacking.value.missing


def test_rows_end_with_a_killed_parent(tmp_path: pathlib.Path) -> None:
    """A stopped row would otherwise outlive the bench, with its memory."""
    parent = """
import os, signal
from maskco_fast.bench.harness import RowProcess
from tests.maskco_fast.bench.test_harness import Counter
if __name__ == "__main__":
    row = RowProcess("counter", Counter)
    row.ask("next", 1)
    print(row.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    root = pathlib.Path(__file__).parents[3]
    script = tmp_path / "parent.py"
    script.write_text(parent)
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=root, env=environment, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    row = int(done.stdout)
    for _ in range(200):
        if not pathlib.Path(f"/proc/{row}").exists():
            return
        time.sleep(0.05)
    os.kill(row, signal.SIGKILL)
    pytest.fail("the row's process outlived its parent")

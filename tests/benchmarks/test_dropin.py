"""The trial in other codebases' scripts: its changes, its recording, and its verdicts."""

import json
import pathlib
import sys
from collections.abc import Callable

import pytest

from benchmarks.correctness import dropin, dropin_child
from maskco_fast.loaders import make_loader
from maskco_fast.loaders.factory import VIEWS
from maskco_fast.loaders.loader import Loader

DOCUMENT = pathlib.Path(dropin.__file__).parents[2] / "docs" / "adapters.md"

SCRIPT = """
import sys
data = [
    0]
for images, target in data:
    assert images[0].shape == (4, 3, 64, 64)
"""
CODEBASE = dropin.Codebase(
    changes=(
        dropin.Change(file="run.py", first="import sys", new="from maskco_fast import make_loader"),
        dropin.Change(
            file="run.py",
            first="data = [",
            last="    0]",
            new='data = make_loader(sys.argv[1], 4, views="moco_v2", form="moco", threads=1)',
        ),
    ),
    command=lambda run: [],
    resumes_at=3,
)


def test_the_documents_show_every_change() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for name, codebase in dropin.CODEBASES.items():
        assert 1 <= codebase.lines <= 3, name
        for line in (*(change.new for change in codebase.changes), codebase.options):
            assert all(part.strip() in text for part in line.splitlines()), line


def test_a_changed_script_runs_and_its_batches_are_recorded(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, make_shards: Callable[..., list[str]]
) -> None:
    make_shards(2, 8)
    script, record = tmp_path / "run.py", tmp_path / "batches.jsonl"
    script.write_text(SCRIPT)
    for change in CODEBASE.changes:
        change.apply(tmp_path)
    assert CODEBASE.lines == 2
    for name in ("stay_in_this_process", "do_without_gpu"):
        monkeypatch.setattr(dropin_child, name, lambda: None)
    monkeypatch.setattr(Loader, "__init__", Loader.__init__)  # restored afterwards
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    for name, views in list(VIEWS.items()):
        monkeypatch.setitem(VIEWS, name, views)
    dropin_child.main(str(record), "cpu", str(script), str(tmp_path))
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    with make_loader(tmp_path, 4, views="evaluation") as loader:
        assert lines == [batch.index.tolist() for batch in loader]
    with pytest.raises(SystemExit, match="is it another version"):
        CODEBASE.changes[1].apply(tmp_path)


@pytest.mark.parametrize("resumed_at", [3, 4])
def test_both_runs_are_judged(
    resumed_at: int,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    make_shards: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "train").mkdir()
    for path in map(pathlib.Path, make_shards(2, 8)):
        path.rename(tmp_path / "train" / path.name)
    (tmp_path / "checkout").mkdir()
    (tmp_path / "checkout" / "run.py").write_text(SCRIPT)

    def train(codebase: dropin.Codebase, run: dropin.Run, timeout: float) -> list[list[int]]:
        assert "make_loader" in (run.checkout / "run.py").read_text()
        with make_loader(run.shards / "train", 4, views="evaluation") as loader:
            seen = [batch.index.tolist() for _ in range(2) for batch in loader]
        return seen[resumed_at:] if run.resumes else seen

    monkeypatch.setattr(dropin, "train", train)
    monkeypatch.setitem(dropin.CODEBASES, "small", CODEBASE)
    exact = dropin.check("small", tmp_path / "checkout", dropin.Options(), tmp_path)
    assert exact is (resumed_at == 3)
    printed = capsys.readouterr().out
    assert "2 lines, 8 steps on the right samples" in printed
    assert printed.endswith("resumed after 3: exact\n") is exact

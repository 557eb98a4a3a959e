"""docs/quickstart.ipynb runs from its first cell to its last, and is stored without outputs."""

import json
import pathlib
import tempfile
from typing import Any

import pytest

NOTEBOOK = pathlib.Path(__file__).resolve().parents[1] / "docs" / "quickstart.ipynb"


def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    """Its cells are plain Python, which needs no Jupyter kernel."""
    plt = pytest.importorskip("matplotlib.pyplot", reason="pip install matplotlib")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    names: dict[str, Any] = {"__name__": "__main__"}
    shown = []
    plt.switch_backend("agg")
    for number, cell in enumerate(cells):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
        shown.append(capsys.readouterr().out)
    plt.close("all")
    assert "(8, 3, 64, 64) (8, 4) (8, 17, 4)" in shown[1]
    assert "(16, 24, 3)" in shown[3]
    assert shown[4].count('"step":') == 2
    assert list(tmp_path.glob("*/run/knn.json"))

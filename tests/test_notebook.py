"""docs/quickstart.ipynb runs from its first cell to its last, and is stored without outputs."""

import pathlib

import pytest

NOTEBOOK = pathlib.Path(__file__).resolve().parents[1] / "docs" / "quickstart.ipynb"


def test_the_notebook_runs(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="pip install nbformat")
    nbclient = pytest.importorskip("nbclient", reason="pip install nbclient")
    pytest.importorskip("ipykernel", reason="pip install ipykernel")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)
    client = nbclient.NotebookClient(
        notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    shown = [
        "".join(out.get("text", "") for out in cell.outputs if out.get("name") == "stdout")
        for cell in cells
    ]
    assert "(8, 3, 64, 64) (8, 4) (8, 17, 4)" in shown[1]
    assert "(16, 24, 3)" in shown[3]
    assert shown[4].count('"step":') == 2
    assert list(tmp_path.glob("*/run/knn.json"))

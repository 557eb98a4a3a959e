import json

from maskco_fast.evaluation.results import find_results, write_result

RESULT = {"top1": 31.5, "k": 20, "temperature": 0.07}


def test_a_result_is_kept_in_the_run_folder_that_it_is_of(tmp_path, capsys):
    run, copy = tmp_path / "run", tmp_path / "copy.json"
    run.mkdir()
    write_result("knn", RESULT, str(copy), str(run))
    assert json.loads(copy.read_text()) == RESULT
    assert find_results(run) == ({"knn": RESULT}, [])
    write_result("knn", RESULT, "-", str(tmp_path / "weights.pth"))  # no folder to keep it in
    assert json.loads(capsys.readouterr().out) == RESULT


def test_a_folder_that_cannot_be_written_to_is_said(tmp_path, capsys):
    (tmp_path / "knn.json").mkdir()
    write_result("knn", RESULT, None, str(tmp_path))
    assert "knn.json was not written, so reports and exports lack" in capsys.readouterr().err

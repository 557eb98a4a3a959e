"""Loggers by name: the calls that each tracker gets, and the real package, offline, where it is
installed; over a run that resumes."""

import sys
import types
from unittest.mock import MagicMock

import pytest

from maskco_fast.kernels.errors import InvalidInput, MissingPackage
from maskco_fast.loggers import LOGGERS, Wandb
from maskco_fast.training import metrics
from maskco_fast.training.metrics import Metrics
from tests.support.tiny_run import tiny_config

TRACKERS = ("wandb", "trackio", "mlflow")


def need(package: str) -> None:
    pytest.importorskip(package, reason="pip install -e '.[loggers]'", exc_type=ImportError)


def log(run_dir, loggers, *steps: int) -> None:
    """Log `steps`, as a run that starts or resumes before the first of them."""
    with Metrics(
        run_dir,
        step=steps[0] - 1,
        steps=9,
        log_every=1,
        loggers=loggers,
        log_samples=False,
        config={"seed": 3, "model.trunk": "resnet18"},
    ) as opened:
        for step in steps:
            line = {"step": step, "epoch": 0, "loss": 10.0 - step, "learning_rate": 0.1}
            opened.record({**line, "images_per_s": 5.0, "data_wait": 0.0}, [])


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_a_tracker_gets_every_step_of_one_run(tmp_path, monkeypatch, package):
    tracker = MagicMock()
    monkeypatch.setitem(sys.modules, package, tracker)
    log(tmp_path / "run", [package], 1, 2)
    log(tmp_path / "run", [package], 3)
    first, second = (call.kwargs for call in tracker.init.call_args_list)
    assert first == second  # the second continues the first
    assert (first["project"], first["resume"]) == ("maskco-fast", "allow")
    assert str(first["config"]["seed"]) == "3"
    name = (tmp_path / "run" / "tracking-id").read_text().strip()
    assert name in first.get("id", first["name"])
    run = tracker.init.return_value
    logged = [(call.kwargs["step"], call.args[0]["loss"]) for call in run.log.call_args_list]
    assert logged == [(1, 9.0), (2, 8.0), (3, 7.0)]
    assert run.finish.call_count == 2


def test_mlflow_gets_every_step_of_one_run(tmp_path, monkeypatch):
    mlflow, entities = MagicMock(), types.ModuleType("mlflow.entities")
    entities.Param = entities.Metric = lambda *values: values  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    client = mlflow.MlflowClient.return_value
    client.search_runs.return_value = []
    log(tmp_path / "run", ["mlflow"], 1, 2)
    client.search_runs.return_value = [client.create_run.return_value]
    log(tmp_path / "run", ["mlflow"], 3)
    assert client.create_run.call_count == 1
    name = (tmp_path / "run" / "tracking-id").read_text().strip()
    assert client.create_run.call_args.kwargs["tags"] == {"maskco_fast_run": name}
    assert name in client.search_runs.call_args.args[1]
    batches = [call.kwargs for call in client.log_batch.call_args_list]
    assert batches[0]["params"] == [("seed", "3"), ("model.trunk", "resnet18")]
    metrics = [metric for batch in batches[1:] for metric in batch["metrics"]]
    losses = [(step, value) for key, value, _, step in metrics if key == "loss"]
    assert losses == [(1, 9.0), (2, 8.0), (3, 7.0)]
    assert client.set_terminated.call_count == 2


def test_wandb_writes_offline_files(tmp_path, monkeypatch):
    need("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (tmp_path / "run").mkdir()
    logger = Wandb(tmp_path / "run", step=0, config={"model.trunk": "resnet18"})
    for step in (1, 2):
        logger.log(step, {"loss": 10.0 - step})
    assert logger._run.step == 2
    logger.close()
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    name = (tmp_path / "run" / "tracking-id").read_text().strip()
    assert file.name == f"run-{name}.wandb"
    assert b"resnet18" in file.read_bytes()


def test_trackio_fills_its_local_database(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read at import
    need("trackio")
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    log(tmp_path / "run", ["trackio"], 1, 2)
    log(tmp_path / "run", ["trackio"], 3)
    (run,) = trackio.Api().runs("maskco-fast")
    name = (tmp_path / "run" / "tracking-id").read_text().strip()
    assert run.name == f"run-{name}"
    logged = SQLiteStorage.get_logs("maskco-fast", run.name)
    assert [(one["step"], one["loss"]) for one in logged] == [(1, 9.0), (2, 8.0), (3, 7.0)]


def test_mlflow_continues_its_run(tmp_path, monkeypatch):
    need("mlflow")
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    log(tmp_path / "run", ["mlflow"], 1, 2)
    log(tmp_path / "run", ["mlflow"], 3)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("maskco-fast")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "run"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "3", "model.trunk": "resnet18"}
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(one.step, one.value) for one in history] == [(1, 9.0), (2, 8.0), (3, 7.0)]


@pytest.mark.parametrize("package", TRACKERS)
def test_an_absent_tracker_is_named_with_the_remedy(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackage, match=f"--loggers {package}.*pip install {package}"):
        log(tmp_path, [package], 1)


def test_a_tracker_that_fails_is_left_out_with_a_warning(tmp_path, monkeypatch):
    logged = []

    class Failing:
        may_fail = True

        def __init__(self, run_dir, *, step, config):
            assert (step, config["seed"]) == (0, 3)

        def log(self, step, values):
            logged.append(step)
            raise ConnectionError("no server")

        def close(self):
            logged.append("closed")

    monkeypatch.setattr(metrics, "LOGGERS", {**LOGGERS, "wandb": Failing})
    with pytest.warns(RuntimeWarning, match="goes on without --loggers wandb.*no server"):
        log(tmp_path, ["wandb"], 1, 2)
    assert logged == [1]
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 2


def test_names_are_checked_and_tensorboard_can_be_left_out(tmp_path):
    with pytest.raises(InvalidInput, match=r"of jsonl, tensorboard, wandb, .*got 'wandbb'"):
        tiny_config(tmp_path, loggers="jsonl,wandbb")
    config = tiny_config(tmp_path, loggers="jsonl, tensorboard,wandb,wandb", tensorboard=True)
    assert config.logger_names == ["jsonl", "tensorboard", "wandb"]
    assert tiny_config(tmp_path, tensorboard=False).logger_names == ["jsonl"]

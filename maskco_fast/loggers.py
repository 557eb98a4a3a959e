"""Loggers of a run by name: TensorBoard, and the trackers wandb, trackio and mlflow.

Each is a class with `log` and `close` and an entry of `LOGGERS`; a new logger adds these two. The
trackers are optional packages, imported when a run opens them, and configured by their own
environment variables: WANDB_MODE=offline, TRACKIO_DIR, MLFLOW_TRACKING_URI and so on.
"""

import contextlib
import importlib
import os
import pathlib
import secrets
import time
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from maskco_fast.kernels.errors import MissingPackage
from maskco_fast.loaders.system.files import name_full_disk, write_atomically

PROJECT = "maskco-fast"
"""Project of wandb and trackio and experiment of mlflow, unless WANDB_PROJECT, TRACKIO_PROJECT or
MLFLOW_EXPERIMENT_NAME names another."""
PARAMETERS_A_CALL = 100
"""Most parameters that mlflow takes at once; a value may have `PARAMETER_LENGTH` characters."""
PARAMETER_LENGTH = 500


class Logger(Protocol):
    """Where steps are logged; made as `logger(run_dir, step=step, config=config)`.

    `step`: the steps that the run has done. `config`: its settings by dotted name. A run that
    resumes in the same folder continues the same entry.
    """

    may_fail: ClassVar[bool]
    """Whether an error of `log` or `close` is a warning, after which the run goes on."""

    def __init__(self, run_dir: pathlib.Path, *, step: int, config: Mapping[str, Any]) -> None: ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log named values of a step; steps rise."""

    def close(self) -> None:
        """Write everything out; called once."""


class TensorBoard:
    """Event files in the run folder's tensorboard/."""

    may_fail: ClassVar[bool] = False

    def __init__(self, run_dir: pathlib.Path, *, step: int, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second

        self._board: Any = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        with name_full_disk(self._board.get_logdir()):
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._board.close()


class _Tracker:
    """What the runs of wandb and of trackio, which copies its calls, have in common."""

    may_fail: ClassVar[bool] = True
    _run: Any

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class Wandb(_Tracker):
    """Weights & Biases; with WANDB_MODE=offline, files in the run folder's wandb/."""

    def __init__(self, run_dir: pathlib.Path, *, step: int, config: Mapping[str, Any]) -> None:
        wandb = _import("wandb")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run_dir.name,
            id=_tracking_id(run_dir),
            dir=str(run_dir),
            config=dict(config),
            resume="allow",
        )


class Trackio(_Tracker):
    """trackio's local database, or a Space where its environment variables name one."""

    def __init__(self, run_dir: pathlib.Path, *, step: int, config: Mapping[str, Any]) -> None:
        trackio = _import("trackio")
        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=f"{run_dir.name}-{_tracking_id(run_dir)}",  # a run is known by its name alone
            config={name: str(value) for name, value in config.items()},
            resume="allow",
            embed=False,
        )


class MLflow:
    """mlflow, at MLFLOW_TRACKING_URI."""

    may_fail: ClassVar[bool] = True

    def __init__(self, run_dir: pathlib.Path, *, step: int, config: Mapping[str, Any]) -> None:
        mlflow = _import("mlflow")
        self._entities = importlib.import_module("mlflow.entities")
        self._client = mlflow.MlflowClient()
        self._id = self._find(run_dir) or self._create(run_dir, config)

    def _experiment(self) -> str:
        """The id of the experiment, which is made if it does not exist."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        return found.experiment_id if found else self._client.create_experiment(name)

    def _find(self, run_dir: pathlib.Path) -> str | None:
        """The id of the entry that this run folder has begun, if there is one."""
        wanted = f"tags.maskco_fast_run = '{_tracking_id(run_dir)}'"
        runs = self._client.search_runs([self._experiment()], wanted)
        return runs[0].info.run_id if runs else None

    def _create(self, run_dir: pathlib.Path, config: Mapping[str, Any]) -> str:
        tags = {"maskco_fast_run": _tracking_id(run_dir)}
        run = self._client.create_run(self._experiment(), run_name=run_dir.name, tags=tags)
        parameters = [
            self._entities.Param(name, str(value)[:PARAMETER_LENGTH])
            for name, value in config.items()
        ]
        for at in range(0, len(parameters), PARAMETERS_A_CALL):
            self._client.log_batch(run.info.run_id, params=parameters[at : at + PARAMETERS_A_CALL])
        return run.info.run_id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        metrics = [self._entities.Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self._id)


LOGGERS: Mapping[str, type[Logger] | None] = {
    "jsonl": None,  # metrics.jsonl, which `Metrics` writes in any case
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "trackio": Trackio,
    "mlflow": MLflow,
}
"""By the name that `--loggers` takes."""


def _import(package: str) -> Any:
    """Import a tracker; MissingPackage where it is not installed."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise MissingPackage(
            f"`--loggers {package}` needs {package}, which is not installed: pip install {package}"
        ) from error


def _tracking_id(run_dir: pathlib.Path) -> str:
    """The name of this run folder among a tracker's runs, drawn once: 8 hex digits."""
    path = run_dir / "tracking-id"
    with contextlib.suppress(FileNotFoundError):
        return path.read_text(encoding="utf-8").strip()
    drawn = secrets.token_hex(4)
    with write_atomically(path, "w") as file:
        file.write(drawn + "\n")
    return drawn

"""The contents of a run folder that a report shows; what is missing is named, and no error."""

import json
import os
import pathlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from maskco_fast.evaluation.results import find_results
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders.shards.names import redact_url

CURVES = ("loss", "knn_top1", "images_per_s", "data_wait", "accuracy")
"""Columns of metrics.jsonl that are read; a line need not have all of them."""

PICTURES = {
    "views.png": "views: the images with their crops, then each view as it was trained on",
    "mph.png": "conv5 and mask prediction head, for clean and for masked images",
    "layers.png": "accuracy of linear probes by layer",
    "detections.png": "detections on the first test images",
}
"""Pictures in a run folder to their captions."""


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One run, read once."""

    name: str
    config: dict[str, str] = field(default_factory=dict)
    """Dotted field names to values as text, without the other methods' fields; URLs redacted."""
    curves: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    """Column of metrics.jsonl to (steps, values)."""
    results: dict[str, dict[str, float]] = field(default_factory=dict)
    """As `find_results` returns them."""
    quarantine: dict[str, int] | None = None
    """Quarantined samples by reason; None where the file is missing."""
    pictures: dict[str, bytes] = field(default_factory=dict)
    """File name to PNG bytes."""
    missing: list[str] = field(default_factory=list)
    """A line for each part that is absent or unreadable."""


def read_run(folder: str | os.PathLike[str], name: str | None = None) -> RunSummary:
    """Read a run folder; `name` (default: the folder's) titles it.

    Raises InvalidInput where the folder does not exist or holds no part of a run.
    """
    path = pathlib.Path(folder)
    if not path.is_dir():
        raise InvalidInput(f"{path} must be a run folder, but it is no folder.")
    missing: list[str] = []
    config = _read_json(path / "config.json", missing)
    curves = _read_curves(path / "metrics.jsonl", missing)
    quarantine = _read_json(path / "quarantine.json", missing)
    results, problems = find_results(path)
    pictures = {}
    for file in PICTURES:
        if (path / file).exists():
            pictures[file] = (path / file).read_bytes()
    if not (config or curves or results or pictures):
        raise InvalidInput(
            f"{path} must be a run folder: it has neither config.json, metrics.jsonl, results nor "
            "pictures. Name the folder that `maskco-fast train --run-dir` wrote."
        )
    missing += problems
    if "views.png" not in pictures:
        missing.append("views.png is absent: a run draws it when it reaches its last step")
    if not results:
        missing.append("no results: maskco-fast knn, linear and detect write them with --json")
    if curves and "knn_top1" not in curves:
        missing.append("no k-NN curve: train with --monitor.every to have one")
    return RunSummary(
        name=name or path.resolve().name,
        config=_flat(config),
        curves=curves,
        results=results,
        quarantine=_reasons(quarantine),
        pictures=pictures,
        missing=missing,
    )


def _read_json(path: pathlib.Path, missing: list[str]) -> dict[str, Any]:
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        missing.append(f"{path.name} is absent")
        return {}
    except (OSError, ValueError) as error:
        missing.append(f"{path.name} cannot be read: {error}")
        return {}
    return contents if isinstance(contents, dict) else {}


def _read_curves(
    path: pathlib.Path, missing: list[str]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The columns that at least one line has; lines that are no JSON are counted and left out."""
    if not path.exists():
        missing.append(f"{path.name} is absent")
        return {}
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in CURVES}
    unreadable = 0
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                line = json.loads(text)
                step = float(line["step"])
                for name in CURVES:
                    if line.get(name) is not None:
                        points[name].append((step, float(line[name])))
            except (ValueError, KeyError, TypeError, AttributeError):
                unreadable += 1
    if unreadable:
        missing.append(f"{path.name}: {unreadable} lines cannot be read")
    curves = {}
    for name, pairs in points.items():
        finite = np.array([pair for pair in pairs if np.isfinite(pair).all()], np.float64)
        if len(finite):
            curves[name] = (finite[:, 0], finite[:, 1])
    if not curves:
        missing.append(f"{path.name} has no steps")
    return curves


def _reasons(quarantine: dict[str, Any]) -> dict[str, int] | None:
    reasons = quarantine.get("by_reason")
    return (
        {str(name): count for name, count in reasons.items()} if isinstance(reasons, dict) else None
    )


def _flat(config: dict[str, Any]) -> dict[str, str]:
    """Dotted names to text; of the methods' own configurations, the chosen method's alone."""
    # Imported here: both import the networks.
    from maskco_fast.methods.registry import METHODS
    from maskco_fast.training.config import flatten

    others = METHODS.keys() - {config.get("method")}
    return {
        name: _shown(value)
        for name, value in flatten(config).items()
        if name.partition(".")[0] not in others
    }


def _shown(value: Any) -> str:
    """A value as text, without what may be a secret in an address."""
    if isinstance(value, list):
        return ", ".join(_shown(item) for item in value) or "-"
    if not isinstance(value, str):
        return {None: "-", True: "yes", False: "no"}[value] if _is_flag(value) else str(value)
    return redact_url(value)


def _is_flag(value: Any) -> bool:
    return value is None or isinstance(value, bool)

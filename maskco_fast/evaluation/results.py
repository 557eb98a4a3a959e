"""Results of evaluations in a run folder: `linear.json`, `knn.json` and so on.

The commands write them with `--json`; `export` and `report` read them.
"""

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from maskco_fast.loaders.system.files import write_json

RESULT_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "linear": ("conv1", "conv2", "conv3", "conv4", "conv5", "last"),
    "knn": ("top1", "k", "temperature"),
    "detect": ("AP", "AP50", "AP75"),
    "distance": ("map_l2_mean", "map_frobenius", "pooled_l2", "pooled_l2_squared", "images"),
    "mph": ("conv5_norm_ratio", "conv5_cosine", "mph_norm_ratio", "mph_cosine", "images"),
}
"""Command to the numbers of its JSON file that are shown, in their order; the file is named after
the command. Top-1 and AP are per cent."""


def find_results(
    run_dir: str | os.PathLike[str],
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """The numbers of each result in the run folder, and a line for each file that is unreadable.

    Numbers: command to the columns of `RESULT_COLUMNS` that are present. Commands without a file,
    and files without any such number, are absent.
    """
    results: dict[str, dict[str, float]] = {}
    problems = []
    for command, columns in RESULT_COLUMNS.items():
        path = pathlib.Path(run_dir, f"{command}.json")
        if not path.exists():
            continue
        try:
            contents = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            problems.append(f"{path.name} cannot be read: {error}")
            continue
        numbers = _numbers(contents, columns)
        if numbers:
            results[command] = numbers
        else:
            problems.append(f"{path.name} has none of the numbers {', '.join(columns)}")
    return results, problems


def _numbers(contents: Any, columns: tuple[str, ...]) -> dict[str, float]:
    """The finite numbers of these names in a JSON object; empty for anything else."""
    if not isinstance(contents, dict):
        return {}
    return {
        name: contents[name]
        for name in columns
        if isinstance(contents.get(name), (int, float))
        and not isinstance(contents[name], bool)
        and math.isfinite(contents[name])
    }


def shown(name: str, value: float) -> str:
    """A result as text: per cent with one decimal place, other numbers with four digits."""
    if name in ("images", "k"):
        return f"{value:g}"
    if name == "top1" or name.startswith("AP") or name in RESULT_COLUMNS["linear"]:
        return f"{value:.1f}"
    return f"{value:.4g}"


def write_result(path: pathlib.Path | None, result: Mapping[str, Any]) -> None:
    """Write a result as JSON to `path`, on stdout for "-", nowhere for None."""
    if path is None:
        return
    if str(path) == "-":
        print(json.dumps(result, indent=1))
    else:
        write_json(path, result)

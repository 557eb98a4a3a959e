"""Results of evaluations in a run folder: `linear.json`, `knn.json` and so on.

The evaluating commands keep them where `--weights` names a run; `export` and `report` read them.
"""

import contextlib
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from maskco_fast.errors import say
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


SAME = ("network", "step", "data")
"""Entries of a weights' description that must agree where a result is said to be of them."""


def find_results(
    run_dir: str | os.PathLike[str], of: Mapping[str, Any] | None = None
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """The numbers of each result in the run folder, and a line for each file that is left out.

    Numbers: command to the columns of `RESULT_COLUMNS` that are present; commands without a file
    are absent. `of`: the description of weights; results of another network or step are left out.
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
        if not numbers:
            problems.append(f"{path.name} has none of the numbers {', '.join(columns)}")
        elif of is not None and (differing := _differing(contents, of)):
            problems.append(f"{path.name} is of other weights: {differing}")
        else:
            results[command] = numbers
    return results, problems


def _differing(result: Mapping[str, Any], of: Mapping[str, Any]) -> str:
    """What the result's weights and `of` disagree about, as text; empty where they agree."""
    theirs = result.get("weights")
    if not isinstance(theirs, dict):
        return ""
    return ", ".join(
        f"{name} {theirs[name]} instead of {of[name]}"
        for name in SAME
        if None not in (theirs.get(name), of.get(name)) and theirs[name] != of[name]
    )


def _numbers(contents: Any, columns: tuple[str, ...]) -> dict[str, float]:
    """The finite numbers of these names in a JSON object; empty for anything else."""
    if not isinstance(contents, dict):
        return {}
    if contents.get("protocol") == "last":  # its conv5 is not the paper's, which has five probes
        contents = {"last": contents.get("conv5")}
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


def write_result(command: str, result: Mapping[str, Any], out: str | None, weights: str) -> None:
    """Write a result as JSON to the file `out`, to stdout for "-", or nowhere for None.

    Where `weights` names a run folder, `COMMAND.json` is kept there too, for `report` and `export`;
    a folder that cannot be written to is said.
    """
    if os.path.isdir(weights):
        kept = pathlib.Path(weights, f"{command}.json")
        try:
            write_json(kept, result)
        except OSError as error:
            say(f"{kept} was not written, so reports and exports lack this result: {error}")
    if out == "-":
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(result, indent=1))
    elif out is not None:
        write_json(out, result)

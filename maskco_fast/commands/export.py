"""The `export` command: write a pre-trained trunk in another library's format."""

import pathlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from maskco_fast.errors import SUCCESS, say
from maskco_fast.evaluation.results import find_results
from maskco_fast.evaluation.weights import read_weights
from maskco_fast.export.formats import FORMATS
from maskco_fast.export.write import export_weights

if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal[tuple(FORMATS)]
    """A name in `FORMATS`; `--help` lists them."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write a pre-trained trunk in another library's format, with a model card beside it."""

    weights: str
    """A run folder, a checkpoint, an exported file, a torchvision state dict, or "random"."""
    to: FormatName
    """The format: the library that shall load the file."""
    out: pathlib.Path
    """The file to write: .pth or .pt, .pkl for detectron2, .safetensors. The card is OUT.md."""
    network: Literal["query", "key"] = "query"
    """The trained network, or its moving average."""


def export(config: ExportConfig) -> int:
    """Write the files and print their names; returns the exit code.

    Results in the run folder go into the card, if they are of these weights. Raises what
    `read_weights` and `export_weights` raise.
    """
    weights = read_weights(config.weights, network=config.network)
    results: dict[str, dict[str, float]] = {}
    if weights.description["source"] in ("run", "checkpoint"):
        results, problems = find_results(run_folder(config.weights), of=weights.description)
        for problem in problems:
            say(f"warning: left out of the model card: {problem}")
    written = export_weights(weights, config.out, to=config.to, evaluation=results)
    for path in written:
        print(path)
    return SUCCESS


def run_folder(weights: str) -> pathlib.Path:
    """The run folder of a run's weights: the folder itself, or the one above `checkpoints`."""
    path = pathlib.Path(weights)
    folder = path if path.is_dir() else path.parent
    return folder.parent if folder.name == "checkpoints" else folder

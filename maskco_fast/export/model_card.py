"""The model card: a Markdown file beside exported weights that says what they are.

It contains names and numbers only: no path, no credential, no user name.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from maskco_fast import __version__
from maskco_fast.evaluation.results import RESULT_COLUMNS, shown
from maskco_fast.export.detectron2_configs import EXTRA_NORM
from maskco_fast.export.formats import FORMATS
from maskco_fast.kernels.views import IMAGENET_MEAN, IMAGENET_STD

ORIGIN_ROWS = {
    "trunk": "trunk",
    "network": "network",
    "method": "method",
    "recipe": "recipe",
    "step": "training steps",
    "view_size": "view size, pixels",
    "group_size": "BatchNorm group, images",
    "seed": "seed",
    "data": "data fingerprint",
    "source": "read from",
}
"""Key of `Weights.description` to its label in the card."""

NETWORK_WORDS = {
    "query": "query, the network that is trained",
    "key": "key, its moving average",
}

SOURCE_WORDS = {
    "run": "a training run",
    "checkpoint": "a checkpoint",
    "export": "an exported file",
    "random": "a random initialisation: untrained weights",
    "torchvision": "a torchvision state dict",
}

_NORMALISATION = (
    f"Input: RGB, scaled to 0..1, minus the mean {IMAGENET_MEAN}, divided by the standard "
    f"deviation {IMAGENET_STD}."
)
_STATISTICS = (
    "BatchNorm's running statistics are those of the augmented training views, for MaskCo with the "
    "masked box; recomputing them on clean images before evaluation can change the results."
)


def model_card(
    description: Mapping[str, Any],
    *,
    to: str,
    file: str,
    companions: tuple[str, ...] = (),
    evaluation: Mapping[str, Mapping[str, float]] | None = None,
) -> str:
    """The card's Markdown text.

    `description`: of `Weights`. `to`: a name in `FORMATS`. `file`: the exported file's name, and
    `companions` those of the files beside it. `evaluation`: results as
    `find_results` returns them.
    """
    form = FORMATS[to]
    trunk = str(description["trunk"])
    code = form.code.format(file=file, trunk=trunk, depth=trunk.removeprefix("resnet"))
    parts = [
        f"# {_title(description)}",
        f"`{file}`: the trunk of a {_architecture(trunk)} for {to}, without classifier and "
        f"projection head. Written by maskco-fast {__version__}.",
        "## Origin",
        _table(("what", "value"), _origin(description)),
        "## Loading",
        f"```python\n{code}```",
        form.note,
        f"{_NORMALISATION} The stride of a block is on its 3x3 convolution (ResNet v1.5).",
    ]
    if description.get("method"):
        parts.append(_STATISTICS)
    if companions:
        parts += [
            "## Detection",
            f"Beside this file: {', '.join(f'`{name}`' for name in companions)}. Both need this "
            "RoI head, which MoCo's `detection/train_net.py` defines; add it to a copy of "
            "Detectron2's `tools/train_net.py` otherwise:",
            f"```python\n{EXTRA_NORM}```",
        ]
    parts += ["## Evaluation", *_evaluation(evaluation or {})]
    return "\n\n".join(parts) + "\n"


def _title(description: Mapping[str, Any]) -> str:
    origin = "untrained" if description.get("source") == "random" else "of unknown training"
    method = description.get("method")
    return (
        f"{_architecture(str(description['trunk']))}, "
        f"{f'pre-trained by {_text(method)}' if method else origin}"
    )


def _architecture(trunk: str) -> str:
    return trunk.replace("resnet", "ResNet-")


def _origin(description: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The rows of `ORIGIN_ROWS` that are known."""
    rows = []
    for key, label in ORIGIN_ROWS.items():
        value = description.get(key)
        if value is not None:
            words = {"network": NETWORK_WORDS, "source": SOURCE_WORDS}.get(key, {})
            rows.append((label, words.get(value) or _text(value)))
    return rows


def _evaluation(results: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A table for each kind of result, or the sentence that there is none."""
    parts = []
    for kind, columns in RESULT_COLUMNS.items():
        found = [name for name in columns if name in results.get(kind, {})]
        if found:
            values = tuple(shown(name, results[kind][name]) for name in found)
            parts.append(f"{kind}:\n\n{_table(tuple(found), [values])}")
    return parts or ["No results of `knn`, `linear` or `detect` were found beside these weights."]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _text(value: Any) -> str:
    """A value of the description that may come from a foreign file, as plain Markdown text."""
    text = re.sub(r"[^\w .,+=%:-]", "", str(value))
    return text[:80]

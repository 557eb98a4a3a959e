"""Reading the metrics of a run folder."""

import json
import pathlib


def metrics(run_dir: pathlib.Path) -> list[dict]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def losses(run_dir: pathlib.Path) -> list[tuple[int, int, float, float]]:
    """Step, epoch, loss and accuracy of every line."""
    return [
        (line["step"], line["epoch"], line["loss"], line["accuracy"]) for line in metrics(run_dir)
    ]

"""What a run folder says of its steps."""

import json
import pathlib


def metrics(run_dir: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def losses(run_dir: pathlib.Path) -> list[tuple[int, int, float, float]]:
    return [
        (line["step"], line["epoch"], line["loss"], line["accuracy"]) for line in metrics(run_dir)
    ]

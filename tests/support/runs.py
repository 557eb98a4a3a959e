"""Reading the metrics of a run folder."""

import json
import pathlib


def metrics(run_dir: pathlib.Path) -> list[dict]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def losses(run_dir: pathlib.Path) -> list[dict]:
    """Step, epoch, loss, learning rate and the method's metrics of every line, without times."""
    times = ("images_per_s", "data_wait")
    return [
        {name: value for name, value in line.items() if name not in times}
        for line in metrics(run_dir)
    ]

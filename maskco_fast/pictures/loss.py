"""The loss picture of a run: loss, images/s and data wait over the steps."""

import json
import os

import numpy as np

from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.pictures.drawing import new_figure, write_png

COLUMNS = ("step", "loss", "images_per_s", "data_wait")


def read_metrics(metrics: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read the columns step, loss, images_per_s and data_wait of `metrics.jsonl`.

    Returns one (L,) float64 array a column, L the number of lines. Raises InvalidInput with file
    and line number for a line that is not JSON or lacks a column, and for a file without lines.
    """
    rows = []
    with open(metrics, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                values = json.loads(line)
                rows.append([float(values[name]) for name in COLUMNS])
            except (ValueError, KeyError, TypeError) as error:
                raise InvalidInput(
                    f"{metrics}, line {number} must be a JSON object with the numbers "
                    f"{', '.join(COLUMNS)}: {error!r}"
                ) from error
    if not rows:
        raise InvalidInput(
            f"{metrics} has no lines; the run ended before its first step was logged"
        )
    return dict(zip(COLUMNS, np.array(rows, np.float64).T))


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of each value (L,) and up to `window` - 1 values before it, (L,)."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def loss_picture(
    metrics: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    chance: float | None = None,
    title: str = "",
) -> None:
    """Write a PNG of a run's loss, and below it images/s and data wait.

    `metrics` is the run's `metrics.jsonl`, as `read_metrics` reads it. `chance` draws a dashed line
    at the loss of a random guess among the positive and all negatives, ln(1 + negatives), in nats.
    """
    columns = read_metrics(metrics)
    steps = columns["step"]
    # A line through one point is invisible, so a run of one step is drawn as a dot.
    marker = "." if len(steps) == 1 else ""
    window = max(len(steps) // 30, 1)
    smooth = running_mean(columns["loss"], window)
    figure = new_figure(8, 6)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))

    top.plot(steps, columns["loss"], color="#9db8d6", linewidth=0.8, marker=marker, label="loss")
    label = f"mean of {window} lines, {smooth[-1]:.3f} at the end"
    top.plot(steps, smooth, color="#0b4f9c", linewidth=2, label=label)
    if chance is not None:
        label = f"chance {chance:.2f}"
        top.axhline(chance, color="#c03030", linestyle="--", linewidth=1, label=label)
    top.set_ylabel("loss (nats)")
    top.set_title(title, fontsize=10, loc="left")
    top.legend(fontsize=8)
    top.grid(alpha=0.3)

    bottom.plot(steps, columns["images_per_s"], color="#2a7a2a", linewidth=1, marker=marker)
    bottom.set_ylabel("images/s", color="#2a7a2a")
    bottom.set_ylim(bottom=0)
    bottom.set_xlabel("step")
    bottom.grid(alpha=0.3)

    waiting = 100 * columns["data_wait"]
    right = bottom.twinx()
    right.plot(steps, waiting, color="#b06000", linewidth=1, marker=marker)
    right.set_ylabel("waiting for data (%)", color="#b06000")
    right.set_ylim(0, max(5.0, 1.1 * float(waiting.max())))
    write_png(figure, out)

"""The bar chart of `bench`: images/s of each row that makes two views of every image."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.pictures.drawing import new_figure, write_png

BAR_COLOURS = {"ours": "#00a0d0", "peer": "#b0b0b0"}
"""Colour of a bar by the row's kind."""
BOUND_COLOUR = "#c06000"


def bench_picture(
    rows: Sequence[dict[str, Any]], out: str | os.PathLike[str], *, title: str = ""
) -> None:
    """Write a PNG with one bar for each two-view row of `bench`'s JSON: its median images/s.

    The error bar spans the slowest to the fastest round. `decode_only` is a dashed line;
    `cached_batch` and rows without a speed are left out. Raises InvalidInput if no bar is left.
    """
    timed = [row for row in rows if row["images_per_s"] is not None]
    bars = [row for row in timed if row["kind"] != "bound" and row["views"] == 2]
    if not bars:
        raise InvalidInput("bench_picture: at least one row of two views must have a speed.")
    bars.sort(key=lambda row: row["images_per_s"])
    speeds = np.array([row["images_per_s"] for row in bars])
    spreads = np.array([row["spread"] for row in bars])
    figure = new_figure(9, 1.2 + 0.45 * len(bars))
    axes = figure.subplots()
    axes.barh(
        [row.get("label", row["name"]) for row in bars],
        speeds,
        xerr=np.abs(spreads.T - speeds),
        color=[BAR_COLOURS[row["kind"]] for row in bars],
        ecolor="#404040",
    )
    for at, row in enumerate(bars):
        # On white: the dashed line may pass behind the number.
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axes.annotate(
            f"{row['images_per_s']:.0f}",
            (row["spread"][1], at),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            bbox=paper,
        )
    for row in timed:
        if row["name"] == "decode_only":
            label = f"full decoding alone, {row['images_per_s']:.0f}"
            axes.axvline(row["images_per_s"], color=BOUND_COLOUR, linestyle="--", label=label)
            axes.legend(fontsize=8, loc="lower right")
    axes.set_xlabel("images/s, two views of each image: median, slowest and fastest round")
    axes.set_title(title, fontsize=9, loc="left")
    axes.margins(x=0.12)
    write_png(figure, out)

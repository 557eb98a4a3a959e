"""The bar chart of `bench`: images/s of each row."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.pictures.drawing import new_figure, write_png

BAR_COLOURS = {"ours": "#00a0d0", "peer": "#b0b0b0", "bound": "#ffb000"}
"""Colour of a bar by the row's kind."""


def bench_picture(
    rows: Sequence[dict[str, Any]], out: str | os.PathLike[str], *, title: str = ""
) -> None:
    """Write a PNG with one bar for each row of `bench`'s JSON: its median images/s.

    The error bar spans the slowest to the fastest round. Rows without a speed are left out. Raises
    InvalidInput if no row has one.
    """
    timed = [
        row for row in rows if row["images_per_s"] is not None and row["name"] != "cached_batch"
    ]
    if not timed:
        raise InvalidInput("bench_picture: at least one row must have a speed, got none.")
    timed.sort(key=lambda row: row["images_per_s"])
    speeds = np.array([row["images_per_s"] for row in timed])
    spreads = np.array([row["spread"] for row in timed])
    figure = new_figure(9, 1.2 + 0.45 * len(timed))
    axes = figure.subplots()
    axes.barh(
        [row["name"] for row in timed],
        speeds,
        xerr=np.abs(spreads.T - speeds),
        color=[BAR_COLOURS[row["kind"]] for row in timed],
        ecolor="#404040",
    )
    for at, row in enumerate(timed):
        axes.text(row["spread"][1], at, f"  {row['images_per_s']:.0f}", va="center", fontsize=9)
    axes.set_xlabel("images/s, two views each: median of the rounds, slowest to fastest")
    axes.set_title(title, fontsize=9)
    axes.margins(x=0.12)
    write_png(figure, out)

"""The picture of `linear`: accuracy of the probes by layer."""

import os
from collections.abc import Mapping, Sequence

from maskco_fast.pictures.drawing import new_figure, write_png

COLOURS = ("#0b4f9c", "#c06000", "#2a7a2a", "#7a2a7a")


def layers_picture(
    series: Mapping[str, Mapping[str, float]],
    out: str | os.PathLike[str],
    *,
    layers: Sequence[str],
    chance: float | None = None,
    title: str = "",
) -> None:
    """Write a PNG with a line for each of `series`: label to per cent by layer.

    A series may lack layers (the paper's rows have two). `chance`: per cent of a random guess,
    drawn as a dashed line.
    """
    figure = new_figure(7, 4.5)
    axes = figure.subplots()
    for number, (label, values) in enumerate(series.items()):
        places = [place for place, layer in enumerate(layers) if layer in values]
        heights = [values[layers[place]] for place in places]
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(places, heights, marker="o", color=colour, label=label)
        for place, height in zip(places, heights):
            axes.annotate(
                f"{height:.1f}",
                (place, height),
                xytext=(0, 7),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=colour,
            )
    if chance is not None:
        axes.axhline(
            chance, color="#c03030", linestyle="--", linewidth=1, label=f"chance {chance:.1f} %"
        )
    axes.set_xticks(range(len(layers)), layers)
    axes.set_ylabel("top-1 accuracy (%)")
    axes.set_ylim(bottom=0)
    axes.set_title(title, fontsize=10, loc="left")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    axes.margins(y=0.12)
    write_png(figure, out)

"""The pictures of docs/performance.md, from the figures' JSON."""

import pathlib
from collections.abc import Callable
from typing import Any

from benchmarks.figures.tables import LABELS
from maskco_fast.pictures.bars import bench_picture
from maskco_fast.pictures.drawing import new_figure, write_png

STAGE_COLOURS = {
    "plan": "#909090",
    "read": "#7a9cc6",
    "decode": "#0b4f9c",
    "resize": "#00a0d0",
    "colour": "#ffb000",
    "blur": "#c06000",
    "store": "#7ab648",
    "hand-over": "#c03030",
}


def draw(figures: dict[str, Any], out: pathlib.Path) -> list[str]:
    """Draw the pictures whose parts were measured; returns their file names."""
    pictures: dict[str, tuple[str, Callable[[dict[str, Any], pathlib.Path], None]]] = {
        "bench.png": ("bench", draw_bench),
        "stages.png": ("stages", draw_stages),
        "cores.png": ("cores", draw_cores),
    }
    drawn = []
    for name, (part, picture) in pictures.items():
        if part in figures:
            picture(figures, out / name)
            drawn.append(name)
    return drawn


def _title(figures: dict[str, Any]) -> str:
    return f"{figures['machine']}; {figures['date']}"


def draw_bench(figures: dict[str, Any], out: pathlib.Path) -> None:
    """A bar for each row that finishes two views of each image."""
    rows = [
        {**row, "label": LABELS.get(row["name"], row["name"])}
        for row in figures["bench"]
        if row["name"] in LABELS or row["name"] == "decode_only"
    ]
    bench_picture(rows, out, title=_title(figures))


def draw_stages(figures: dict[str, Any], out: pathlib.Path) -> None:
    """An image's milliseconds on one thread, as one stacked bar."""
    took = {name: figures["stages"][name] for name in STAGE_COLOURS}
    total = sum(took.values())
    figure = new_figure(9, 2.6)
    axes = figure.subplots()
    left = 0.0
    for name, colour in STAGE_COLOURS.items():
        width = max(took[name], 0.0)  # a difference of two timings may fall below zero
        label = f"{name} {took[name]:.2f} ms, {took[name] / total:.0%}"
        axes.barh([0], [width], left=left, color=colour, edgecolor="white", label=label)
        left += width
    axes.set_yticks([])
    axes.set_xlim(0, left)
    axes.set_xlabel(f"milliseconds an image, both views, one thread: {total:.2f} in all")
    axes.set_title(_title(figures), fontsize=9, loc="left")
    figure.legend(ncols=4, fontsize=8, loc="outside lower center", frameon=False)
    write_png(figure, out)


def draw_cores(figures: dict[str, Any], out: pathlib.Path) -> None:
    """Images/s over cores on logarithmic axes: measured, simulated, and proportional growth."""
    found = figures["cores"]
    simulated = {int(cores): speed for cores, speed in found["simulated"].items()}
    measured = {int(cores): spread for cores, spread in found["measured"].items()}
    per_core = 1000 / found["free_ms"]
    figure = new_figure(7, 4.2)
    axes = figure.subplots()
    cores = sorted(simulated)
    axes.plot(cores, [per_core * n for n in cores], color="#909090", linestyle=":", label="ideal")
    axes.plot(cores, [simulated[n] for n in cores], color="#0b4f9c", marker="o", label="simulated")
    here = sorted(measured)
    medians = [measured[n]["median"] for n in here]
    low = [measured[n]["median"] - measured[n]["lowest"] for n in here]
    high = [measured[n]["highest"] - measured[n]["median"] for n in here]
    axes.errorbar(
        here, medians, yerr=[low, high], color="#c03030", marker="s", linestyle="", label="measured"
    )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    ticks = sorted({*cores, *here})
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
    axes.set_xlabel("cores of one process")
    axes.set_ylabel("images/s, two views of each")
    axes.set_title(_title(figures), fontsize=9, loc="left")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    write_png(figure, out)

"""Draws the diagrams of the documents: `flow.png`, `step.png` and `loss.png`.

    python docs/draw.py                                      # flow.png and step.png
    python docs/draw.py --metrics runs/demo/metrics.jsonl    # loss.png of `make train` too

The two pictures in `step.png` are views of the built-in demo set, made by the reference loader.
"""

import argparse
import math
import pathlib

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from maskco_fast import ViewConfig, make_loader
from maskco_fast.demo.shards import demo_shards
from maskco_fast.pictures.loss import read_metrics, running_mean

DATA, PLAN, PIXELS, NETWORK, LOSS = "#dfe8f1", "#fbe6c3", "#d5ecd8", "#e4dcf0", "#f6d5d5"
"""Fill colours: files and numbers, the plan, pixels, networks, the objective."""
INK = "#303030"
MASK = (124, 116, 104)
"""Levels of a normalised zero: ImageNet's mean."""
WINDOW = 20
"""Steps in the running mean of `loss.png`."""


def box(axes: Axes, x: float, y: float, w: float, h: float, text: str, colour: str) -> None:
    """A rounded box with its lower left corner at (x, y); the first line of `text` is bold."""
    style = "round,pad=0,rounding_size=0.8"
    axes.add_patch(FancyBboxPatch((x, y), w, h, boxstyle=style, facecolor=colour, edgecolor=INK))
    title, _, rest = text.partition("\n")
    lines = rest.count("\n") + 1 if rest else 0
    middle = y + h / 2
    top = middle + 0.8 * lines + 0.35 if lines else middle
    axes.text(x + w / 2, top, title, ha="center", va="center", fontsize=9.5, weight="bold")
    if rest:
        axes.text(
            x + w / 2, middle - 1.25, rest, ha="center", va="center", fontsize=8.5, linespacing=1.35
        )


def arrow(axes: Axes, start: tuple, end: tuple, text: str = "", *, colour: str = INK, **at) -> None:
    """An arrow from `start` to `end`, labelled beside its middle."""
    style = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0}
    style["linestyle"] = at.pop("linestyle", "-")
    axes.annotate("", xy=end, xytext=start, arrowprops=style)
    if text:
        x, y = at.pop("at", ((start[0] + end[0]) / 2 + 1, (start[1] + end[1]) / 2))
        options = {"fontsize": 8, "color": colour, "va": "center", **at}
        axes.text(x, y, text, **options)


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure whose axes count in tenths of an inch, without frame or ticks."""
    figure = Figure(figsize=(width / 10, height / 10), dpi=110, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.axis("off")
    return figure, axes


def draw_flow() -> Figure:
    """From shards to a batch: what is computed where, and where the seam is."""
    figure, axes = canvas(96, 66)
    shards = "shards\n*.tar, folder of images, *.beton\nhttps://, s3://, pipe:"
    box(axes, 2, 55, 28, 9, shards, DATA)
    index = "index, once a shard\noffset, size, height, width,\nformat, label, bad samples"
    box(axes, 36, 55, 26, 9, index, DATA)
    box(axes, 68, 55, 26, 9, "order(seed, epoch)\npositions of this rank\nin the epoch", DATA)
    arrow(axes, (30, 59.5), (36, 59.5))
    arrow(axes, (62, 59.5), (68, 59.5))

    box(axes, 2, 41, 28, 8, "encoded bytes\nof one sample", DATA)
    plan = "plan(seed, epoch, sample_id, height, width)\n"
    plan += "crops, flips, colours, blur, masked box, key boxes:\none row of float32 a sample"
    box(axes, 46, 40, 48, 10, plan, PLAN)
    arrow(axes, (16, 55), (16, 49), "read", at=(17, 52))
    arrow(axes, (81, 55), (81, 50), "sample ids", at=(82, 52.4))

    decode = "decode once, only the region of the crops → crop, antialiased resize, flip\n"
    decode += "native and ffcv: own JPEG decoder and kernels, in threads · dali: DALI decodes\n"
    decode += "reference: Pillow decodes the whole image, torchvision does the rest"
    box(axes, 2, 27, 92, 9, decode, PIXELS)
    arrow(axes, (16, 41), (16, 36))
    arrow(axes, (70, 40), (70, 36), "plan row", at=(71, 38))

    arrow(axes, (48, 27), (48, 18.5))
    axes.plot([2, 94], [22.8, 22.8], color="#c03030", linewidth=1.4, linestyle="--")
    axes.text(2, 24.0, "the seam", fontsize=9.5, color="#c03030", weight="bold", va="center")
    seam = "V uint8 views (N, S, S, 3), with their plan rows"
    axes.text(93.8, 24.2, seam, fontsize=8.5, color="#c03030", ha="right", va="center")
    host = "on a GPU the host stops here"
    axes.text(93.8, 21.5, host, fontsize=8.5, color="#c03030", ha="right", va="center")

    finish = "colour jitter, grayscale, blur, solarise → normalise, zero the masked box\n"
    finish += "CPU: Numba, in the same kernel call as the resize · CUDA: Triton passes"
    box(axes, 2, 10.5, 92, 8, finish, PIXELS)
    batch = "Batch\nquery, key, masked_box, key_boxes, sample_id, target, index"
    box(axes, 20, 1.5, 56, 6, batch, DATA)
    arrow(axes, (48, 10.5), (48, 7.5))
    return figure


def two_views() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Query, key (S, S, 3) uint8, masked box (4,) and key boxes (17, 4) of a demo scene."""
    with make_loader(
        demo_shards(), 24, views=ViewConfig.maskco(), backend="reference", dtype=torch.uint8
    ) as loader:
        batch = next(iter(loader))
    number = 20  # one in colour, with a box of middling size
    query, key = (view[number].permute(1, 2, 0).numpy().copy() for view in batch.views)
    assert batch.masked_box is not None
    assert batch.key_boxes is not None
    return query, key, batch.masked_box[number].numpy(), batch.key_boxes[number].numpy()


def show_view(
    figure: Figure, place: tuple, pixels: np.ndarray, boxes: list[tuple[np.ndarray, str, float]]
) -> None:
    """A view at `place` (x, y, width, height of the figure, 0..1) with box outlines."""
    axes = figure.add_axes(place)
    axes.imshow(pixels, extent=(0, pixels.shape[1], pixels.shape[0], 0))
    for (x1, y1, x2, y2), colour, width in boxes:
        outline = {"fill": False, "edgecolor": colour, "linewidth": width}
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, **outline))
    axes.set_xticks([])
    axes.set_yticks([])


def draw_step() -> Figure:
    """MaskCo's training step with the paper's numbers: groups of 32, 17 boxes, 496 negatives."""
    width, height = 108, 50
    figure, axes = canvas(width, height)
    query, key, masked_box, key_boxes = two_views()
    x1, y1 = np.floor(masked_box[:2]).astype(int)
    x2, y2 = np.ceil(masked_box[2:]).astype(int)
    query[max(y1, 0) : y2, max(x1, 0) : x2] = MASK
    outline = "#ff2020"
    side = 18
    rows = {"query": 27, "key": 3}
    views = {
        "query": (query, [(masked_box, outline, 2.0)]),
        "key": (key, [*[(b, "white", 0.8) for b in key_boxes[1:]], (key_boxes[0], outline, 2.0)]),
    }
    titles = {
        "query": "query view, one box masked",
        "key": "key view, 17 boxes (red: the positive)",
    }
    for name, y in rows.items():
        place = (2 / width, y / height, side / width, side / height)
        show_view(figure, place, *views[name])
        axes.text(2, y + side + 1.2, titles[name], fontsize=8.5, va="center")
    names = {"query": "query network\ntrained", "key": "key network\nno gradient"}
    regions = {
        "query": "RoIAlign 1 x 1\nthe masked box",
        "key": "RoIAlign 1 x 1\nall 17 boxes",
    }
    outputs = {"query": "q (N, 128)", "key": "k (N, 17, 128)"}
    for name, y in rows.items():
        middle = y + side / 2
        box(axes, 25, middle - 4, 13, 8, f"{names[name]}\nResNet trunk", NETWORK)
        box(
            axes,
            41.5,
            middle - 4,
            14.5,
            8,
            "MPH\nmask prediction head,\n3 bottleneck blocks",
            NETWORK,
        )
        box(axes, 59, middle - 4, 13, 8, regions[name], NETWORK)
        box(axes, 76, middle - 4, 11, 8, "projection\n2 linear\nlayers", NETWORK)
        for start, end in ((20, 25), (38, 41.5), (56, 59), (72, 76), (87, 92)):
            arrow(axes, (start, middle), (end, middle))
        axes.text(81.5, middle + 5.0, outputs[name], fontsize=8.5, ha="center", va="center")
    top, bottom = rows["query"] + side / 2, rows["key"] + side / 2
    contrast = "InfoNCE\ntemperature .2\n\npositive:\nkey box 0\n\nnegatives:\nthe 16 other boxes\n"
    contrast += "of the 31 other\nimages of the group\n(496)"
    box(axes, 92, bottom - 4, 14, top - bottom + 8, contrast, LOSS)
    arrow(axes, (31.5, top - 4), (31.5, bottom + 4), colour="#7a4fa3", linestyle="--")
    moving = "after each optimiser step:\nkey ← .999 · key + .001 · query\n(all parameters)"
    axes.text(33, (top + bottom) / 2, moving, fontsize=8.5, color="#7a4fa3", va="center")
    red = "#c03030"
    arrow(axes, (99, top + 7), (25, top + 7), colour=red, linestyle="--")
    note = "gradient: into the query network alone"
    axes.text(62, top + 8.5, note, fontsize=8.5, color=red, ha="center", va="center")
    return figure


def draw_loss(metrics: pathlib.Path) -> Figure:
    """The loss of a run of the demo recipe, its mean over 20 steps, and the loss of guessing."""
    columns = read_metrics(metrics)
    steps = columns["step"]
    figure = Figure(figsize=(8, 3.6), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, columns["loss"], color="#9db8d6", linewidth=0.8, label="loss of a step")
    smooth = running_mean(columns["loss"], WINDOW)
    label = f"mean of {WINDOW} steps, {smooth[-1]:.2f} at step {int(steps[-1])}"
    axes.plot(steps, smooth, color="#0b4f9c", linewidth=2, label=label)
    chance = math.log(1 + 16 * 31)
    label = f"chance, ln 497 = {chance:.2f}"
    axes.axhline(chance, color="#c03030", linestyle="--", linewidth=1, label=label)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats)")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    return figure


def main() -> None:
    """Write the diagrams as PNG files."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent)
    parser.add_argument("--metrics", type=pathlib.Path, help="draws loss.png of this metrics.jsonl")
    options = parser.parse_args()
    figures = {"flow": draw_flow(), "step": draw_step()}
    if options.metrics is not None:
        figures["loss"] = draw_loss(options.metrics)
    for name, figure in figures.items():
        path = options.out / f"{name}.png"
        figure.savefig(path, metadata={"Software": None})
        print(path)


if __name__ == "__main__":
    main()

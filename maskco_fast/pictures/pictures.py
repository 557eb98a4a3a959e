"""Pictures to judge a run by: what the plan makes of an image, and how the loss went.

Drawn with matplotlib's object interface, so that nothing of pyplot's global state is touched and no
display is needed.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.kernels.views import ViewConfig
from maskco_fast.loaders.system.files import write_atomically

VIEW_COLOURS = ("#00c8ff", "#ffb000", "#7cfc00", "#ff6ad5")
"""Outlines of the query's crop, the key's, and further views'."""
POSITIVE_COLOUR, NEGATIVE_COLOUR, OVERLAP_COLOUR = "#ff2020", "#ffffff", "#c0c0c0"
MASK_LEVELS = (124, 116, 104)
"""What zero after normalisation is in levels: ImageNet's mean (.485, .456, .406) times 255."""
OPERATIONS = "bcsh"
"""First letters of brightness, contrast, saturation and hue, by operation number."""


@dataclass(frozen=True, kw_only=True)
class PlannedImage:
    """One row of `views_picture`."""

    name: str
    """What to call the image: its key in the shard."""
    original: np.ndarray
    """(H, W, 3) uint8, the decoded image."""
    plan: np.void
    """Its plan: one record of `ViewConfig.plan_dtype`."""
    views: tuple[np.ndarray, ...]
    """V arrays (size, size, 3) uint8: the augmented views, not masked; query first, then key."""


def views_picture(
    images: Sequence[PlannedImage],
    config: ViewConfig,
    out: str | os.PathLike[str],
    *,
    dpi: int = 100,
) -> None:
    """Write a PNG with a row an image: the original with its crops, then every view.

    The query shows its mask as the network sees it (zero after normalisation, which is ImageNet's
    mean colour), the key its boxes, the positive thick and red; on the original the positive stands
    where the plan puts it in the image. ValueError without images, and for arrays that do not fit
    the configuration.
    """
    if not images:
        raise InvalidInput("views_picture: no images to show; give at least one")
    for image in images:
        _check(image, config)
    columns = 1 + len(config.views)
    figure = Figure(figsize=(4 * columns, 4.3 * len(images)), dpi=dpi, layout="constrained")
    axes = figure.subplots(len(images), columns, squeeze=False)
    for row, image in zip(axes, images):
        _draw_original(row[0], image, config)
        for number in range(len(config.views)):
            _draw_view(row[1 + number], image, config, number)
    _write(figure, out)


def _check(image: PlannedImage, config: ViewConfig) -> None:
    shape = (config.size, config.size, 3)
    if image.original.ndim != 3 or image.original.shape[2] != 3 or image.original.dtype != np.uint8:
        raise InvalidInput(
            f"{image.name}: the original is {image.original.shape} {image.original.dtype}, not (H, W, 3) uint8"
        )
    if len(image.views) != len(config.views) or any(
        v.shape != shape or v.dtype != np.uint8 for v in image.views
    ):
        found = [f"{v.shape} {v.dtype}" for v in image.views]
        raise InvalidInput(
            f"{image.name}: the views are {found}; the configuration asks for {len(config.views)} of {shape} uint8"
        )
    if image.plan.dtype != config.plan_dtype:
        raise InvalidInput(
            f"{image.name}: the plan is not a record of this configuration's plan_dtype"
        )


def _show(axes: Axes, pixels: np.ndarray, title: str) -> None:
    """Pixels (H, W, 3) so that whole coordinates are pixel edges, as boxes and crops count them."""
    height, width = pixels.shape[:2]
    axes.imshow(
        pixels,
        extent=(0, width, height, 0),
        interpolation="nearest" if width < 300 else "antialiased",
    )
    axes.set_title(title, fontsize=8, loc="left")
    axes.set_xticks([0, width])
    axes.set_yticks([0, height])
    axes.tick_params(labelsize=6)


def _outline(
    axes: Axes, box: Sequence[float], colour: str, thick: float, style: str = "-", label: str = ""
) -> None:
    """The outline of `box` (x1, y1, x2, y2) on a dark rim, so that it shows on any picture."""
    x1, y1, x2, y2 = (float(edge) for edge in box)
    for width, edge in ((thick + 1.5, "black"), (thick, colour)):
        axes.add_patch(
            Rectangle(
                (x1, y1),
                x2 - x1,
                y2 - y1,
                fill=False,
                edgecolor=edge,
                linewidth=width,
                linestyle=style,
            )
        )
    if label:
        style_of_box = {"facecolor": colour, "edgecolor": "none", "pad": 1}
        axes.text(x1, y1, label, fontsize=7, color="black", va="top", ha="left", bbox=style_of_box)


def _names(config: ViewConfig) -> list[str]:
    """What to call the views: query and key where boxes relate them, numbers otherwise."""
    names = [f"view {number}" for number in range(len(config.views))]
    return ["query", "key", *names[2:]] if config.boxes else names


def _draw_original(axes: Axes, image: PlannedImage, config: ViewConfig) -> None:
    height, width = image.original.shape[:2]
    title = f"{image.name}   {width} x {height}"
    if config.min_overlap:
        title += f"   pairs drawn: {int(image.plan['draws'])}"
    _show(axes, image.original, title)
    for number, name in enumerate(_names(config)):
        y, x, h, w = image.plan["views"]["crop"][number]
        _outline(
            axes, (x, y, x + w, y + h), VIEW_COLOURS[number % len(VIEW_COLOURS)], 2, label=name
        )
    if config.boxes:
        _outline(axes, box_in_image(image.plan, config.size), POSITIVE_COLOUR, 2)


def box_in_image(plan: np.void, size: int) -> tuple[float, float, float, float]:
    """Where the positive box lies in the original, (x1, y1, x2, y2) in image pixels; `size` of the
    views in pixels."""
    x1, y1, x2, y2 = (float(edge) for edge in plan["key_boxes"][0])
    crop_y, crop_x, crop_h, crop_w = (float(value) for value in plan["views"]["crop"][1])
    if plan["views"]["flip"][1]:
        x1, x2 = size - x2, size - x1
    across, down = crop_w / size, crop_h / size
    return crop_x + x1 * across, crop_y + y1 * down, crop_x + x2 * across, crop_y + y2 * down


def view_facts(view: np.void, height: int, width: int) -> str:
    """One line on how a view was drawn; `view` is a record of the plan's `views`, the image height
    by width pixels."""
    share = float(view["crop"][2]) * float(view["crop"][3]) / (height * width)
    facts = [f"area {share:.0%}"]
    if view["flip"]:
        facts.append("flip")
    if view["jitter"]:
        order = "".join(OPERATIONS[int(operation)] for operation in view["order"])
        brightness, contrast, saturation, hue = (float(factor) for factor in view["factors"])
        facts.append(f"{order} {brightness:.2f} {contrast:.2f} {saturation:.2f} {hue:+.2f}")
    if view["gray"]:
        facts.append("gray")
    if view["blur_sigma"]:
        facts.append(f"blur {float(view['blur_sigma']):.1f}")
    if view["solarize"]:
        facts.append("solarised")
    return ", ".join(facts)


def masked(view: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """A copy of `view` (size, size, 3) uint8 with the pixels that `box` (xyxy) touches at
    ImageNet's mean colour."""
    x1, y1 = (max(int(np.floor(edge)), 0) for edge in box[:2])
    x2, y2 = (max(int(np.ceil(edge)), 0) for edge in box[2:])
    result = view.copy()
    result[y1:y2, x1:x2] = MASK_LEVELS
    return result


def _draw_view(axes: Axes, image: PlannedImage, config: ViewConfig, number: int) -> None:
    pixels, plan = image.views[number], image.plan
    facts = view_facts(plan["views"][number], *image.original.shape[:2])
    if config.boxes and config.mask and number == 0:
        pixels = masked(pixels, plan["masked_box"])
    _show(axes, pixels, f"{_names(config)[number]}: {facts}")
    for spine in axes.spines.values():
        spine.set_edgecolor(VIEW_COLOURS[number % len(VIEW_COLOURS)])
        spine.set_linewidth(3)
    if config.boxes and number == 0:
        _outline(
            axes,
            plan["masked_box"],
            POSITIVE_COLOUR,
            1.5,
            label="masked" if config.mask else "positive",
        )
    if config.boxes and number == 1:
        for box in plan["key_boxes"][1:]:
            _outline(axes, box, NEGATIVE_COLOUR, 0.8)
        _outline(axes, plan["key_boxes"][0], POSITIVE_COLOUR, 3, label="positive")


def _write(figure: Figure, out: str | os.PathLike[str]) -> None:
    """Write the figure as PNG."""
    with write_atomically(out) as file:
        FigureCanvasAgg(figure).print_png(file)


def read_metrics(metrics: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The columns step, loss, images_per_s and data_wait of a run's `metrics.jsonl`, each (L,)
    float64.

    ValueError, naming the file and line, where a line is not JSON or lacks one of them, and when
    there are none.
    """
    names = ("step", "loss", "images_per_s", "data_wait")
    rows = []
    with open(metrics, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                values = json.loads(line)
                rows.append([float(values[name]) for name in names])
            except (ValueError, KeyError, TypeError) as error:
                wanted = ", ".join(names)
                raise InvalidInput(
                    f"{metrics}, line {number}: not a JSON object with numbers {wanted} ({error!r})"
                ) from error
    if not rows:
        raise InvalidInput(
            f"{metrics} has no lines; the run ended before its first step was logged"
        )
    return dict(zip(names, np.array(rows, np.float64).T))


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of each value (L,) and the up to `window` - 1 before it, (L,)."""
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
    """Write a PNG of a run: the loss with its running mean and the chance line, and below it
    images/s and data wait.

    `metrics` is the run's `metrics.jsonl` (see `read_metrics` for what is refused). `chance` is the
    loss of guessing among the positive and all negatives, ln(1 + negatives); None draws no line.
    """
    columns = read_metrics(metrics)
    steps = columns["step"]
    figure = Figure(figsize=(8, 6), dpi=100, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    dots = "." if len(steps) == 1 else ""
    top.plot(steps, columns["loss"], color="#9db8d6", linewidth=0.8, marker=dots, label="loss")
    window = max(len(steps) // 30, 1)
    smooth = running_mean(columns["loss"], window)
    top.plot(
        steps,
        smooth,
        color="#0b4f9c",
        linewidth=2,
        label=f"mean of {window} lines, {smooth[-1]:.3f} at the end",
    )
    if chance is not None:
        top.axhline(
            chance, color="#c03030", linestyle="--", linewidth=1, label=f"chance {chance:.2f}"
        )
    top.set_ylabel("loss (nats)")
    top.set_title(title, fontsize=10, loc="left")
    top.legend(fontsize=8)
    top.grid(alpha=0.3)
    bottom.plot(steps, columns["images_per_s"], color="#2a7a2a", linewidth=1, marker=dots)
    bottom.set_ylabel("images/s", color="#2a7a2a")
    bottom.set_ylim(bottom=0)
    bottom.set_xlabel("step")
    bottom.grid(alpha=0.3)
    share = bottom.twinx()
    share.plot(steps, 100 * columns["data_wait"], color="#b06000", linewidth=1, marker=dots)
    share.set_ylabel("waiting for data (%)", color="#b06000")
    share.set_ylim(0, max(5.0, 110 * float(columns["data_wait"].max())))
    _write(figure, out)


BAR_COLOURS = {"ours": "#00a0d0", "peer": "#b0b0b0", "bound": "#ffb000"}
"""Of `bench_picture`'s bars, by kind of row."""


def bench_picture(
    rows: Sequence[dict[str, Any]], out: str | os.PathLike[str], *, title: str = ""
) -> None:
    """A bar a row of `bench` (its JSON): images/s, slowest to fastest round; rows without a speed
    are left out."""
    timed = [
        row for row in rows if row["images_per_s"] is not None and row["name"] != "cached_batch"
    ]
    if not timed:
        raise InvalidInput("bench_picture: no row has a speed to show")
    timed.sort(key=lambda row: row["images_per_s"])
    figure = Figure(figsize=(9, 1.2 + 0.45 * len(timed)), dpi=100, layout="constrained")
    axes = figure.subplots()
    speeds = np.array([row["images_per_s"] for row in timed])
    spreads = np.array([row["spread"] for row in timed])
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
    _write(figure, out)

"""The picture of detections: annotated objects above, found ones below, a column an image."""

import os
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from maskco_fast.detection.annotations import AnnotatedSet
from maskco_fast.detection.average_precision import Detections
from maskco_fast.detection.batches import read_image
from maskco_fast.detection.masks import mask_tools, object_masks
from maskco_fast.pictures.drawing import new_figure, write_png

LEAST_SCORE = 0.5
"""Detections below it are not drawn."""
MASK_OPACITY = 0.45


def detections_picture(
    data: AnnotatedSet,
    found: Sequence[Detections],
    out: str | os.PathLike[str],
    *,
    count: int,
) -> None:
    """Write a PNG of the first `count` images with objects: boxes, masks, classes, scores.

    `found`: one for each image of `data`.
    """
    shown = [n for n, image in enumerate(data.images) if len(image.labels)][:count]
    if not shown:
        return
    figure = new_figure(2.6 * len(shown), 5.4, dpi=130)
    grid = figure.subplots(2, len(shown), squeeze=False)
    colours = class_colours(len(data.classes))
    for column, number in enumerate(shown):
        image, one = data.images[number], found[number]
        pixels = read_image(image).permute(1, 2, 0).numpy()
        masks = object_masks(image, image.height, image.width) if image.outlines else None
        names = [data.classes[label] for label in image.labels]
        _draw(grid[0, column], pixels, image.boxes, image.labels, names, masks, colours)
        kept = np.flatnonzero(one.scores >= LEAST_SCORE)
        names = [f"{data.classes[one.labels[n]]} {one.scores[n]:.2f}" for n in kept]
        if one.masks:
            masks = np.array([mask_tools().decode(one.masks[n]) for n in kept])
        else:
            masks = None
        _draw(grid[1, column], pixels, one.boxes[kept], one.labels[kept], names, masks, colours)
        grid[0, column].set_title(f"{image.name}: {len(image.labels)} objects", fontsize=7)
        grid[1, column].set_title(f"{len(kept)} found", fontsize=7)
    grid[0, 0].set_ylabel("annotated", fontsize=8)
    grid[1, 0].set_ylabel(f"found, score at least {LEAST_SCORE}", fontsize=8)
    write_png(figure, out)


def class_colours(classes: int) -> np.ndarray:
    """A colour (classes, 3) in 0..1 for every class."""
    return matplotlib.colormaps["hsv"](np.arange(classes) / max(classes, 1))[:, :3]


def _draw(
    axes: Axes,
    pixels: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    masks: np.ndarray | None,
    colours: np.ndarray,
) -> None:
    """Draw an image (H, W, 3) uint8 with its objects."""
    canvas = pixels.astype(np.float32) / 255
    if masks is not None:
        for mask, label in zip(masks, labels):
            inside = mask.astype(bool)
            canvas[inside] += MASK_OPACITY * (colours[label] - canvas[inside])
    axes.imshow(canvas)
    axes.set_xticks([])
    axes.set_yticks([])
    for (x1, y1, x2, y2), label, name in zip(boxes, labels, names):
        colour = colours[label]
        axes.add_patch(
            Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, ec=colour, lw=1.2)
        )
        axes.text(
            x1,
            max(y1 - 1, 0.06 * len(pixels)),  # inside the picture, for a box at its upper edge
            name,
            fontsize=5,
            color="black",
            va="bottom",
            clip_on=True,
            bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.6, "alpha": 0.8},
        )

"""The picture of a mask prediction head: maps of clean and masked images on one colour scale."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from maskco_fast.evaluation.mask_prediction import LayerMaps, centre_region
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.pictures.drawing import new_figure, write_png

COLOURS = "viridis"
REGION_COLOUR = "#ff2020"
TITLES = {"conv5": "conv5", "mph": "after MPH"}


def mph_picture(
    names: Sequence[str],
    images: np.ndarray,
    masked: np.ndarray,
    layers: Mapping[str, LayerMaps],
    out: str | os.PathLike[str],
    *,
    title: str = "",
) -> None:
    """Write a PNG with a row for each image: the image and each layer's map, clean then masked.

    `names`: titles of the N images. `images`, `masked`: (N, S, S, 3) uint8. The two maps of a layer
    share a colour scale, from 0 to the larger maximum. The red square is the masked region; the
    title of the masked map compares the two inside it. Raises InvalidInput without images.
    """
    if not names:
        raise InvalidInput("mph_picture: at least one image is required, got no images.")
    columns = 2 + 2 * len(layers)
    figure = new_figure(2.3 * columns, 2.55 * len(names) + 0.4)
    figure.suptitle(title, fontsize=9, x=0.01, ha="left")
    axes = figure.subplots(len(names), columns, squeeze=False)
    size = images.shape[1]
    for n, (name, row) in enumerate(zip(names, axes)):
        _show(row[0], images[n], size, name)
        _show(row[1], masked[n], size, "centre masked")
        for number, (layer, maps) in enumerate(layers.items(), 1):
            clean, hidden = maps.clean[n].numpy(), maps.masked[n].numpy()
            top = max(float(clean.max()), float(hidden.max()), 1e-12)
            pair = row[2 * number : 2 * number + 2]
            ratio, cosine = float(maps.norm_ratio[n]), float(maps.cosine[n])
            compared = f"masked: norm x {ratio:.2f}, cosine {cosine:.2f}"
            for place, values, text in zip(
                pair, (clean, hidden), (f"{TITLES[layer]}, clean", compared)
            ):
                shown = _show(place, values, size, text, cmap=COLOURS, vmin=0, vmax=top)
            bar = figure.colorbar(shown, ax=list(pair), fraction=0.03, pad=0.02)
            bar.ax.tick_params(labelsize=6)
    write_png(figure, out)


def _show(axes: Axes, values: np.ndarray, size: int, title: str, **options: object):  # type: ignore[no-untyped-def]
    """Show an image or a map over the view's `size` pixels, with the region outlined."""
    shown = axes.imshow(values, extent=(0, size, size, 0), interpolation="nearest", **options)  # type: ignore[arg-type]
    x1, y1, x2, y2 = centre_region(size)
    axes.add_patch(
        Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=REGION_COLOUR, linewidth=1.2)
    )
    axes.set_title(title, fontsize=8, loc="left")
    axes.set_xticks([])
    axes.set_yticks([])
    return shown

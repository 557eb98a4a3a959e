"""The picture of an image's views: the original with its crops, then each augmented view with its
mask and boxes.

Boxes are (x1, y1, x2, y2) in pixels. Crops are (y, x, height, width) in pixels of the original.
"""

import os
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.kernels.plan import plan
from maskco_fast.kernels.views import ViewConfig
from maskco_fast.loaders import Dataset, make_loader
from maskco_fast.loaders.shards.decode import decode_pillow
from maskco_fast.pictures.drawing import new_figure, write_png

VIEW_COLOURS = ("#00c8ff", "#ffb000", "#7cfc00", "#ff6ad5")
"""Outlines of the query's crop, the key's and those of further views, repeated from the fifth."""
POSITIVE_COLOUR = "#ff2020"
NEGATIVE_COLOUR = "#ffffff"
MASK_LEVELS = (124, 116, 104)
"""ImageNet's mean (.485, .456, .406) times 255: the levels that normalisation maps to zero."""
OPERATIONS = "bcsh"
"""First letters of brightness, contrast, saturation and hue, by operation number."""


@dataclass(frozen=True, kw_only=True)
class PlannedImage:
    """One row of `views_picture`: an image, its plan and its rendered views."""

    name: str
    """The image's title: its key in the shard."""
    original: np.ndarray
    """(H, W, 3) uint8, the decoded image."""
    plan: np.void
    """The image's plan, one record of `ViewConfig.plan_dtype`."""
    views: tuple[np.ndarray, ...]
    """V arrays (height, width, 3) uint8: the augmented views without mask; first the query."""


def draw_views(
    dataset: Dataset,
    config: ViewConfig,
    out: pathlib.Path,
    *,
    count: int,
    seed: int,
    epoch: int = 0,
    backend: str = "reference",
) -> None:
    """Write `views_picture` of the first `count` images of an epoch, as `backend` renders them."""
    images = []
    with make_loader(
        dataset,
        count,
        views=config,
        backend=backend,
        dtype=torch.uint8,
        seed=seed,
        rank=0,
        world_size=1,
    ) as loader:
        loader.set_epoch(epoch)
        # The iterator stays open until the originals are read: closing it cancels remote reads.
        batches = iter(loader)
        batch = next(batches)
        for n, position in enumerate(batch.index.tolist()):
            sample = dataset.samples[[position]]
            ids = batch.sample_id[[n]].numpy()
            row = plan(config, seed, epoch, ids, sample["height"], sample["width"])
            shard, number = dataset.locate(position)
            image = PlannedImage(
                name=shard.key(number),
                original=decode_pillow(dataset.read(position)),
                plan=row.view(config.plan_dtype)[0, 0],
                views=tuple(view[n].permute(1, 2, 0).numpy() for view in batch.views),
            )
            images.append(image)
    views_picture(images, config, out)


def views_picture(
    images: Sequence[PlannedImage],
    config: ViewConfig,
    out: str | os.PathLike[str],
    *,
    dpi: int = 100,
) -> None:
    """Write a PNG with a row for each image: the original with its crops, then every view.

    The query shows its mask as the network sees it: zero after normalisation, which is ImageNet's
    mean colour. The key shows its boxes, the positive thick and red. The original shows the
    positive where the plan places it. Patches are outlined in the first view, the centre in red.

    Raises InvalidInput without images, and for arrays that do not fit the configuration.
    """
    if not images:
        raise InvalidInput("views_picture: at least one image is required, got no images.")
    for image in images:
        _check(image, config)
    columns = 1 + len(config.views)
    figure = new_figure(4 * columns, 4.3 * len(images), dpi)
    axes = figure.subplots(len(images), columns, squeeze=False)
    for row, image in zip(axes, images):
        _draw_original(row[0], image, config)
        for number in range(len(config.views)):
            _draw_view(row[1 + number], image, config, number)
    write_png(figure, out)


def _check(image: PlannedImage, config: ViewConfig) -> None:
    """Raise InvalidInput unless the image's arrays fit the configuration."""
    original = image.original
    if original.ndim != 3 or original.shape[2] != 3 or original.dtype != np.uint8:
        raise InvalidInput(
            f"{image.name}: the original must be (H, W, 3) uint8, "
            f"got {original.shape} {original.dtype}."
        )
    expected = [f"{(*size, 3)} uint8" for size in config.layout.sizes]
    found = [f"{view.shape} {view.dtype}" for view in image.views]
    if found != expected:
        raise InvalidInput(f"{image.name}: the views must be arrays {expected}, got {found}.")
    if image.plan.dtype != config.plan_dtype:
        raise InvalidInput(
            f"{image.name}: the plan must be a record of this configuration's plan_dtype, "
            f"got {image.plan.dtype}."
        )


def _show(axes: Axes, pixels: np.ndarray, title: str) -> None:
    """Show pixels (H, W, 3) with integer coordinates at pixel edges, as boxes and crops have."""
    height, width = pixels.shape[:2]
    interpolation = "nearest" if width < 300 else "antialiased"
    axes.imshow(pixels, extent=(0, width, height, 0), interpolation=interpolation)
    axes.set_title(title, fontsize=8, loc="left")
    axes.set_xticks([0, width])
    axes.set_yticks([0, height])
    axes.tick_params(labelsize=6)


def _outline(
    axes: Axes,
    box: Sequence[float],
    colour: str,
    thick: float,
    label: str = "",
    *,
    label_at_end: bool = False,
) -> None:
    """Outline `box`, with a dark rim that makes it visible on any picture.

    The label is in the upper left corner, with `label_at_end` in the lower right one.
    """
    x1, y1, x2, y2 = (float(edge) for edge in box)
    for width, edge in ((thick + 1.5, "black"), (thick, colour)):
        patch = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=edge, linewidth=width)
        axes.add_patch(patch)
    if label:
        style = {"facecolor": colour, "edgecolor": "none", "pad": 1}
        x, y, across, down = (
            (x2, y2, "right", "bottom") if label_at_end else (x1, y1, "left", "top")
        )
        axes.text(x, y, label, fontsize=7, color="black", va=down, ha=across, bbox=style)


def _names(config: ViewConfig) -> list[str]:
    """The views' titles: query and key where boxes relate them, otherwise numbers."""
    names = [f"view {number}" for number in range(len(config.views))]
    return ["query", "key", *names[2:]] if config.boxes else names


def _view_colour(number: int) -> str:
    return VIEW_COLOURS[number % len(VIEW_COLOURS)]


def _draw_original(axes: Axes, image: PlannedImage, config: ViewConfig) -> None:
    """Draw the original with the crop of each view and the positive box."""
    height, width = image.original.shape[:2]
    title = f"{image.name}   {width} x {height}"
    if config.min_overlap:
        title += f"   pairs drawn: {int(image.plan['draws'])}"
    _show(axes, image.original, title)
    for number, name in enumerate(_names(config)):
        y, x, h, w = image.plan["views"]["window"][number]
        # Crops often share a corner: the labels of query and key are in opposite ones.
        outline = (x, y, x + w, y + h)
        _outline(axes, outline, _view_colour(number), 2, label=name, label_at_end=number % 2 == 1)
    if config.boxes:
        _outline(axes, box_in_image(image.plan, config.size), POSITIVE_COLOUR, 2)


def box_in_image(plan: np.void, size: int) -> tuple[float, float, float, float]:
    """The positive box in pixels of the original, (x1, y1, x2, y2).

    `plan`: one record of `ViewConfig.plan_dtype`. `size`: side of the views, pixels.
    """
    x1, y1, x2, y2 = (float(edge) for edge in plan["key_boxes"][0])
    crop_y, crop_x, crop_h, crop_w = (float(value) for value in plan["views"]["window"][1])
    if plan["views"]["flip"][1]:
        x1, x2 = size - x2, size - x1
    scale_x = crop_w / size
    scale_y = crop_h / size
    return (
        crop_x + x1 * scale_x,
        crop_y + y1 * scale_y,
        crop_x + x2 * scale_x,
        crop_y + y2 * scale_y,
    )


def view_facts(view: np.void, height: int, width: int) -> str:
    """One line with a view's augmentations: area, flip, jitter factors, gray, blur, solarisation,
    lighting in levels.

    `view`: a record of the plan's `views`. `height`, `width`: of the original, pixels.
    """
    share = float(view["window"][2]) * float(view["window"][3]) / (height * width)
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
    if view["lighting"].any():
        facts.append(
            "light " + " ".join(f"{255 * float(shift):+.0f}" for shift in view["lighting"])
        )
    return ", ".join(facts)


def masked(view: np.ndarray, box: Sequence[float] | np.ndarray) -> np.ndarray:
    """A copy of `view` (size, size, 3) uint8 in which `box` has ImageNet's mean colour.

    Every pixel that the box touches is masked.
    """
    x1, y1 = (max(int(np.floor(edge)), 0) for edge in box[:2])
    x2, y2 = (max(int(np.ceil(edge)), 0) for edge in box[2:])
    result = view.copy()
    result[y1:y2, x1:x2] = MASK_LEVELS
    return result


def _draw_view(axes: Axes, image: PlannedImage, config: ViewConfig, number: int) -> None:
    """Draw view `number`: the query with its mask, the key with its boxes."""
    pixels = image.views[number]
    plan = image.plan
    facts = view_facts(plan["views"][number], *image.original.shape[:2])
    if config.boxes and config.mask and number == 0:
        pixels = masked(pixels, plan["masked_box"])
    _show(axes, pixels, f"{_names(config)[number]}: {facts}")
    for spine in axes.spines.values():
        spine.set_edgecolor(_view_colour(number))
        spine.set_linewidth(3)
    if config.boxes and number == 0:
        label = "masked" if config.mask else "positive"
        _outline(axes, plan["masked_box"], POSITIVE_COLOUR, 1.5, label=label)
    if config.patch_grid and number == 0:
        size = config.patch_size
        corners = plan["patch_corners"]
        for place, (y, x) in enumerate(corners):
            colour = POSITIVE_COLOUR if 2 * place + 1 == len(corners) else NEGATIVE_COLOUR
            _outline(axes, (x, y, x + size, y + size), colour, 1.5, label=str(place))
    if config.boxes and number == 1:
        for box in plan["key_boxes"][1:]:
            _outline(axes, box, NEGATIVE_COLOUR, 0.8)
        _outline(axes, plan["key_boxes"][0], POSITIVE_COLOUR, 3, label="positive")

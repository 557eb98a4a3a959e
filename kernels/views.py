"""What views to make of an image (`ViewConfig`), and the layout of the plan row that says it for
one sample."""

import dataclasses
import functools
from dataclasses import dataclass

import numpy as np

from .errors import InvalidInput

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
"""Numbers of the four colour-jitter operations, as they stand in a plan's `order`."""
SOLARIZE_THRESHOLD = 128
"""Levels from here on are inverted (BYOL; torchvision's and timm's default)."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Per channel, of levels in 0..1 (torchvision's pretrained models; SPEC 1)."""


@dataclass(frozen=True, kw_only=True)
class View:
    """How one view is drawn. The defaults are MoCo v2's "aug plus" (SPEC 1; moco/main_moco.py)."""

    area: tuple[float, float] = (0.2, 1.0)
    """Range of the crop's share of the image's area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of the crop's width over height, drawn log-uniformly."""
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    """Strength of brightness, contrast, saturation (factor in 1 ± strength), hue (turns in ±
    strength, at most .5)."""
    jitter_probability: float = 0.8
    gray_probability: float = 0.2
    blur_probability: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the Gaussian's standard deviation, in pixels of the view."""
    solarize_probability: float = 0.0
    """Inverts the levels of at least 128, after the blur (BYOL)."""
    flip_probability: float = 0.5

    def __post_init__(self) -> None:
        for name in ("jitter", "gray", "blur", "solarize", "flip"):
            value = getattr(self, f"{name}_probability")
            if not 0 <= value <= 1:
                raise InvalidInput(
                    f"View.{name}_probability is {value}; a probability lies in 0..1"
                )
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise InvalidInput(f"View.area is {self.area}; it wants 0 < low <= high <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise InvalidInput(f"View.ratio is {self.ratio}; it wants 0 < low <= high")
        if min(self.jitter) < 0 or self.jitter[3] > 0.5:
            raise InvalidInput(
                f"View.jitter is {self.jitter}; strengths are at least 0, and hue at most .5"
            )
        if not 0 < self.blur_sigma[0] <= self.blur_sigma[1] <= 5:
            raise InvalidInput(
                f"View.blur_sigma is {self.blur_sigma}; it wants 0 < low <= high <= 5 pixels"
            )

    def parameters(self) -> list[float]:
        """The numbers that `plan.plan_rows` takes for this view, in the order it reads them."""
        return [
            *self.area,
            *self.ratio,
            *self.jitter,
            self.jitter_probability,
            self.gray_probability,
            self.blur_probability,
            *self.blur_sigma,
            self.solarize_probability,
            self.flip_probability,
        ]


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """Which views an image yields and how they depend on each other. View 0 is the query, view 1
    the key."""

    views: tuple[View, ...] = (View(), View())
    size: int = 224
    """Side of every view, pixels."""
    min_overlap: float = 0.0
    """Span of the first two crops' intersection on both axes of the key view, pixels; 0 leaves the
    crops free."""
    boxes: int = 0
    """Boxes in the key view, the positive first; 0 for none (SPEC 1: 17)."""
    box_side: tuple[float, float] = (32.0, 128.0)
    """Range of a box's width and height, drawn independently, pixels."""
    max_negative_iou: float = 0.2
    """A negative box overlaps the positive by less than this."""
    max_mask_share: float = 0.5
    """The masked box covers at most this share of the query view."""
    mask: bool = False
    """Zero the masked box in the query view (after normalisation)."""

    def __post_init__(self) -> None:
        if not self.views:
            raise InvalidInput("ViewConfig.views is empty; give at least one View")
        if not 8 <= self.size <= 1024:
            raise InvalidInput(f"ViewConfig.size is {self.size}; it wants 8..1024 pixels")
        if (self.boxes or self.min_overlap) and len(self.views) < 2:
            raise InvalidInput(
                "ViewConfig: boxes and min_overlap relate a query to a key; give at least two views"
            )
        if self.mask and not self.boxes:
            raise InvalidInput("ViewConfig.mask needs boxes: the positive box is what is masked")
        if self.boxes and not 0 < self.box_side[0] <= self.box_side[1] <= self.size:
            raise InvalidInput(
                f"ViewConfig.box_side is {self.box_side}; it wants 0 < low <= high <= size = {self.size}"
            )
        if not 0 <= self.min_overlap <= self.size:
            raise InvalidInput(
                f"ViewConfig.min_overlap is {self.min_overlap}; it wants 0..size = {self.size}"
            )
        if self.boxes and self.min_overlap < self.box_side[1]:
            raise InvalidInput(
                f"ViewConfig.min_overlap is {self.min_overlap}: box 0 lies inside the overlap, "
                f"so it wants at least the longest side, {self.box_side[1]}"
            )
        if self.boxes and 2 * self.box_side[0] + self.box_side[1] > self.size:
            raise InvalidInput(
                f"ViewConfig.box_side is {self.box_side}: a smallest box must always fit beside a largest one, "
                f"so twice the low plus the high may not exceed size = {self.size}"
            )

    @classmethod
    def maskco(cls, size: int = 224, *, mask: bool = True) -> "ViewConfig":
        """MaskCo's query and key with 17 boxes (SPEC 1). At other sizes than 224 the pixel lengths
        scale along."""
        scale = size / 224
        return cls(
            size=size,
            min_overlap=128 * scale,
            boxes=17,
            box_side=(32 * scale, 128 * scale),
            mask=mask,
        )

    @classmethod
    def moco_v2(cls, size: int = 224, views: int = 2) -> "ViewConfig":
        """Free views with MoCo v2's augmentation."""
        return cls(views=(View(),) * views, size=size)

    @classmethod
    def simclr(cls, size: int = 224, views: int = 2) -> "ViewConfig":
        """Free views with SimCLR's augmentation (SPEC 2)."""
        return cls(views=(View(area=(0.08, 1.0), jitter=(0.8, 0.8, 0.8, 0.2)),) * views, size=size)

    @classmethod
    def byol(cls, size: int = 224) -> "ViewConfig":
        """BYOL's two unlike views: the first always blurred, the second seldom blurred and at times
        solarised."""
        view = View(area=(0.08, 1.0), jitter=(0.4, 0.4, 0.2, 0.1), blur_probability=1.0)
        second = dataclasses.replace(view, blur_probability=0.1, solarize_probability=0.2)
        return cls(views=(view, second), size=size)

    @classmethod
    def npid(cls, size: int = 224) -> "ViewConfig":
        """NPID's single view (SPEC 2)."""
        view = View(jitter=(0.4, 0.4, 0.4, 0.4), jitter_probability=1.0, blur_probability=0.0)
        return cls(views=(view,), size=size)

    def view_parameters(self) -> np.ndarray:
        """(V, 15) float64: what `plan.plan_rows` needs of each view."""
        return np.array([view.parameters() for view in self.views], np.float64)

    def box_parameters(self) -> np.ndarray:
        """(6,) float64: size, min_overlap, box side low and high, max_negative_iou, max_mask_share."""
        return np.array(
            [
                self.size,
                self.min_overlap,
                *self.box_side,
                self.max_negative_iou,
                self.max_mask_share,
            ],
            np.float64,
        )

    @property
    def max_blur_sigma(self) -> float:
        """The widest blur that any view can have, pixels."""
        return max(view.blur_sigma[1] for view in self.views)

    @functools.cached_property
    def plan_dtype(self) -> np.dtype:
        """The named view of this configuration's plan row."""
        return plan_dtype(len(self.views), self.boxes)


@functools.cache
def plan_dtype(views: int, boxes: int) -> np.dtype:
    """One sample's plan: float32 throughout, so that `rows.view(dtype)[:, 0]` names the columns of
    a flat row.

    Per view: `crop` (y, x, height, width) in whole image pixels; `flip`, `jitter`, `gray`,
    `solarize` 0 or 1; `order`, the four operation numbers as they follow each other; `factors` of
    brightness, contrast, saturation (1 changes nothing) and hue (turns, 0 changes nothing), indexed
    by operation; `blur_sigma` in view pixels, 0 for none. `masked_box` (x1, y1, x2, y2) in
    query-view pixels; `key_boxes` likewise in key-view pixels, the positive first; both as the
    flipped views show them. `draws`: how many pairs of crops were drawn, 65 where 64 of them
    failed.
    """
    view = np.dtype(
        [
            ("crop", np.float32, (4,)),
            ("flip", np.float32),
            ("jitter", np.float32),
            ("order", np.float32, (4,)),
            ("factors", np.float32, (4,)),
            ("gray", np.float32),
            ("blur_sigma", np.float32),
            ("solarize", np.float32),
        ]
    )
    return np.dtype(
        [
            ("views", view, (views,)),
            ("masked_box", np.float32, (4,)),
            ("draws", np.float32),
            ("key_boxes", np.float32, (boxes, 4)),
        ]
    )


def plan_columns(dtype: np.dtype) -> int:
    """How many float32 a plan row of this dtype has."""
    return dtype.itemsize // 4

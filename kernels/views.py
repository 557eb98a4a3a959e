"""View settings (`View`, `ViewConfig`) and the array layouts derived from them.

`VIEW_PARAMETERS` and `BOX_PARAMETERS` lay out the settings for the plan kernel. `plan_dtype` lays
out a sample's plan row, of which `VIEW_ROW` is one view's part. Code addresses columns by
`column(dtype, field)`: a new augmentation adds a field to `View` and one to `VIEW_ROW`.
"""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .errors import InvalidInput
from .layout import Size, Statistics, ViewLayout

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
"""Codes of the four colour-jitter operations in a plan's `order`; indices into its `factors`."""
INTERPOLATIONS = BILINEAR, BICUBIC = "bilinear", "bicubic"
"""Filters of the resize, antialiased as in Pillow and torchvision; the plan holds their index."""
POSITIONS = RANDOM, CENTRE = "random", "centre"
"""Where a view of `short_side` lies in the resized image; the plan kernel reads the index."""
SOLARIZE_THRESHOLD = 128
"""Solarisation inverts levels from here up (BYOL; the default of torchvision and timm)."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of each channel, for levels scaled to 0..1 (torchvision; docs/method.md)."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviation of each channel, for levels scaled to 0..1 (torchvision; docs/method.md)."""
SIDES = (8, 1024)
"""Shortest and longest side of a view, pixels."""
LIGHTING_EIGENVALUES = (0.2175, 0.0188, 0.0045)
"""Standard deviations of ImageNet's RGB values, scaled to 0..1, along their principal components.

From fb.resnet.torch (datasets/imagenet.lua), which OpenSelfSup and most others copy."""
LIGHTING_EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)
"""The principal components, one a column; rows are red, green and blue. Same source."""


@dataclass(frozen=True, kw_only=True)
class View:
    """Augmentation settings of one view. The defaults are MoCo v2's "aug plus" (moco/main_moco.py;
    docs/method.md)."""

    area: tuple[float, float] = (0.2, 1.0)
    """Range of the crop's area as a fraction of the image's, drawn uniformly."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of the crop's aspect ratio, width over height, drawn log-uniformly."""
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    """Strengths of brightness, contrast and saturation (a factor in 1 ± strength, at least 0) and
    of hue (a shift in ± strength of a turn, at most 0.5)."""
    jitter_probability: float = 0.8
    """Probability of colour jitter."""
    gray_probability: float = 0.2
    """Probability of conversion to grayscale, after the jitter."""
    blur_probability: float = 0.5
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the Gaussian's standard deviation, pixels of the view."""
    solarize_probability: float = 0.0
    """Probability of solarisation, after the blur (BYOL)."""
    flip_probability: float = 0.5
    """Probability of a horizontal flip."""
    lighting: float = 0.0
    """Standard deviation of the three factors of AlexNet's PCA lighting: an RGB offset along the
    principal components of ImageNet's colours, added last, before normalisation."""
    interpolation: str = BILINEAR
    """Filter of the resize, one of `INTERPOLATIONS`."""
    short_side: int | None = None
    """Resize the image's short side to so many pixels, then crop the view; `area` and `ratio` are
    then unused. None for a random resized crop."""
    position: str = RANDOM
    """Position of that crop, one of `POSITIONS`; only with `short_side`."""
    size: int | Size | None = None
    """Side of the view, or its height and width, pixels from 8 to 1024; None for
    `ViewConfig.size`."""
    mean: Statistics = IMAGENET_MEAN
    """Subtracted from each channel of levels scaled to 0..1, where the dtype is normalised."""
    std: Statistics = IMAGENET_STD
    """What the difference is then divided by, for each channel."""

    def __post_init__(self) -> None:
        for name in ("jitter", "gray", "blur", "solarize", "flip"):
            value = getattr(self, f"{name}_probability")
            if not 0 <= value <= 1:
                raise InvalidInput(f"`View.{name}_probability` must be in [0, 1], got {value}.")
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise InvalidInput(f"`View.area` must satisfy 0 < low <= high <= 1, got {self.area}.")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise InvalidInput(f"`View.ratio` must satisfy 0 < low <= high, got {self.ratio}.")
        if min(self.jitter) < 0 or self.jitter[3] > 0.5:
            raise InvalidInput(
                "`View.jitter` must have strengths of at least 0 and a hue of at most 0.5, "
                f"got {self.jitter}."
            )
        if not 0 < self.blur_sigma[0] <= self.blur_sigma[1] <= 5:
            raise InvalidInput(
                "`View.blur_sigma` must satisfy 0 < low <= high <= 5 pixels, "
                f"got {self.blur_sigma}."
            )
        if self.lighting < 0:
            raise InvalidInput(f"`View.lighting` must be at least 0, got {self.lighting}.")
        if self.interpolation not in INTERPOLATIONS:
            raise InvalidInput(
                f"`View.interpolation` must be {' or '.join(INTERPOLATIONS)}, "
                f"got {self.interpolation!r}."
            )
        if self.size is not None:
            sides = self.size if isinstance(self.size, Sequence) else (self.size, self.size)
            whole = len(sides) == 2 and all(isinstance(side, int) for side in sides)
            if not whole or not SIDES[0] <= min(sides) <= max(sides) <= SIDES[1]:
                raise InvalidInput(
                    "`View.size` must be a side, or a height and a width, whole pixels in "
                    f"[{SIDES[0]}, {SIDES[1]}], got {self.size}."
                )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise InvalidInput(
                "`View.mean` and `View.std` must have three numbers, those of `std` positive, "
                f"got {self.mean} and {self.std}."
            )
        if self.position not in POSITIONS:
            raise InvalidInput(
                f"`View.position` must be {' or '.join(POSITIONS)}, got {self.position!r}."
            )
        if self.short_side is None and self.position != RANDOM:
            raise InvalidInput(
                f"`View.position` needs a `short_side`, got {self.position!r} without one: the "
                "place of a random resized crop is always random."
            )

    def height_and_width(self, default: int) -> Size:
        """The view's sides, pixels; `default` is `ViewConfig.size`."""
        if self.size is None:
            return default, default
        if isinstance(self.size, int):
            return self.size, self.size
        height, width = self.size
        return height, width

    def parameters(self, default: int) -> tuple[float | tuple[float, ...], ...]:
        """The fields as numbers, in their order: names as indices, no `short_side` as 0, `size` as
        height and width. `default`: `ViewConfig.size`."""
        codes: dict[str, float | tuple[float, ...]] = {
            "interpolation": INTERPOLATIONS.index(self.interpolation),
            "short_side": self.short_side or 0,
            "position": POSITIONS.index(self.position),
            "size": self.height_and_width(default),
        }
        names = [field.name for field in dataclasses.fields(self)]
        return tuple(codes.get(name, getattr(self, name)) for name in names)


VIEW_PARAMETERS = np.dtype(
    [
        (field.name, np.float64, np.shape(value))
        for field, value in zip(dataclasses.fields(View), View().parameters(SIDES[0]))
    ]
)
"""One view's settings as the plan kernel reads them: the fields of `View`, in their order."""

CROP_ONLY = View(
    jitter_probability=0.0, gray_probability=0.0, blur_probability=0.0, flip_probability=0.0
)
"""A crop and nothing else."""

BOX_PARAMETERS = np.dtype(
    [
        ("size", np.float64),
        ("min_overlap", np.float64),
        ("box_side", np.float64, (2,)),
        ("max_negative_iou", np.float64),
        ("max_mask_share", np.float64),
    ]
)
"""What the plan kernel reads of a `ViewConfig` besides its views: fields of that name."""

VIEW_ROW = np.dtype(
    [
        ("crop", np.float32, (4,)),
        ("window", np.float32, (4,)),
        ("bicubic", np.float32),
        ("flip", np.float32),
        ("jitter", np.float32),
        ("order", np.float32, (4,)),
        ("factors", np.float32, (4,)),
        ("gray", np.float32),
        ("blur_sigma", np.float32),
        ("solarize", np.float32),
        ("lighting", np.float32, (3,)),
    ]
)
"""One view's part of a plan row; `plan_dtype` describes the fields."""


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """The views of an image and their relations. View 0 is the query, view 1 the key."""

    views: tuple[View, ...] = (View(), View())
    """Settings of each view, at least one."""
    size: int = 224
    """Side of the views, pixels from 8 to 1024; a `View` may have a size of its own."""
    min_overlap: float = 0.0
    """Least side of the intersection of crops 0 and 1, on both axes, in pixels of the key view; 0
    draws the crops independently."""
    boxes: int = 0
    """Boxes in the key view, the positive first; 0 for none, 17 for MaskCo (docs/method.md)."""
    box_side: tuple[float, float] = (32.0, 128.0)
    """Range of a box's width and height, drawn independently, pixels."""
    max_negative_iou: float = 0.2
    """Upper bound (exclusive) on the IoU of a negative box with the positive."""
    max_mask_share: float = 0.5
    """Upper bound on the masked box's area as a fraction of the query view."""
    mask: bool = False
    """Zero the masked box in the query view, after normalisation."""
    patch_grid: int = 0
    """Patches on each axis of view 0, one at a random place in each cell of a grid; 0 for none, 3
    for relative location (docs/method.md)."""
    patch_size: int = 0
    """Side of a patch, pixels of the view."""

    def __post_init__(self) -> None:
        if not self.views:
            raise InvalidInput("`ViewConfig.views` must hold at least one `View`, got none.")
        if not SIDES[0] <= self.size <= SIDES[1]:
            raise InvalidInput(
                f"`ViewConfig.size` must be in [{SIDES[0]}, {SIDES[1]}] pixels, got {self.size}."
            )
        if (self.boxes or self.min_overlap) and len(self.views) < 2:
            raise InvalidInput(
                "`ViewConfig.boxes` and `ViewConfig.min_overlap` relate a query to a key and need "
                f"at least two views, got {len(self.views)}. Add a view, or set both to 0."
            )
        for view in self.views:
            longest = max(view.height_and_width(self.size))
            if view.short_side is not None and view.short_side < longest:
                raise InvalidInput(
                    f"`View.short_side` must be at least the view's longer side, {longest} pixels "
                    f"(`View.size`, else `ViewConfig.size`), got {view.short_side}."
                )
        related = 2 if self.boxes or self.min_overlap else 1 if self.patch_grid else 0
        for v, view in enumerate(self.views[:related]):
            if view.height_and_width(self.size) != (self.size, self.size):
                raise InvalidInput(
                    f"`View.size` of view {v} must be `ViewConfig.size` = {self.size}, in which "
                    f"boxes, overlap and patches are measured, got {view.size}."
                )
        if self.patch_grid < 0 or (self.patch_grid == 0) != (self.patch_size == 0):
            raise InvalidInput(
                "`ViewConfig.patch_grid` and `ViewConfig.patch_size` must both be at least 1, or "
                f"both 0, got {self.patch_grid} and {self.patch_size}."
            )
        if self.patch_grid and not 1 <= self.patch_size <= self.size // self.patch_grid:
            raise InvalidInput(
                "`ViewConfig.patch_size` must be in [1, size // patch_grid = "
                f"{self.size // self.patch_grid}] pixels, got {self.patch_size}."
            )
        if self.mask and not self.boxes:
            raise InvalidInput(
                "`ViewConfig.mask` masks the positive box and needs `boxes` >= 1, "
                f"got boxes={self.boxes}."
            )
        if self.boxes and not 0 < self.box_side[0] <= self.box_side[1] <= self.size:
            raise InvalidInput(
                f"`ViewConfig.box_side` must satisfy 0 < low <= high <= size = {self.size}, "
                f"got {self.box_side}."
            )
        if not 0 <= self.min_overlap <= self.size:
            raise InvalidInput(
                f"`ViewConfig.min_overlap` must be in [0, size = {self.size}] pixels, "
                f"got {self.min_overlap}."
            )
        if self.boxes and self.min_overlap < self.box_side[1]:
            raise InvalidInput(
                "`ViewConfig.min_overlap` must be at least the longest box side, "
                f"{self.box_side[1]}, because the positive box lies inside the overlap; "
                f"got {self.min_overlap}."
            )
        if self.boxes and 2 * self.box_side[0] + self.box_side[1] > self.size:
            raise InvalidInput(
                f"`ViewConfig.box_side` must satisfy 2 * low + high <= size = {self.size}, so that "
                f"a smallest box always fits beside a largest one; got {self.box_side}."
            )

    @classmethod
    def maskco(cls, size: int = 224, *, mask: bool = True) -> "ViewConfig":
        """MaskCo: query, key and 17 boxes (docs/method.md). Pixel lengths scale with `size`/224."""
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
        """MoCo v2: independent views with its "aug plus" augmentation."""
        return cls(views=(View(),) * views, size=size)

    @classmethod
    def simclr(cls, size: int = 224, views: int = 2) -> "ViewConfig":
        """SimCLR: independent views with its augmentation (docs/method.md)."""
        return cls(views=(View(area=(0.08, 1.0), jitter=(0.8, 0.8, 0.8, 0.2)),) * views, size=size)

    @classmethod
    def byol(cls, size: int = 224) -> "ViewConfig":
        """BYOL: bicubic crops; view 0 is always blurred; view 1 is blurred with 0.1 and solarised
        with 0.2."""
        view = View(
            area=(0.08, 1.0),
            jitter=(0.4, 0.4, 0.2, 0.1),
            blur_probability=1.0,
            interpolation=BICUBIC,
        )
        second = dataclasses.replace(view, blur_probability=0.1, solarize_probability=0.2)
        return cls(views=(view, second), size=size)

    @classmethod
    def dino(
        cls, size: int = 224, local_size: int = 96, local_views: int = 8, *, split: float = 0.4
    ) -> "ViewConfig":
        """DINO: two global views, then local ones, all bicubic (facebookresearch/dino,
        main_dino.py: `DataAugmentationDINO` and its options' defaults).

        `split`: area that separates global crops, up to 1, from local ones, from 0.05 on; 0.14 for
        its ResNet-50. iBOT's views are the same, ten local ones split at 0.25 (bytedance/ibot,
        README).
        """
        first, second = cls.byol(size).views
        wide = dataclasses.replace(first, area=(split, 1.0))
        local = dataclasses.replace(
            first, area=(0.05, split), blur_probability=0.5, size=local_size
        )
        other = dataclasses.replace(second, area=(split, 1.0))
        return cls(views=(wide, other, *(local,) * local_views), size=size)

    @classmethod
    def dinov2(cls, size: int = 224, local_size: int = 98, local_views: int = 8) -> "ViewConfig":
        """DINOv2: DINO's views with areas split at 0.32 (facebookresearch/dinov2,
        data/augmentations.py and configs/ssl_default_config.yaml; local side 98 for patches of 14,
        configs/train/vitg14.yaml).

        The blur has the probabilities with which the released weights were trained: 0 and 0.9 for
        the global views, where the code reads 1 and 0.1 (data/transforms.py passes 1 - p to
        RandomApply; pull request 411).
        """
        wide, other, *local = cls.dino(size, local_size, local_views, split=0.32).views
        wide = dataclasses.replace(wide, blur_probability=0.0)
        other = dataclasses.replace(other, blur_probability=0.9)
        return cls(views=(wide, other, *local), size=size)

    @classmethod
    def swav(cls, size: int = 224, local_size: int = 96, local_views: int = 6) -> "ViewConfig":
        """SwAV: two global views, then local ones, all bilinear (facebookresearch/swav,
        src/multicropdataset.py and scripts/swav_800ep_pretrain.sh, with its deviation of 0.228 for
        red)."""
        wide = View(area=(0.14, 1.0), jitter=(0.8, 0.8, 0.8, 0.2), std=(0.228, 0.224, 0.225))
        local = dataclasses.replace(wide, area=(0.05, 0.14), size=local_size)
        return cls(views=(wide, wide, *(local,) * local_views), size=size)

    @classmethod
    def npid(cls, size: int = 224) -> "ViewConfig":
        """NPID: a single view (docs/method.md)."""
        view = View(jitter=(0.4, 0.4, 0.4, 0.4), jitter_probability=1.0, blur_probability=0.0)
        return cls(views=(view,), size=size)

    @classmethod
    def rotation(cls, size: int = 224) -> "ViewConfig":
        """Rotation: a random resized crop and a flip; the method turns it on the device."""
        return cls(
            views=(dataclasses.replace(CROP_ONLY, area=(0.08, 1.0), flip_probability=0.5),),
            size=size,
        )

    @classmethod
    def relative_loc(cls, size: int = 255) -> "ViewConfig":
        """Relative location: a random crop of the image at short side 292, often gray, and nine
        patches of it. Pixel lengths scale with `size`/255. No flip, which would swap the labels of
        left and right."""
        view = dataclasses.replace(
            CROP_ONLY, short_side=round(size * 292 / 255), gray_probability=0.66
        )
        return cls(views=(view,), size=size, patch_grid=3, patch_size=round(size * 64 / 255))

    @classmethod
    def supervised(cls, size: int = 224) -> "ViewConfig":
        """Training of classifiers and linear probes: crop, flip, jitter and PCA lighting."""
        view = View(
            area=(0.08, 1.0),
            jitter=(0.4, 0.4, 0.4, 0.0),
            jitter_probability=1.0,
            gray_probability=0.0,
            blur_probability=0.0,
            lighting=0.1,
        )
        return cls(views=(view,), size=size)

    @classmethod
    def evaluation(cls, size: int = 224, short_side: int | None = None) -> "ViewConfig":
        """Testing: the centre of the image at `short_side`, by default 256 · `size`/224 pixels."""
        side = round(size * 256 / 224) if short_side is None else short_side
        return cls(
            views=(dataclasses.replace(CROP_ONLY, short_side=side, position=CENTRE),), size=size
        )

    def view_parameters(self) -> np.ndarray:
        """(V, columns) float64: each view's settings, laid out as `VIEW_PARAMETERS`."""
        views = [view.parameters(self.size) for view in self.views]
        return np.array(views, VIEW_PARAMETERS).view(np.float64).reshape(len(views), -1)

    def box_parameters(self) -> np.ndarray:
        """(columns,) float64: the overlap and box settings, laid out as `BOX_PARAMETERS`."""
        settings = tuple(getattr(self, name) for name in BOX_PARAMETERS.names or ())
        return np.array([settings], BOX_PARAMETERS).view(np.float64)

    @property
    def max_blur_sigma(self) -> float:
        """The largest blur that any view can draw, as a standard deviation in pixels."""
        return max(view.blur_sigma[1] for view in self.views)

    @property
    def bicubic(self) -> bool:
        """Whether any view is resized bicubically."""
        return any(view.interpolation == BICUBIC for view in self.views)

    @functools.cached_property
    def layout(self) -> ViewLayout:
        """Sizes of the views, and where they lie in a batch's memory."""
        return ViewLayout(
            [
                (view.height_and_width(self.size), _triple(view.mean), _triple(view.std))
                for view in self.views
            ]
        )

    @functools.cached_property
    def plan_dtype(self) -> np.dtype:
        """The structured dtype of this configuration's plan rows; see `plan_dtype`."""
        return plan_dtype(len(self.views), self.boxes, self.patch_grid**2)


def _triple(values: Sequence[float]) -> Statistics:
    """Three numbers as a tuple, which a list of them is not."""
    red, green, blue = values
    return red, green, blue


@functools.cache
def plan_dtype(views: int, boxes: int, patches: int = 0) -> np.dtype:
    """The structured dtype of a plan row: `rows.view(dtype)[:, 0]` names the columns of flat rows.

    Every field is float32. Each of `views` has:
      `crop`: (y, x, height, width), whole pixels of the image: all that the resize reads.
      `window`: (y, x, height, width), pixels of the image: what the view shows, not always whole.
        Equal to `crop`, except with `short_side`, where the filter also reads around the window.
      `bicubic`: 0 or 1, the resize's filter.
      `flip`, `jitter`, `gray`, `solarize`: 0 or 1.
      `order`: the four jitter operations' codes, in the order of application.
      `factors`: by code; brightness, contrast and saturation as factors (1 is the identity), hue
        in turns (0 is the identity).
      `blur_sigma`: standard deviation in pixels of the view; 0 for no blur.
      `lighting`: what is added to red, green and blue, of levels scaled to 0..1.
    The sample has:
      `masked_box`: (x1, y1, x2, y2) in pixels of the query view, after its flip.
      `draws`: pairs of crops drawn; 65 where all 64 failed and the key took the query's crop.
      `key_boxes`: (boxes, 4), likewise in pixels of the key view, the positive first.
      `patch_corners`: (patches, 2): y, x of each patch, whole pixels of view 0, row by row.
    The last two come last, since their numbers vary.
    """
    return np.dtype(
        [
            ("views", VIEW_ROW, (views,)),
            ("masked_box", np.float32, (4,)),
            ("draws", np.float32),
            ("key_boxes", np.float32, (boxes, 4)),
            ("patch_corners", np.float32, (patches, 2)),
        ]
    )


def column(dtype: np.dtype, field: str) -> int:
    """The first column of `field` in a flat row of `dtype`, whose numbers are all of one width."""
    assert dtype.fields is not None
    kind, offset = dtype.fields[field][:2]
    return offset // kind.base.itemsize


def plan_columns(dtype: np.dtype) -> int:
    """The number of float32 columns in a plan row of `dtype`."""
    return dtype.itemsize // np.dtype(np.float32).itemsize

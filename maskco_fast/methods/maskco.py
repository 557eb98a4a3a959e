"""MaskCo: contrastive mask prediction (paper, Algorithm 1)."""

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import Batch, ViewConfig
from maskco_fast.methods.base import Method, RecipeValues
from maskco_fast.methods.region_contrast import region_info_nce
from maskco_fast.networks.config import ModelConfig, group_length
from maskco_fast.networks.encoders import RegionEncoder, initialise, momentum_copy


@dataclass(frozen=True, kw_only=True)
class MaskCoConfig:
    """MaskCo (docs/method.md); every row of the paper's Tables 4-6 is one of these."""

    mask: bool = True
    """Zero the positive box in the query view (paper, Table 5)."""
    mph_blocks: int = 3
    """Bottleneck blocks of the mask prediction head (paper, Table 4: 0-4)."""
    mph_zero_init: bool = False
    """Begin each of these blocks as the identity: the scale of its last BatchNorm is 0 at first."""
    negatives: Literal["inter", "intra", "both"] = "inter"
    """Source of the negative boxes: the group's other images, the image itself, or both (the
    paper's `+in`; Table 6)."""
    temperature: float = 0.2
    """Divides the cosine similarities (paper, eq. 1)."""
    momentum: float = 0.999
    """Weight of the key network's own parameters in each moving-average step (paper, Alg. 1)."""
    roi_sampling_ratio: int = -1
    """RoIAlign's samples per side of a box; -1 takes one per map cell that the box spans, rounded
    up."""
    roi_aligned: bool = True
    """RoIAlign's half-cell shift, as in torchvision."""
    boxes: int | None = None
    """Boxes in the key view, the positive first. None, here and below, keeps the value of
    `ViewConfig.maskco`."""
    box_side: tuple[float, float] | None = None
    """Range of a box's width and height, in pixels."""
    min_overlap: float | None = None
    """Minimum span of the crops' intersection on both axes of the key view, in pixels."""
    max_negative_iou: float | None = None
    """Upper bound (exclusive) of a negative box's IoU with the positive."""
    max_mask_share: float | None = None
    """Maximum share of the query view that the masked box covers."""

    def __post_init__(self) -> None:
        if not 0 <= self.mph_blocks <= 16:
            raise InvalidInput(f"`mph_blocks` must be in [0, 16], got {self.mph_blocks}.")
        if not self.temperature > 0:
            raise InvalidInput(f"`temperature` must be greater than 0, got {self.temperature}.")
        if not 0 <= self.momentum <= 1:
            raise InvalidInput(f"`momentum` must be in [0, 1], got {self.momentum}.")
        if self.boxes is not None and self.boxes < 2:
            raise InvalidInput(
                f"`boxes` must be at least 2 (a positive and a negative), got {self.boxes}."
            )
        if self.roi_sampling_ratio == 0 or self.roi_sampling_ratio < -1:
            raise InvalidInput(
                f"`roi_sampling_ratio` must be -1 or at least 1, got {self.roi_sampling_ratio}."
            )

    def views(self, size: int) -> ViewConfig:
        """Return the view settings of this configuration, for views of side `size` pixels."""
        names = ("boxes", "box_side", "min_overlap", "max_negative_iou", "max_mask_share")
        chosen = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return dataclasses.replace(ViewConfig.maskco(size, mask=self.mask), **chosen)


class MaskCo(Method):
    """Predict a masked region of the query view, and find it among key regions of the group."""

    recipe_values: ClassVar = {
        # The paper prints a weight decay of 1e-3; its codebase, like MoCo v2, has 1e-4.
        "paper": RecipeValues(config=MaskCoConfig(), optimizer={"weight_decay": 1e-3}),
        # A rate of 0.24 per 256 images is 0.03 for a batch of 32, where scaling from 0.03 leaves
        # 0.00375. A momentum of 0.999 averages over a thousand steps, more than a short run has.
        "short": RecipeValues(
            config=MaskCoConfig(momentum=0.95, mph_blocks=1), optimizer={"learning_rate": 0.24}
        ),
    }

    def __init__(self, config: MaskCoConfig, model: ModelConfig, *, seed: int) -> None:
        super().__init__()
        self.config = config
        self.group_size = model.group_size
        self.views = config.views(model.view_size)
        self.query: nn.Module = RegionEncoder(
            model,
            mph_blocks=config.mph_blocks,
            roi_sampling_ratio=config.roi_sampling_ratio,
            roi_aligned=config.roi_aligned,
        )
        initialise(self.query, torch.Generator().manual_seed(seed))
        if config.mph_zero_init:
            for block in self.query.get_submodule("mph").children():
                nn.init.zeros_(block.get_submodule("bn3").get_parameter("weight"))
        self.key: nn.Module = momentum_copy(self.query)

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return `loss` and `accuracy`: the share of images whose positive beats all negatives."""
        if batch.masked_box is None or batch.key_boxes is None:
            raise InvalidInput(
                "MaskCo needs batches with boxes, got none: "
                "make the loader with views=method.views."
            )
        query_features = self.query(batch.query, batch.masked_box.unsqueeze(1)).squeeze(1)
        with torch.no_grad():
            key_features = self.key(batch.key, batch.key_boxes)
        loss, accuracy = region_info_nce(
            query_features,
            key_features,
            group_size=self.group_size,
            temperature=self.config.temperature,
            negatives=self.config.negatives,
        )
        return {"loss": loss, "accuracy": accuracy}

    def chance_loss(self, batch_size: int) -> float:
        """Return ln(1 + negatives): ln 497 = 6.21 with 16 negative boxes and groups of 32."""
        own = self.views.boxes - 1
        others = own * (group_length(batch_size, self.group_size) - 1)
        return math.log(
            1 + {"inter": others, "intra": own, "both": others + own}[self.config.negatives]
        )

    def after_step(self, progress: float) -> None:
        """Move the key network. MoCo does so before the next forward pass, which is the same."""
        self.average.update(self.config.momentum)

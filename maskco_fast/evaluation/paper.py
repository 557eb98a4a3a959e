"""The paper's numbers, which the tables of `linear`, `detect`, `distance` and `report` show.

All are copied from "Self-Supervised Visual Representations Learning by Contrastive Mask Prediction"
(ICCV 2021); docs/method.md has the same table. None was reproduced here.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """One method after one pre-training; None where the paper gives no number."""

    pretraining: str
    """The data set and the length, or the setting that an ablation changes."""
    method: str
    AP: float | None = None
    """VOC07+12 detection: average precision over IoU .5:.95, per cent."""
    AP50: float | None = None
    AP75: float | None = None
    conv4: float | None = None
    """Top-1 of a linear probe on ImageNet at this layer, per cent."""
    conv5: float | None = None


PAPER_ROWS: tuple[PaperRow, ...] = (
    PaperRow(
        pretraining="ImageNet, 100 epochs",
        method="moco_v2",
        AP=56.4,
        AP50=82.0,
        AP75=62.8,
        conv4=60.0,
        conv5=64.4,
    ),
    PaperRow(
        pretraining="ImageNet, 100 epochs",
        method="maskco",
        AP=56.0,
        AP50=81.3,
        AP75=63.1,
        conv4=57.6,
        conv5=63.1,
    ),
    PaperRow(
        pretraining="COCO, 500k iterations",
        method="moco_v2",
        AP=55.0,
        AP50=80.7,
        AP75=60.9,
        conv4=55.7,
        conv5=51.4,
    ),
    PaperRow(
        pretraining="COCO, 500k iterations",
        method="maskco",
        AP=55.6,
        AP50=81.0,
        AP75=61.5,
        conv4=55.6,
        conv5=56.7,
    ),
    PaperRow(
        pretraining="Conceptual Captions, 500k iterations",
        method="moco_v2",
        AP=55.1,
        AP50=80.8,
        AP75=60.6,
        conv4=56.0,
        conv5=56.5,
    ),
    PaperRow(
        pretraining="Conceptual Captions, 500k iterations",
        method="maskco",
        AP=55.7,
        AP50=81.0,
        AP75=61.5,
        conv4=55.4,
        conv5=57.1,
    ),
)
"""The comparison of pre-trainings, ResNet-50 at 224 pixels."""

PAPER_ABLATIONS: tuple[PaperRow, ...] = (
    PaperRow(pretraining="0 MPH blocks", method="maskco", conv5=41.9),
    PaperRow(pretraining="1 MPH block", method="maskco", conv5=59.0),
    PaperRow(pretraining="2 MPH blocks", method="maskco", conv5=62.1),
    PaperRow(pretraining="3 MPH blocks", method="maskco", conv5=63.1),
    PaperRow(pretraining="4 MPH blocks", method="maskco", conv5=63.0),
    PaperRow(
        pretraining="0 MPH blocks, with the mask", method="maskco", AP=56.1, conv4=57.2, conv5=41.9
    ),
    PaperRow(
        pretraining="0 MPH blocks, without the mask",
        method="maskco",
        AP=53.6,
        conv4=51.9,
        conv5=52.3,
    ),
    PaperRow(
        pretraining="negatives of other images", method="maskco", AP=56.0, conv4=57.6, conv5=63.1
    ),
    PaperRow(
        pretraining="negatives of the same image", method="maskco", AP=55.6, conv4=50.8, conv5=48.6
    ),
    PaperRow(
        pretraining="negatives of both kinds", method="maskco", AP=56.4, conv4=57.5, conv5=61.3
    ),
)
"""The ablations, pre-trained on ImageNet for 100 epochs."""

PAPER_DISTANCES: Mapping[str, float] = {
    "ImageNet": 0.1546,
    "ImageNet, 10 %": 0.1547,
    "COCO": 0.1814,
    "Conceptual Captions": 0.1782,
}
"""ResNet distance (Table 1) by data set. The paper leaves its formula open."""

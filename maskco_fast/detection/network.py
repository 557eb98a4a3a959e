"""The detector: Faster R-CNN or Mask R-CNN on a ResNet's res4 map ("C4"), with Detectron2's losses.

Built from torchvision's detection parts. They differ from Detectron2's C4 in a few places, which
the classes here change: RoIAlign is aligned, anchors are not rounded, the box losses are L1, boxes
and masks share res5's output, and images arrive resized. docs/evaluation.md lists them.

Shapes: N images, R regions, C channels of res5.
"""

import sys
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_inference, maskrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import roi_align

from maskco_fast.detection.batches import DetectionBatch
from maskco_fast.detection.config import DetectorConfig
from maskco_fast.kernels.views import IMAGENET_MEAN, IMAGENET_STD
from maskco_fast.methods.base import Method
from maskco_fast.networks.batch_norm import GroupBatchNorm2d, SynchronizedBatchNorm
from maskco_fast.networks.resnet import Trunk

STRIDE = 16
"""Image pixels per cell of the res4 map."""


def make_detector(
    config: DetectorConfig,
    trunk_state: Mapping[str, torch.Tensor],
    *,
    classes: int,
    processes: int = 1,
    seed: int = 0,
) -> GeneralizedRCNN:
    """Return the detector in train mode, nothing frozen, channels-last.

    `trunk_state`: torchvision's names without `fc`. `classes`: number of classes without the
    background. With several `processes` BatchNorm's statistics are those of all. The new layers
    are drawn from `seed`. It takes a list of images (3, h, w) float32 in 0..1 and returns a dict
    of losses in training, a list of dicts with boxes, labels and scores (and masks of the boxes,
    (m, 1, s, s) in 0..1) in testing.
    """
    norm = (
        partial(GroupBatchNorm2d, group_size=sys.maxsize)
        if processes == 1
        else SynchronizedBatchNorm
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trunk = Trunk(config.trunk, norm)
        trunk.load_state_dict(dict(trunk_state))
        backbone = Backbone(trunk)
        detector = GeneralizedRCNN(
            backbone,
            _rpn(config, backbone.out_channels),
            _heads(config, trunk, norm, classes),
            _Pad(),
        )
    return detector.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]


class DetectionMethod(Method):
    """The detector in training, for the training loop of pre-training."""

    recipe_values: ClassVar = {}
    spans_whole_batch: ClassVar[bool] = True

    def __init__(self, detector: GeneralizedRCNN, *, seed: int, rank: int = 0) -> None:
        super().__init__()
        self.query = detector
        self._seed = (seed, rank)

    def forward(self, batch: DetectionBatch) -> dict[str, torch.Tensor]:  # type: ignore[override]
        """Return `loss`, the sum of the detector's losses, and each of them."""
        images = [image.float().div_(255) for image in batch.images]
        device = images[0].device
        # torchvision samples anchors and regions with torch's global generators. With a seed for
        # each batch, a resumed run repeats the uninterrupted one.
        state = np.random.SeedSequence((*self._seed, batch.number)).generate_state(1, np.uint64)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(int(state[0]))
            losses = self.query(images, batch.targets)
        total = torch.stack(list(losses.values())).sum()
        return {"loss": total, **{name: loss.detach() for name, loss in losses.items()}}

    def chance_loss(self, batch_size: int) -> None:
        """Return None: the sum of five losses has no such value."""

    def after_step(self, progress: float) -> None:
        """Do nothing: there is no state besides the weights."""


class Backbone(nn.Module):
    """The trunk up to res4: images (N, 3, h, w) to maps (N, C/2, h/16, w/16)."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.conv1 = trunk.conv1
        self.bn1 = trunk.bn1
        self.maxpool = trunk.maxpool
        self.layer1 = trunk.layer1
        self.layer2 = trunk.layer2
        self.layer3 = trunk.layer3
        self.out_channels = trunk.channels // 2

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the res4 map, float32: anchors take their dtype from it."""
        images = images.contiguous(memory_format=torch.channels_last)
        x = self.maxpool(self.bn1(self.conv1(images), relu=True))
        return self.layer3(self.layer2(self.layer1(x))).float()


class _Pad(GeneralizedRCNNTransform):
    """Normalises and pads images that were resized before; leaves detections as they are."""

    def __init__(self) -> None:
        # Times 255 these are Detectron2's [123.675, …] and [58.395, …].
        super().__init__(0, 0, list(IMAGENET_MEAN), list(IMAGENET_STD), size_divisible=STRIDE)

    def resize(self, image: torch.Tensor, target: Any = None) -> tuple[torch.Tensor, Any]:
        """Return both unchanged."""
        return image, target

    def postprocess(self, result: Any, *_: Any) -> Any:
        """Return the detections unchanged: boxes in pixels of the resized images."""
        return result


class _Anchors(AnchorGenerator):
    """Anchors with exact sides; torchvision rounds them to whole pixels."""

    def generate_anchors(
        self,
        scales: Any,
        aspect_ratios: Any,
        dtype: torch.dtype = torch.float32,
        device: torch.device = torch.device("cpu"),  # noqa: B008 torchvision's signature
    ) -> torch.Tensor:
        """Return the anchors (A, 4) around the origin."""
        sides = torch.as_tensor(scales, dtype=dtype, device=device)
        roots = torch.as_tensor(aspect_ratios, dtype=dtype, device=device).sqrt()
        widths = (sides[None] / roots[:, None]).flatten() / 2
        heights = (sides[None] * roots[:, None]).flatten() / 2
        return torch.stack([-widths, -heights, widths, heights], 1)


class _RPNHead(RPNHead):
    """torchvision's head with float32 outputs: bfloat16 has 8 bits, too few for a position."""

    def forward(self, x: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return objectness and box changes of every map, float32."""
        objectness, changes = super().forward(x)
        return [one.float() for one in objectness], [one.float() for one in changes]


class _RPN(RegionProposalNetwork):
    """torchvision's RPN with Detectron2's L1 loss."""

    def compute_loss(
        self,
        objectness: torch.Tensor,
        pred_bbox_deltas: torch.Tensor,
        labels: list[torch.Tensor],
        regression_targets: list[torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the objectness and the box loss, means over the sampled anchors."""
        positive, negative = (torch.cat(one).bool() for one in self.fg_bg_sampler(labels))
        sampled = positive | negative
        count = sampled.sum()
        label = torch.cat(labels)
        target = torch.cat(regression_targets)
        box_loss = functional.l1_loss(pred_bbox_deltas[positive], target[positive], reduction="sum")
        objectness_loss = functional.binary_cross_entropy_with_logits(
            objectness.flatten()[sampled], label[sampled], reduction="sum"
        )
        return objectness_loss / count, box_loss / count


def _rpn(config: DetectorConfig, channels: int) -> _RPN:
    anchors = _Anchors((config.anchor_sizes,), ((0.5, 1.0, 2.0),))
    before, after = zip(config.proposals_train, config.proposals_test)
    return _RPN(
        anchors,
        _RPNHead(channels, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=config.anchors_per_image,
        positive_fraction=0.5,
        pre_nms_top_n={"training": before[0], "testing": before[1]},
        post_nms_top_n={"training": after[0], "testing": after[1]},
        nms_thresh=0.7,
    )


class RegionPool(nn.Module):
    """RoIAlign on the res4 map, with half a pixel's shift ("aligned", Detectron2's ROIAlignV2)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(
        self, features: Mapping[str, torch.Tensor], boxes: list[torch.Tensor]
    ) -> torch.Tensor:
        """Return (R, C/2, size, size); `boxes`: one (n, 4) tensor an image, in its pixels."""
        (feature_map,) = features.values()
        regions = roi_align(feature_map, boxes, self.size, 1 / STRIDE, aligned=True)
        return regions.contiguous(memory_format=torch.channels_last)


class _Predictor(nn.Module):
    """Class scores and box changes of regions, from res5's mean."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(channels, classes + 1)
        self.bbox_pred = nn.Linear(channels, 4 * (classes + 1))
        for layer, deviation in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)

    def forward(self, regions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map (R, C, s, s) to (R, classes + 1) and (R, 4·(classes + 1)), float32."""
        pooled = regions.mean((2, 3))
        return self.cls_score(pooled).float(), self.bbox_pred(pooled).float()


class _Res5Heads(RoIHeads):
    """torchvision's heads on res5, whose output boxes and masks share; L1 box loss."""

    def has_mask(self) -> bool:
        """Whether the detector predicts masks."""
        return self.mask_predictor is not None

    def forward(
        self,
        features: dict[str, torch.Tensor],
        proposals: list[torch.Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, torch.Tensor]] | None = None,
    ) -> tuple[list[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
        """Return ([], losses) in training and (detections, {}) in testing."""
        if self.training:
            assert targets is not None
            return [], self._losses(features, proposals, targets)
        return self._detect(features, proposals, image_shapes), {}

    def _losses(
        self,
        features: dict[str, torch.Tensor],
        proposals: list[torch.Tensor],
        targets: list[dict[str, torch.Tensor]],
    ) -> dict[str, torch.Tensor]:
        proposals, matches, labels_by_image, changes = self.select_training_samples(
            proposals, targets
        )
        regions = self.box_head(self.box_roi_pool(features, proposals))
        scores, predicted = self.box_predictor(regions)
        labels = torch.cat(labels_by_image)
        positive = torch.where(labels > 0)[0]
        predicted = predicted.unflatten(1, (-1, 4))[positive, labels[positive]]
        box_loss = functional.l1_loss(predicted, torch.cat(changes)[positive], reduction="sum")
        losses = {
            "loss_classifier": functional.cross_entropy(scores, labels),
            "loss_box_reg": box_loss / len(labels),
        }
        if self.has_mask():
            kept = [label > 0 for label in labels_by_image]
            losses["loss_mask"] = maskrcnn_loss(
                self.mask_predictor(regions[positive]).float(),
                [boxes[keep] for boxes, keep in zip(proposals, kept)],
                [target["masks"] for target in targets],
                [target["labels"] for target in targets],
                [match[keep] for match, keep in zip(matches, kept)],
            )
        return losses

    def _detect(
        self,
        features: dict[str, torch.Tensor],
        proposals: list[torch.Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> list[dict[str, torch.Tensor]]:
        regions = self.box_head(self.box_roi_pool(features, proposals))
        boxes, scores, labels = self.postprocess_detections(
            *self.box_predictor(regions), proposals, image_shapes
        )
        found = [
            {"boxes": b, "scores": s, "labels": label} for b, s, label in zip(boxes, scores, labels)
        ]
        if self.has_mask() and any(len(one) for one in boxes):
            regions = self.box_head(self.box_roi_pool(features, boxes))
            masks = maskrcnn_inference(self.mask_predictor(regions).float(), labels)
            for one, mask in zip(found, masks):
                one["masks"] = mask
        return found


def _heads(config: DetectorConfig, trunk: Trunk, norm: Any, classes: int) -> _Res5Heads:
    # The norm after res5 is MoCo's, as in the papers that compare on VOC with R50-C4.
    res5 = nn.Sequential(trunk.layer4, norm(trunk.channels))
    mask_predictor = None
    if config.masks:
        mask_predictor = MaskRCNNPredictor(trunk.channels, 256, classes + 1)
        nn.init.normal_(mask_predictor.mask_fcn_logits.weight, std=0.001)
    return _Res5Heads(
        RegionPool(config.roi_size),
        res5,
        _Predictor(trunk.channels, classes),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=config.rois_per_image,
        positive_fraction=0.25,
        bbox_reg_weights=(10.0, 10.0, 5.0, 5.0),
        score_thresh=config.score_threshold,
        nms_thresh=0.5,
        detections_per_img=config.detections,
        mask_predictor=mask_predictor,
    )

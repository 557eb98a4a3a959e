"""Average precision of boxes and masks, by VOC07's 11 points and by COCO's rule."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from maskco_fast.detection.annotations import AnnotatedImage
from maskco_fast.detection.masks import mask_tools, run_lengths

THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""IoU .5, .55, … .95, over which AP is averaged."""
RECALLS = np.arange(0.0, 1.1, 0.1)
"""The 11 points of recall; the sums of the devkit's loop, which differ from n/10 in a last bit."""


@dataclass(frozen=True, kw_only=True)
class Detections:
    """What a network finds in one image, m boxes, in pixels of the original image."""

    boxes: np.ndarray
    """(m, 4) float32 x1, y1, x2, y2."""
    scores: np.ndarray
    """(m,) float32."""
    labels: np.ndarray
    """(m,) int64: indices into the classes."""
    masks: tuple[dict, ...] = ()
    """Run lengths as pycocotools encodes them; empty for a network without masks."""


@dataclass(frozen=True, kw_only=True)
class Precision:
    """AP in per cent."""

    ap: float
    """Mean over IoU .5:.95 and over the classes that have objects."""
    ap50: float
    ap75: float
    by_class: dict[str, float] = field(default_factory=dict)
    """AP of every class that has objects."""


def box_iou(boxes_A: np.ndarray, boxes_B: np.ndarray) -> np.ndarray:
    """Intersection over union (A, B) of boxes (A, 4) and (B, 4), float64."""
    a = boxes_A.astype(np.float64)[:, None]
    b = boxes_B.astype(np.float64)[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = sides.clip(0).prod(-1)
    total = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - shared
    return shared / np.maximum(total, np.finfo(np.float64).tiny)


def voc_precision(
    images: Sequence[AnnotatedImage], found: Sequence[Detections], classes: Sequence[str]
) -> Precision:
    """AP by VOC2007's rule, precision at 11 recalls, at ten thresholds; the devkit has one of them.

    As in the devkit, a detection belongs to the object of its class that it overlaps most. It is
    right if that overlap exceeds the threshold and no detection with a higher score took the
    object. Detections of difficult objects count neither way. `found`: one for each image.
    """
    values = {}
    for number, name in enumerate(classes):
        value = _voc_class(images, found, number)
        if value is not None:
            values[name] = value
    if not values:
        return Precision(ap=0.0, ap50=0.0, ap75=0.0)
    mean_T = np.mean(list(values.values()), 0)
    return Precision(
        ap=float(mean_T.mean()),
        ap50=float(mean_T[THRESHOLDS.index(0.5)]),
        ap75=float(mean_T[THRESHOLDS.index(0.75)]),
        by_class={name: float(value.mean()) for name, value in values.items()},
    )


def _voc_class(
    images: Sequence[AnnotatedImage], found: Sequence[Detections], label: int
) -> np.ndarray | None:
    """One class's AP (T,) at every threshold, per cent; None without an object that counts."""
    scores, overlaps, owners, difficult = [], [], [], []
    objects = 0
    first = 0  # number of the image's first object of this class
    for image, one in zip(images, found):
        is_object = image.labels == label
        ignored = image.ignored[is_object]
        is_found = one.labels == label
        count = int(is_found.sum())
        objects += int((~ignored).sum())
        if count:
            if len(ignored):
                iou = box_iou(one.boxes[is_found], image.boxes[is_object])
                best = iou.argmax(1)
                overlaps.append(iou.max(1))
                owners.append(first + best)
                difficult.append(ignored[best])
            else:
                overlaps.append(np.zeros(count))
                owners.append(np.full(count, -1))
                difficult.append(np.zeros(count, bool))
            scores.append(one.scores[is_found])
        first += len(ignored)
    if not objects:
        return None
    if not scores:
        return np.zeros(len(THRESHOLDS))
    order = np.argsort(-np.concatenate(scores), kind="stable")
    overlap = np.concatenate(overlaps)[order]
    owner = np.concatenate(owners)[order]
    skipped = np.concatenate(difficult)[order]
    return np.array(
        [100 * _eleven_points(overlap > t, owner, skipped, objects) for t in THRESHOLDS]
    )


def _eleven_points(
    hit: np.ndarray, owner: np.ndarray, difficult: np.ndarray, objects: int
) -> float:
    """AP in 0..1 of detections in the order of their scores.

    `hit`: whether the overlap exceeds the threshold; `owner`: the object overlapped most.
    """
    counted = hit & ~difficult
    at = np.flatnonzero(counted)
    right = np.zeros(len(hit), bool)
    right[at[np.unique(owner[at], return_index=True)[1]]] = True
    wrong = ~right & ~(hit & difficult)
    rights, wrongs = np.cumsum(right), np.cumsum(wrong)
    recall = rights / objects
    precision = rights / np.maximum(rights + wrongs, np.finfo(np.float64).eps)
    return float(np.mean([precision[recall >= r].max(initial=0.0) for r in RECALLS]))


def coco_precision(
    images: Sequence[AnnotatedImage],
    found: Sequence[Detections],
    classes: Sequence[str],
    *,
    masks: bool = False,
) -> Precision:
    """AP by COCO's rule, computed by pycocotools, of boxes or with `masks` of masks.

    Raises MissingPackage without pycocotools.
    """
    mask_tools()
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    results = [row for n, one in enumerate(found) for row in _coco_results(n, one, masks)]
    if not results:
        return Precision(ap=0.0, ap50=0.0, ap75=0.0)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        truth = COCO()
        truth.dataset = _coco_truth(images, classes, masks)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "segm" if masks else "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # (thresholds, recalls, classes): all areas, at most 100 detections; -1 without objects.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    by_class = {
        name: float(100 * values[values > -1].mean())
        for name, values in zip(classes, np.moveaxis(precision, 2, 0))
        if (values > -1).any()
    }
    ap, ap50, ap75 = (max(0.0, float(100 * value)) for value in evaluation.stats[:3])
    return Precision(ap=ap, ap50=ap50, ap75=ap75, by_class=by_class)


def _coco_truth(
    images: Sequence[AnnotatedImage], classes: Sequence[str], masks: bool
) -> dict[str, Any]:
    """The content of a COCO file. Images are numbered from 0, classes and objects from 1."""
    rows: list[dict[str, Any]] = []
    for n, image in enumerate(images):
        for at, (x1, y1, x2, y2) in enumerate(image.boxes.astype(float).tolist()):
            row = {
                "id": len(rows) + 1,
                "image_id": n,
                "category_id": int(image.labels[at]) + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": float(image.areas[at]),
                "iscrowd": int(image.ignored[at]),
            }
            if masks:
                row["segmentation"] = run_lengths(image, image.outlines[at])
            rows.append(row)
    return {
        "images": [{"id": n, "height": i.height, "width": i.width} for n, i in enumerate(images)],
        "annotations": rows,
        "categories": [{"id": n, "name": name} for n, name in enumerate(classes, 1)],
    }


def _coco_results(number: int, found: Detections, masks: bool) -> list[dict[str, Any]]:
    """An image's detections as rows of a COCO result file."""
    rows: list[dict[str, Any]] = []
    for at, (x1, y1, x2, y2) in enumerate(found.boxes.astype(float).tolist()):
        row: dict[str, Any] = {
            "image_id": number,
            "category_id": int(found.labels[at]) + 1,
            "score": float(found.scores[at]),
        }
        if masks:
            row["segmentation"] = found.masks[at]
        else:
            row["bbox"] = [x1, y1, x2 - x1, y2 - y1]
        rows.append(row)
    return rows

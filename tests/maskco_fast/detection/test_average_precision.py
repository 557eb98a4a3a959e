"""Average precision: cases worked by hand, and a slow copy of the rule."""

import pathlib

import numpy as np
import pytest

from maskco_fast.detection.annotations import AnnotatedImage
from maskco_fast.detection.average_precision import (
    THRESHOLDS,
    Detections,
    box_iou,
    coco_precision,
    voc_precision,
)

SQUARE = (0.0, 0.0, 10.0, 10.0)
FAR = (50.0, 50.0, 60.0, 60.0)


def image(*boxes: tuple, labels: tuple | None = None, ignored: tuple = ()) -> AnnotatedImage:
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    count = len(corners)
    return AnnotatedImage(
        name="image",
        path=pathlib.Path("image.jpg"),
        width=100,
        height=100,
        boxes=corners,
        labels=np.array(labels if labels is not None else [0] * count, np.int64),
        ignored=np.isin(np.arange(count), ignored),
        trained=np.ones(count, bool),
        areas=np.prod(corners[:, 2:] - corners[:, :2], 1, dtype=np.float64),
    )


def found(*rows: tuple[tuple, float], labels: tuple | None = None) -> Detections:
    """Detections from (box, score) pairs."""
    return Detections(
        boxes=np.array([box for box, _ in rows], np.float32).reshape(-1, 4),
        scores=np.array([score for _, score in rows], np.float32),
        labels=np.array(labels if labels is not None else [0] * len(rows), np.int64),
    )


def test_iou_of_shifted_squares() -> None:
    """Half of each square is shared: 50 / 150."""
    iou = box_iou(np.array([SQUARE, FAR]), np.array([(5.0, 0.0, 15.0, 10.0)]))
    assert iou.tolist() == [[pytest.approx(1 / 3)], [0.0]]


def test_one_of_two_objects_found_first() -> None:
    """Precision 1 up to recall .5, then none: 6 of the 11 recalls (0 to .5) count."""
    result = voc_precision([image(SQUARE, FAR)], [found((SQUARE, 0.9))], ["a"])
    assert result.ap == result.ap50 == result.ap75 == pytest.approx(100 * 6 / 11)


def test_a_wrong_detection_before_the_right_one() -> None:
    """Precision 1/2 at every recall."""
    result = voc_precision([image(SQUARE)], [found((FAR, 0.9), (SQUARE, 0.8))], ["a"])
    assert result.ap50 == pytest.approx(50)


def test_a_second_detection_of_an_object_is_wrong() -> None:
    """Right, wrong, right: precision 1 up to recall .5, then 2/3."""
    result = voc_precision(
        [image(SQUARE, FAR)], [found((SQUARE, 0.9), (SQUARE, 0.8), (FAR, 0.7))], ["a"]
    )
    assert result.ap50 == pytest.approx(100 * (6 + 5 * 2 / 3) / 11)


def test_difficult_objects_count_neither_way() -> None:
    """Neither as a miss nor, however often detected, as a find or an error."""
    images = [image(SQUARE, FAR, ignored=(1,))]
    for rows in ([(SQUARE, 0.5)], [(FAR, 0.9), (FAR, 0.8), (SQUARE, 0.5)]):
        assert voc_precision(images, [found(*rows)], ["a"]).ap == pytest.approx(100)


def test_the_overlap_must_exceed_the_threshold() -> None:
    """An IoU of .8 is right at six thresholds, .5 to .75; at .8 it is equal and so wrong."""
    box = (0.0, 0.0, 10.0, 8.0)
    result = voc_precision([image(SQUARE)], [found((box, 0.9))], ["a"])
    assert (result.ap50, result.ap75) == (pytest.approx(100), pytest.approx(100))
    assert result.ap == pytest.approx(60)


def test_classes_without_objects_are_left_out() -> None:
    """The mean is over a (100) and b (0); c has no object."""
    images = [image(SQUARE, FAR, labels=(0, 1))]
    detections = [found((SQUARE, 0.9), (FAR, 0.9), labels=(0, 2))]
    for compute in (voc_precision, coco_precision):
        if compute is coco_precision:
            pytest.importorskip("pycocotools")
        result = compute(images, detections, ["a", "b", "c"])
        assert result.by_class == {"a": pytest.approx(100), "b": 0.0}
        assert result.ap == pytest.approx(50)


def test_without_detections_ap_is_zero() -> None:
    pytest.importorskip("pycocotools")
    for compute in (voc_precision, coco_precision):
        assert compute([image(SQUARE)], [found()], ["a"]).ap == 0


def slow_voc(images: list[AnnotatedImage], detections: list[Detections], threshold: float) -> float:
    """The devkit's loop for class 0: detections by falling score, one after another."""
    rows = [
        (score, n, box)
        for n, one in enumerate(detections)
        for box, score, label in zip(one.boxes, one.scores, one.labels)
        if label == 0
    ]
    objects = sum(int((~one.ignored[one.labels == 0]).sum()) for one in images)
    taken: set[tuple[int, int]] = set()
    right, wrong, curve = 0, 0, []
    for _, n, box in sorted(rows, key=lambda row: -row[0]):
        own = images[n].labels == 0
        overlaps = box_iou(box[None], images[n].boxes[own])[0]
        best = int(overlaps.argmax()) if len(overlaps) else -1
        if best >= 0 and overlaps[best] > threshold:
            if not images[n].ignored[own][best]:
                right, wrong = (right, wrong + 1) if (n, best) in taken else (right + 1, wrong)
                taken.add((n, best))
        else:
            wrong += 1
        curve.append((right / objects, right / max(right + wrong, 1e-9)))
    return 100 * np.mean(
        [
            max([p for r, p in curve if r >= recall], default=0.0)
            for recall in np.arange(0, 1.1, 0.1)
        ]
    )


def random_case(seed: int) -> tuple[list[AnnotatedImage], list[Detections]]:
    random = np.random.default_rng(seed)
    images, detections = [], []
    for _ in range(12):
        count = int(random.integers(0, 5))
        corner = random.uniform(0, 50, (count, 2))
        boxes = np.hstack([corner, corner + random.uniform(5, 40, (count, 2))])
        near = np.repeat(boxes, 2, 0) + random.normal(0, 2, (2 * count, 4))
        labels = random.integers(0, 2, count)
        images.append(
            image(*boxes.tolist(), labels=tuple(labels), ignored=tuple(random.integers(0, 9, 1)))
        )
        detections.append(
            found(
                *[(tuple(box), float(random.uniform())) for box in near],
                labels=tuple(np.repeat(labels, 2)),
            )
        )
    return images, detections


def test_the_rule_equals_its_slow_copy() -> None:
    for seed in range(3):
        images, detections = random_case(seed)
        result = voc_precision(images, detections, ["a", "b"])
        expected = [slow_voc(images, detections, threshold) for threshold in THRESHOLDS]
        assert result.by_class["a"] == pytest.approx(np.mean(expected))


def test_coco_rule_is_pycocotools() -> None:
    """Found whole: 100. One of two: recalls 0 to .5 of COCO's 101. Crowds count neither way."""
    pytest.importorskip("pycocotools")
    images = [image(SQUARE, FAR)]
    assert coco_precision(images, [found((SQUARE, 0.9), (FAR, 0.8))], ["a"]).ap == pytest.approx(
        100
    )
    assert coco_precision(images, [found((SQUARE, 0.9))], ["a"]).ap == pytest.approx(100 * 51 / 101)
    crowd = [image(SQUARE, FAR, ignored=(1,))]
    rows = [(FAR, 0.9), (FAR, 0.8), (SQUARE, 0.5)]
    assert coco_precision(crowd, [found(*rows)], ["a"]).ap == pytest.approx(100)

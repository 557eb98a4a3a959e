"""Annotations: the corners of boxes, and damaged files named with their field."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from maskco_fast.demo.scenes import KINDS, scene_with_masks
from maskco_fast.detection.annotations import (
    VOC_CLASSES,
    read_annotations,
    read_coco,
    read_voc,
    trainable,
)
from maskco_fast.detection.masks import encode, object_masks
from maskco_fast.kernels.errors import InvalidInput


def test_voc_boxes_lose_their_one_based_corner(write_voc: Callable[..., pathlib.Path]) -> None:
    """A box from 1 to the width covers the image."""
    folder = write_voc(("dog", (1, 1, 40, 30), 0), ("person", (5, 6, 7, 8), 1))
    data = read_voc(folder, "test")
    (image,) = data.images
    assert (data.classes, data.kind) == (VOC_CLASSES, "voc")
    assert (image.width, image.height) == (40, 30)
    assert image.boxes.tolist() == [[0, 0, 40, 30], [4, 5, 7, 8]]
    assert [VOC_CLASSES[label] for label in image.labels] == ["dog", "person"]
    assert image.ignored.tolist() == [False, True]
    assert image.trained.tolist() == [True, True]
    assert image.areas.tolist() == [1200, 9]
    assert image.path.exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<xmin>5</xmin>", "<xmin>wide</xmin>", r"`bndbox/xmin` of object 1 must be a number"),
        ("<xmin>5</xmin>", "", r"`bndbox/xmin` of object 1 is missing"),
        ("<xmin>5</xmin>", "<xmin>9</xmin>", r"`bndbox` of object 1 must have xmin <= xmax"),
        ("<name>dog</name>", "<name>dragon</name>", r"`name` of object 1 .* got 'dragon'"),
        ("<width>40</width>", "", r"`size/width` is missing"),
        ("</annotation>", "", r"is not XML"),
        ("<annotation>", '<!DOCTYPE a [<!ENTITY e "x">]><annotation>', r"document type"),
    ],
)
def test_a_damaged_voc_file_is_named(
    write_voc: Callable[..., pathlib.Path], old: str, new: str, message: str
) -> None:
    folder = write_voc(("dog", (5, 6, 7, 8), 0))
    path = folder / "Annotations" / "000001.xml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(InvalidInput, match=message) as error:
        read_voc(folder, "test")
    assert "000001.xml" in str(error.value)


def test_a_missing_split_or_annotation_is_named(write_voc: Callable[..., pathlib.Path]) -> None:
    folder = write_voc()
    with pytest.raises(InvalidInput, match=r"trainval\.txt does not exist"):
        read_voc(folder, "trainval")
    (folder / "Annotations" / "000001.xml").unlink()
    with pytest.raises(InvalidInput, match=r"000001\.xml does not exist"):
        read_voc(folder, "test")


def test_demo_annotations_are_the_generators_objects(scenes: pathlib.Path) -> None:
    """Boxes, kinds and masks, which go through COCO's run lengths."""
    pytest.importorskip("pycocotools")
    data = read_annotations(("val.json:val",), root=scenes, masks=True)
    assert data.classes == tuple(kind.name for kind in KINDS)
    assert len(data.images) == 3
    for number, image in enumerate(data.images):
        pixels, label, masks = scene_with_masks(1, 8 + number, (64, 80))
        assert (image.height, image.width) == pixels.shape[:2]
        assert image.boxes.tolist() == [item["box"] for item in label["objects"]]
        assert image.labels.tolist() == [item["kind"] for item in label["objects"]]
        found = object_masks(image, image.height, image.width)
        assert np.array_equal(found.astype(bool), np.array(masks))


def coco(tmp_path: pathlib.Path, **changes: Any) -> pathlib.Path:
    """A COCO file of one image with a square, a crowd and an empty box; `changes` of the first."""
    square = {
        "id": 1,
        "image_id": 3,
        "category_id": 7,
        "bbox": [2, 2, 4, 4],
        "area": 16,
        "iscrowd": 0,
        "segmentation": [[2, 2, 6, 2, 6, 6, 2, 6]],
    }
    crowd = {**square, "id": 2, "iscrowd": 1, "category_id": 9}
    empty = {**square, "id": 3, "bbox": [8, 8, 4, 0]}
    content = {
        "images": [{"id": 3, "file_name": "a.jpg", "width": 10, "height": 8}],
        "annotations": [{**square, **changes}, crowd, empty],
        "categories": [{"id": 9, "name": "second"}, {"id": 7, "name": "first"}],
    }
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps(content))
    return file


def test_coco_crowds_are_not_trained_on(tmp_path: pathlib.Path) -> None:
    data = read_coco(coco(tmp_path), tmp_path)
    (image,) = data.images
    assert data.classes == ("first", "second")
    assert image.labels.tolist() == [0, 1]
    assert image.boxes.tolist() == [[2, 2, 6, 6]] * 2
    assert image.ignored.tolist() == [False, True]
    assert image.trained.tolist() == [True, False]
    assert trainable(data) == [image]


def test_polygons_scale_with_the_image_and_back(tmp_path: pathlib.Path) -> None:
    """At twice the size the 4 × 4 square has 8 × 8 pixels; run lengths agree with polygons."""
    pytest.importorskip("pycocotools")
    (image,) = read_coco(coco(tmp_path), tmp_path, masks=True).images
    expected = np.zeros((16, 20), np.uint8)
    expected[4:12, 4:12] = 1
    assert np.array_equal(object_masks(image, 16, 20)[0], expected)
    (runs,) = encode(object_masks(image, 8, 10)[:1])
    (image,) = read_coco(
        coco(tmp_path, segmentation={"size": [8, 10], "counts": runs["counts"].decode()}),
        tmp_path,
        masks=True,
    ).images
    assert np.array_equal(object_masks(image, 16, 20)[0], expected)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bbox", [1, 2, 3]),
        ("bbox", [1, 2, float("nan"), 4]),
        ("category_id", 8),
        ("image_id", "three"),
        ("area", "large"),
        ("segmentation", None),
    ],
)
def test_a_damaged_coco_row_is_named(tmp_path: pathlib.Path, field: str, value: object) -> None:
    file = coco(tmp_path, **{field: value})
    with pytest.raises(InvalidInput, match=rf"boxes\.json: `{field}` of annotations\[0\] must"):
        read_coco(file, tmp_path, masks=True)


def test_sources_must_be_named_and_fit(
    tmp_path: pathlib.Path, write_voc: Callable[..., pathlib.Path]
) -> None:
    coco(tmp_path)
    write_voc(("dog", (5, 6, 7, 8), 0))
    with pytest.raises(InvalidInput, match="must be FOLDER:SPLIT"):
        read_annotations(("VOC2007",), root=tmp_path)
    with pytest.raises(InvalidInput, match="boxes only"):
        read_annotations(("VOC2007:test",), root=tmp_path, masks=True)
    with pytest.raises(InvalidInput, match="other classes"):
        read_annotations(("VOC2007:test", "boxes.json:."), root=tmp_path)

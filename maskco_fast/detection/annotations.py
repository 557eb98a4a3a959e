"""Annotated images: boxes, labels and outlines, and the readers of VOC's and COCO's folders.

A source is named `FOLDER:SPLIT` (VOC) or `FILE.json:IMAGES` (COCO). Boxes are (x1, y1, x2, y2) in
pixels of the image, with the right and lower edge outside.
"""

import json
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

import numpy as np

from maskco_fast.kernels.errors import InvalidInput

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


@dataclass(frozen=True, kw_only=True)
class AnnotatedImage:
    """An image file and its n objects."""

    name: str
    """VOC's file stem, or COCO's image id as text."""
    path: pathlib.Path
    width: int
    height: int
    boxes: np.ndarray
    """(n, 4) float32: x1, y1, x2, y2 in pixels."""
    labels: np.ndarray
    """(n,) int64: indices into the classes of the set."""
    ignored: np.ndarray
    """(n,) bool: VOC's difficult objects and COCO's crowds, which count neither way in AP."""
    trained: np.ndarray
    """(n,) bool: all but COCO's crowds. Detectron2 too trains on VOC's difficult objects."""
    areas: np.ndarray
    """(n,) float64: COCO's `area`, or that of the box."""
    outlines: tuple[Any, ...] = ()
    """COCO's `segmentation` of every object (polygons or run lengths); empty without masks."""


@dataclass(frozen=True, kw_only=True)
class AnnotatedSet:
    """The images of one or more sources."""

    images: tuple[AnnotatedImage, ...]
    classes: tuple[str, ...]
    kind: str
    """voc or coco."""
    has_masks: bool = field(default=False)


def read_annotations(
    sources: Sequence[str], *, root: pathlib.Path = pathlib.Path(), masks: bool = False
) -> AnnotatedSet:
    """Read the sources, which must all be VOC's or all COCO's, with the same classes.

    A relative folder or file is relative to `root`. With `masks` each COCO object must have an
    outline; VOC's have none. Raises InvalidInput that names the file and the field at fault.
    """
    if not sources:
        raise InvalidInput("No images to read: give FOLDER:SPLIT (VOC) or FILE.json:IMAGES (COCO).")
    sets = []
    for source in sources:
        place, separator, part = source.rpartition(":")
        if not separator or not place or not part:
            raise InvalidInput(
                f"A source of images must be FOLDER:SPLIT (VOC) or FILE.json:IMAGES (COCO), "
                f"got {source!r}."
            )
        if place.endswith(".json"):
            sets.append(read_coco(root / place, root / part, masks=masks))
        elif masks:
            raise InvalidInput(
                f"{source} has boxes only: VOC's annotations have no masks. "
                "Give --model.no-masks, or a COCO set."
            )
        else:
            sets.append(read_voc(root / place, part))
    first = sets[0]
    for source, other in zip(sources, sets):
        if other.classes != first.classes:
            raise InvalidInput(f"{source} has other classes than {sources[0]}.")
    images = tuple(image for one in sets for image in one.images)
    return AnnotatedSet(
        images=images, classes=first.classes, kind=first.kind, has_masks=first.has_masks
    )


def trainable(data: AnnotatedSet) -> list[AnnotatedImage]:
    """The images with an object to train on; Detectron2 too leaves out the others."""
    return [image for image in data.images if image.trained.any()]


def read_voc(folder: pathlib.Path, split: str) -> AnnotatedSet:
    """Read `folder` (VOC2007, for example): ImageSets/Main/SPLIT.txt, Annotations/, JPEGImages/.

    VOC's corners are 1-based and inclusive, so 1 is subtracted from the left and upper ones.
    """
    listing = folder / "ImageSets" / "Main" / f"{split}.txt"
    if not listing.exists():
        raise InvalidInput(f"{listing} does not exist: give a VOC folder and one of its splits.")
    names = [line.split()[0] for line in listing.read_text().splitlines() if line.strip()]
    if not names:
        raise InvalidInput(f"{listing} names no image.")
    images = tuple(_voc_image(folder, name) for name in names)
    return AnnotatedSet(images=images, classes=VOC_CLASSES, kind="voc")


def _voc_image(folder: pathlib.Path, name: str) -> AnnotatedImage:
    path = folder / "Annotations" / f"{name}.xml"
    root = _parse_xml(path)
    boxes, labels, difficult = [], [], []
    for number, item in enumerate(root.findall("object"), 1):
        where = f"object {number}"
        kind = _text(path, item, "name", where)
        if kind not in VOC_CLASSES:
            raise InvalidInput(f"{path}: `name` of {where} must be one of VOC's, got {kind!r}.")
        x1, y1, x2, y2 = (
            _number(path, item, f"bndbox/{corner}", where)
            for corner in ("xmin", "ymin", "xmax", "ymax")
        )
        if x2 < x1 or y2 < y1:
            raise InvalidInput(
                f"{path}: `bndbox` of {where} must have xmin <= xmax and ymin <= ymax, "
                f"got {x1:g}, {y1:g}, {x2:g}, {y2:g}."
            )
        boxes.append((x1 - 1, y1 - 1, x2, y2))
        labels.append(VOC_CLASSES.index(kind))
        absent = item.find("difficult") is None
        difficult.append(not absent and _number(path, item, "difficult", where) != 0)
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    width, height = (int(_number(path, root, f"size/{side}")) for side in ("width", "height"))
    if min(width, height) < 1:
        raise InvalidInput(f"{path}: `size` must be at least 1 pixel, got {width}x{height}.")
    return AnnotatedImage(
        name=name,
        path=folder / "JPEGImages" / f"{name}.jpg",
        width=width,
        height=height,
        boxes=corners,
        labels=np.array(labels, np.int64),
        ignored=np.array(difficult, bool),
        trained=np.ones(len(labels), bool),
        areas=np.prod(corners[:, 2:] - corners[:, :2], 1, dtype=np.float64),
    )


def _parse_xml(path: pathlib.Path) -> ElementTree.Element:
    """Parse an annotation. One with a document type, and so with entities, is rejected.

    Nested entities can fill the memory, and external ones read other files; VOC uses neither.
    """
    parser = ElementTree.XMLParser(target=_NoDoctype(path))
    try:
        return ElementTree.parse(path, parser).getroot()
    except FileNotFoundError as error:
        raise InvalidInput(f"{path} does not exist, but its split names it.") from error
    except ElementTree.ParseError as error:
        raise InvalidInput(f"{path} is not XML: {error}.") from error


class _NoDoctype(ElementTree.TreeBuilder):
    """Builds the tree of a file and rejects a document type at its start."""

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__()
        self._path = path

    def doctype(self, *_: object) -> None:
        """Called by the parser before it reads the entities."""
        raise InvalidInput(f"{self._path} has a document type (<!DOCTYPE>); remove it.")


def _text(path: pathlib.Path, parent: ElementTree.Element, name: str, where: str = "") -> str:
    text = (parent.findtext(name) or "").strip()
    if not text:
        raise InvalidInput(
            f"{path}: `{name}`{f' of {where}' if where else ''} is missing or empty."
        )
    return text


def _number(path: pathlib.Path, parent: ElementTree.Element, name: str, where: str = "") -> float:
    text = _text(path, parent, name, where)
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        of = f" of {where}" if where else ""
        raise InvalidInput(f"{path}: `{name}`{of} must be a number, got {text!r}.")
    return value


def read_coco(file: pathlib.Path, folder: pathlib.Path, *, masks: bool = False) -> AnnotatedSet:
    """Read COCO's annotation `file` of the images in `folder`.

    Classes are in the order of the category ids. Boxes are clipped to the image; those without an
    area are left out. Crowds are marked `ignored`; images without objects are kept.
    """
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise InvalidInput(f"{file} does not exist.") from error
    except ValueError as error:
        raise InvalidInput(f"{file} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise InvalidInput(f"{file} must hold a JSON object, got {type(content).__name__}.")
    reader = _CocoFile(file)
    categories = sorted(
        (
            (
                reader.get(row, "id", int, f"categories[{n}]"),
                reader.get(row, "name", str, f"categories[{n}]"),
            )
            for n, row in enumerate(reader.rows(content, "categories"))
        )
    )
    numbers = {category: number for number, (category, _) in enumerate(categories)}
    objects: dict[int, list[tuple]] = {}
    for n, row in enumerate(reader.rows(content, "images")):
        objects[reader.get(row, "id", int, f"images[{n}]")] = []
    for n, row in enumerate(reader.rows(content, "annotations")):
        where = f"annotations[{n}]"
        category = reader.get(row, "category_id", int, where)
        image = reader.get(row, "image_id", int, where)
        if category not in numbers:
            reader.fail(where, "category_id", "be a category of the file", category)
        if image not in objects:
            reader.fail(where, "image_id", "be an image of the file", image)
        x, y, width, height = reader.box(row, where)
        outline = row.get("segmentation")
        if masks and not (isinstance(outline, list | dict) and outline):
            reader.fail(where, "segmentation", "be polygons or run lengths", outline)
        area = row.get("area", width * height)
        if isinstance(area, bool) or not isinstance(area, int | float):
            reader.fail(where, "area", "be a number", area)
        ignored = bool(row.get("iscrowd", 0))
        objects[image].append(
            ((x, y, x + width, y + height), numbers[category], ignored, area, outline)
        )
    images = tuple(
        _coco_image(reader, row, f"images[{n}]", folder, objects[row["id"]], masks)
        for n, row in enumerate(content["images"])
    )
    classes = tuple(name for _, name in categories)
    return AnnotatedSet(images=images, classes=classes, kind="coco", has_masks=masks)


def _coco_image(
    reader: "_CocoFile",
    row: dict,
    where: str,
    folder: pathlib.Path,
    objects: list[tuple],
    masks: bool,
) -> AnnotatedImage:
    width, height = (reader.get(row, name, int, where) for name in ("width", "height"))
    if min(width, height) < 1:
        reader.fail(where, "width` and `height", "be at least 1 pixel", (width, height))
    corners = np.array([item[0] for item in objects], np.float32).reshape(-1, 4)
    corners = corners.clip(0, np.array([width, height, width, height], np.float32))
    kept = np.flatnonzero((corners[:, 2:] > corners[:, :2]).all(1))
    objects = [objects[at] for at in kept]
    return AnnotatedImage(
        name=str(row["id"]),
        path=folder / reader.get(row, "file_name", str, where),
        width=width,
        height=height,
        boxes=corners[kept],
        labels=np.array([item[1] for item in objects], np.int64),
        ignored=np.array([item[2] for item in objects], bool),
        trained=np.array([not item[2] for item in objects], bool),
        areas=np.array([item[3] for item in objects], np.float64),
        outlines=tuple(item[4] for item in objects) if masks else (),
    )


class _CocoFile:
    """Checked access to the rows of a COCO file; errors name file, row and field."""

    def __init__(self, file: pathlib.Path) -> None:
        self.file = file

    def fail(self, where: str, field: str, must: str, found: object) -> None:
        """Raise InvalidInput for a field."""
        raise InvalidInput(f"{self.file}: `{field}` of {where} must {must}, got {found!r:.80}.")

    def rows(self, content: dict, name: str) -> list[dict]:
        """The list of objects called `name`."""
        rows = content.get(name)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise InvalidInput(f"{self.file}: `{name}` must be a list of JSON objects.")
        return rows

    def get(self, row: dict, name: str, kind: type, where: str) -> Any:
        """A field of a row, of the type `kind`."""
        value = row.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            self.fail(where, name, f"be of type {kind.__name__}", value)
        return value

    def box(self, row: dict, where: str) -> tuple[float, float, float, float]:
        """A row's `bbox`: x, y, width, height."""
        value: Any = row.get("bbox")
        numbers = isinstance(value, list) and all(isinstance(one, int | float) for one in value)
        if not numbers or len(value) != 4 or not np.isfinite(value).all() or min(value[2:]) < 0:
            self.fail(where, "bbox", "be four finite numbers x, y, width, height", value)
        x, y, width, height = value
        return x, y, width, height

"""The demo set for detection: scenes as JPEGs with COCO annotations, drawn offline on first use."""

import json
import os
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from maskco_fast.demo.scenes import KINDS, VERSION, scene_with_masks
from maskco_fast.demo.shards import QUALITY, demo_folder
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders.system.files import write_atomically
from maskco_fast.loaders.system.progress import Progress, no_progress

SEED = 1
"""Differs from the seed of `demo_shards`, so that no scene here was seen in pre-training."""


def demo_detection(
    folder: str | os.PathLike[str] | None = None,
    *,
    train: int = 512,
    val: int = 128,
    size: tuple[int, int] = (128, 160),
    progress: Progress = no_progress,
) -> pathlib.Path:
    """Return a folder with train.json, val.json and the images in train/ and val/.

    Draws what the folder does not hold. `folder`: None for `demo_folder()`. `train`, `val`: number
    of scenes. `size`: smallest and largest side, pixels. The annotations are COCO's, with the kinds
    of object as categories and the visible parts as masks (run lengths).
    """
    if train < 1 or val < 1:
        raise InvalidInput(
            f"demo_detection: `train` and `val` must be at least 1, got {train} and {val}."
        )
    name = f"detection-v{VERSION}-{train}+{val}x{size[0]}-{size[1]}"
    root = pathlib.Path(folder if folder is not None else demo_folder()) / name
    parts = {"train": range(train), "val": range(train, train + val)}
    for part, indices in parts.items():
        # The annotations are written last: a folder that has them is complete.
        if not (root / f"{part}.json").exists():
            _write_part(root, part, indices, size, progress)
    return root


def _write_part(
    root: pathlib.Path, part: str, indices: range, size: tuple[int, int], progress: Progress
) -> None:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, index in enumerate(indices, 1):
        pixels, label, masks = scene_with_masks(SEED, index, size)
        name = f"{index:06d}.jpg"
        with write_atomically(root / part / name) as file:
            Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
        height, width = pixels.shape[:2]
        images.append({"id": index, "file_name": name, "height": height, "width": width})
        for item, mask in zip(label["objects"], masks):
            x1, y1, x2, y2 = item["box"]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index,
                    "category_id": item["kind"] + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": {"size": [height, width], "counts": run_lengths(mask)},
                }
            )
        if number % 64 == 0:
            progress(f"scenes of {part} drawn", number, len(indices))
    categories = [{"id": number, "name": kind.name} for number, kind in enumerate(KINDS, 1)]
    with write_atomically(root / f"{part}.json", "w") as file:
        json.dump({"images": images, "annotations": annotations, "categories": categories}, file)


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run lengths of a mask (H, W): of zeros and ones in turn, by columns."""
    pixels = np.concatenate([[False], mask.ravel(order="F"), [False]])
    ends = np.flatnonzero(np.diff(pixels))
    return np.diff(np.concatenate([[0], ends, [mask.size]])).tolist()

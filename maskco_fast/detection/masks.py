"""Masks through pycocotools: outlines to pixels, pixels to run lengths."""

import types
from typing import Any

import numpy as np

from maskco_fast.detection.annotations import AnnotatedImage
from maskco_fast.kernels.errors import InvalidInput, MissingPackage


def mask_tools() -> types.ModuleType:
    """The module pycocotools.mask; MissingPackage without pycocotools."""
    try:
        from pycocotools import mask
    except ImportError as error:
        raise MissingPackage(
            "COCO's rule and masks require pycocotools: pip install 'maskco-fast[detect]'"
        ) from error
    return mask


def object_masks(image: AnnotatedImage, height: int, width: int) -> np.ndarray:
    """The masks (n, height, width) uint8 of an image's objects, at another size of the image.

    Polygons are scaled before they are filled; run lengths are resized to the nearest pixel.
    """
    masks = np.zeros((len(image.outlines), height, width), np.uint8)
    for number, outline in enumerate(image.outlines):
        masks[number] = _pixels(image, outline, height, width)
    return masks


def run_lengths(image: AnnotatedImage, outline: Any) -> dict:
    """An outline as compressed run lengths, at the image's own size."""
    tools = mask_tools()
    try:
        if isinstance(outline, list):
            return tools.merge(tools.frPyObjects(outline, image.height, image.width))
        if isinstance(outline["counts"], list):
            return tools.frPyObjects(outline, *outline["size"])
        return outline
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InvalidInput(
            f"{image.path}: `segmentation` of an object must be polygons or run lengths: {error!r}."
        ) from error


def _pixels(image: AnnotatedImage, outline: Any, height: int, width: int) -> np.ndarray:
    tools = mask_tools()
    if isinstance(outline, list):
        scale = np.array([width / image.width, height / image.height])
        scaled = [
            (np.reshape(polygon, (-1, 2)) * scale).ravel().tolist()
            for polygon in outline
            if len(polygon) % 2 == 0
        ]
        return tools.decode(tools.merge(tools.frPyObjects(scaled, height, width)))
    mask = tools.decode(run_lengths(image, outline))
    rows = ((np.arange(height) + 0.5) * mask.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * mask.shape[1] / width).astype(int)
    return mask[rows[:, None], columns[None]]


def encode(masks: np.ndarray) -> list[dict]:
    """Compressed run lengths of masks (n, H, W) uint8."""
    return mask_tools().encode(np.asfortranarray(masks.transpose(1, 2, 0)))

"""Tests a detector: precise BatchNorm, detections of all images, average precision."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.optim.swa_utils import update_bn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.transform import resize_boxes

from maskco_fast.detection.annotations import AnnotatedImage, AnnotatedSet
from maskco_fast.detection.average_precision import (
    Detections,
    Precision,
    coco_precision,
    voc_precision,
)
from maskco_fast.detection.batches import DetectionLoader, in_threads, load_test
from maskco_fast.detection.config import DetectConfig
from maskco_fast.detection.masks import encode
from maskco_fast.detection.network import DetectionMethod
from maskco_fast.errors import say
from maskco_fast.loaders.system.progress import Progress, no_progress
from maskco_fast.progress import ProgressLines
from maskco_fast.training import devices
from maskco_fast.training.distributed import World


@dataclass(frozen=True)
class Evaluation:
    """A test's result."""

    boxes: Precision
    masks: Precision | None
    """None for a detector without masks."""
    found: list[Detections]
    """One for each image."""

    def scalars(self) -> dict[str, float]:
        """The figures of metrics.jsonl, per cent."""
        values = {"AP": self.boxes.ap, "AP50": self.boxes.ap50, "AP75": self.boxes.ap75}
        if self.masks is not None:
            values |= {"mask_AP": self.masks.ap, "mask_AP50": self.masks.ap50}
        return values


class Tester:
    """Tests the detector of a run; a `Monitor` of the training loop."""

    def __init__(
        self,
        config: DetectConfig,
        val: AnnotatedSet,
        loader: DetectionLoader,
        *,
        device: torch.device,
        precision: devices.Precision,
        threads: int,
        world: World | None = None,
    ) -> None:
        """`loader`: of the training images, for BatchNorm's statistics."""
        self.every = config.eval_every or config.max_steps
        self.val = val
        self.last: Evaluation | None = None
        """The newest complete test."""
        self._config = config
        self._loader = loader
        self._device = device
        self._precision = precision
        self._threads = threads
        self._world = world if world is not None else World()

    def measure(self, method: DetectionMethod, stopped: Callable[[], bool]) -> dict[str, float]:
        """Test, print and return the figures; empty if `stopped` on any rank."""
        self.last = self.test(method, stopped)
        if self.last is None:
            return {}
        values = self.last.scalars()
        if self._world.is_rank_zero:
            say(", ".join(f"{name} {value:.1f}" for name, value in values.items()))
        return values

    def test(
        self, method: DetectionMethod, stopped: Callable[[], bool] = lambda: False
    ) -> Evaluation | None:
        """Set BatchNorm's statistics, detect objects in all images and compute AP.

        The method is afterwards what it was, in train mode. None if `stopped` on any rank. All
        ranks of the world call this.
        """
        config = self._config
        buffers = [(buffer, buffer.clone()) for buffer in method.buffers()]
        method.train()
        with devices.autocast(self._device, self._precision):
            if config.precise_bn:
                with contextlib.closing(self._loader.batches(0, config.precise_bn)) as batches:
                    update_bn(batches, method, self._device)
            found = detect_images(
                method.query,
                self.val.images,
                short_side=config.test_short_side,
                long_side=config.test_long_side,
                device=self._device,
                threads=self._threads,
                world=self._world,
                stopped=stopped,
                progress=ProgressLines(),
            )
        method.train()
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        if found is None:
            return None
        boxes, masks = measure(config.rule, self.val, found, masks=config.model.masks)
        return Evaluation(boxes, masks, found)


def detect_images(
    detector: GeneralizedRCNN,
    images: Sequence[AnnotatedImage],
    *,
    short_side: int,
    long_side: int,
    device: torch.device,
    threads: int,
    world: World | None = None,
    stopped: Callable[[], bool] = lambda: False,
    progress: Progress = no_progress,
) -> list[Detections] | None:
    """Detect objects in all images, of which each rank takes a share and all get the results.

    One image at a time, as Detectron2 tests. Leaves the detector in eval mode. None if `stopped` on
    any rank.
    """
    world = world if world is not None else World()
    detector.eval()
    share = list(images[world.rank :: world.size])
    load = partial(load_test, short_side=short_side, long_side=long_side)
    found: list[Detections] | None = []
    with contextlib.closing(in_threads(load, share, threads=threads, ahead=2 * threads)) as loaded:
        for image, pixels in zip(share, loaded):
            if found is None or stopped():
                found = None
                break
            with torch.no_grad():
                (result,) = detector([pixels.to(device).float().div_(255)])
            found.append(_to_original(result, image, pixels.shape[-2:]))
            if world.is_rank_zero:
                progress("images tested", len(found), len(share))
    parts = world.gather_objects(found)
    complete = [part for part in parts if part is not None]
    return list(_interleaved(complete)) if len(complete) == world.size else None


def _interleaved(parts: Sequence[list[Detections]]) -> Iterator[Detections]:
    """The detections of all images in order, from the ranks' shares."""
    for row in itertools.zip_longest(*parts):
        yield from (one for one in row if one is not None)


def _to_original(
    result: dict[str, torch.Tensor], image: AnnotatedImage, size: Sequence[int]
) -> Detections:
    """Map the boxes of a resized image to the original; masks become run lengths there."""
    boxes = resize_boxes(result["boxes"].float(), list(size), [image.height, image.width])
    masks: tuple[dict, ...] = ()
    if "masks" in result and len(boxes):
        pasted = paste_masks_in_image(result["masks"], boxes, (image.height, image.width))
        masks = tuple(encode((pasted[:, 0] > 0.5).byte().cpu().numpy()))
    return Detections(
        boxes=boxes.cpu().numpy().astype(np.float32),
        scores=result["scores"].float().cpu().numpy(),
        labels=result["labels"].cpu().numpy() - 1,
        masks=masks,
    )


def measure(
    rule: str, data: AnnotatedSet, found: Sequence[Detections], *, masks: bool
) -> tuple[Precision, Precision | None]:
    """AP of the boxes by the rule, and with `masks` of the masks (by COCO's rule)."""
    compute = voc_precision if rule == "voc" else coco_precision
    boxes = compute(data.images, found, data.classes)
    return boxes, coco_precision(data.images, found, data.classes, masks=True) if masks else None

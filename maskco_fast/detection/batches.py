"""Training and test images: their order, sizes and flips, and their decoding in threads.

The order is planned from the seed alone, so that a resumed run continues it at any step.
"""

import collections
import contextlib
import functools
import hashlib
import itertools
import pathlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional

from maskco_fast.detection.annotations import AnnotatedImage
from maskco_fast.detection.masks import object_masks
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import Quarantine
from maskco_fast.loaders.shards.decode import installed_formats
from maskco_fast.training.distributed import share_of_batch

AHEAD = 2
"""Batches of a process that are decoded before their step."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Draw:
    """One training image: its number in the set and its augmentation."""

    number: int
    short_side: int
    flip: bool


@dataclass(frozen=True)
class Sample:
    """A decoded, resized image and its objects, as torchvision's detectors take them."""

    number: int
    """The image's number in the set."""
    image: torch.Tensor
    """(3, h, w) uint8 RGB."""
    target: dict[str, torch.Tensor]
    """boxes (n, 4) float32 in pixels of `image`, labels (n,) int64 from 1, masks (n, h, w) uint8
    where the set has them."""


@dataclass(frozen=True)
class DetectionBatch:
    """A process's share of a step's images; stands for `Batch` in the training loop."""

    number: int
    """Number of the batch since the start of the run."""
    images: list[torch.Tensor]
    """uint8 RGB (3, h, w), each of its own size."""
    targets: list[dict[str, torch.Tensor]]
    """See `Sample.target`."""
    sample_id: torch.Tensor
    """(B,) int64: the images' numbers in the set."""

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "DetectionBatch":
        """The batch with images and targets on `device`."""
        images = [image.to(device, non_blocking=non_blocking) for image in self.images]
        targets = [
            {name: value.to(device, non_blocking=non_blocking) for name, value in target.items()}
            for target in self.targets
        ]
        return DetectionBatch(self.number, images, targets, self.sample_id)

    def split(self, length: int) -> list["DetectionBatch"]:
        """The batch in parts of `length` images."""
        return [
            DetectionBatch(
                self.number,
                self.images[start : start + length],
                self.targets[start : start + length],
                self.sample_id[start : start + length],
            )
            for start in range(0, len(self), length)
        ]


class DetectionLoader:
    """Training batches of one process, decoded in threads: the training loop's `BatchSource`.

    Every process holds the same plan and loads its share of each batch.
    """

    def __init__(
        self,
        images: Sequence[AnnotatedImage],
        batch_size: int,
        *,
        short_sides: tuple[int, ...],
        long_side: int,
        seed: int,
        threads: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """`images`: with at least one object each. `batch_size`: of all processes together."""
        if len(images) < batch_size:
            raise InvalidInput(
                f"`train` must hold at least a batch of {batch_size} images with objects, "
                f"got {len(images)}. Lower --batch-size, or give more images."
            )
        self.images = images
        self.quarantine = Quarantine()
        """Empty: an image that cannot be read ends the run."""
        self._batch_size = batch_size
        self._long_side = long_side
        self._threads = threads
        self._share = slice(rank, None, world_size)
        self._share_size = share_of_batch(batch_size, world_size)
        self._next = 0
        self._order = partial(
            training_order,
            np.array([image.width > image.height for image in images]),
            batch_size,
            short_sides,
            seed=seed,
        )

    @property
    def epoch(self) -> int:
        """The epoch of the next batch."""
        return self._next * self._batch_size // len(self.images)

    def __len__(self) -> int:
        return len(self.images) // self._batch_size

    def __iter__(self) -> Generator[DetectionBatch, None, None]:
        """Yield the batches from the loader's position on, for ever."""
        for batch in self.batches(self._next):
            self._next = batch.number + 1
            yield batch

    def batches(self, start: int, stop: int | None = None) -> Generator[DetectionBatch, None, None]:
        """Yield the batches start..stop - 1; the position stays.

        Earlier ones are planned again, which costs microseconds each.
        """
        order = itertools.islice(self._order(), start, stop)
        draws = (draw for batch in order for draw in batch[self._share])
        ahead = AHEAD * self._share_size
        with contextlib.closing(
            in_threads(self._load, draws, threads=self._threads, ahead=ahead)
        ) as loaded:
            for number in itertools.count(start):
                samples = list(itertools.islice(loaded, self._share_size))
                if not samples:
                    return
                yield DetectionBatch(
                    number,
                    [sample.image for sample in samples],
                    [sample.target for sample in samples],
                    torch.tensor([sample.number for sample in samples]),
                )

    def _load(self, draw: Draw) -> Sample:
        return load_training(self.images[draw.number], draw, self._long_side)

    def state_dict(self) -> dict[str, Any]:
        """The position, and a fingerprint of the annotations."""
        return {"next": self._next, "annotations": self._fingerprint}

    @functools.cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for image in self.images:
            digest.update(f"{image.name} {image.width} {image.height}".encode())
            digest.update(image.boxes.tobytes() + image.labels.tobytes())
        return digest.hexdigest()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a saved position; InvalidInput if the annotations are others."""
        if state["annotations"] != self._fingerprint:
            raise InvalidInput(
                "The run was started with other training images or annotations: give the same "
                "--train, or start a new run."
            )
        self._next = state["next"]

    def interrupt(self) -> None:
        """Do nothing: a batch takes less than a step."""


def training_order(
    wide: np.ndarray, batch_size: int, short_sides: tuple[int, ...], *, seed: int
) -> Iterator[list[Draw]]:
    """Yield batches for ever; every image comes once an epoch.

    `wide` (n,) bool: whether the image is wider than high. All images of a batch are alike in it,
    which saves most of the padding; what does not fill a batch waits for the next epoch.
    """
    waiting: dict[bool, list[Draw]] = {False: [], True: []}
    for epoch in itertools.count():
        random = np.random.default_rng((seed, epoch))
        order = random.permutation(len(wide))
        sides = random.choice(np.array(short_sides), len(wide))
        flips = random.random(len(wide)) < 0.5
        for number in order.tolist():
            group = waiting[bool(wide[number])]
            group.append(Draw(number, int(sides[number]), bool(flips[number])))
            if len(group) == batch_size:
                yield group.copy()
                group.clear()


def resized(height: int, width: int, short_side: int, long_side: int) -> tuple[int, int]:
    """The size (h, w) with this short side, or less where the long one would exceed `long_side`.

    Rounded as by Detectron2's ResizeShortestEdge.
    """
    scale = short_side / min(height, width)
    if max(height, width) * scale > long_side:
        scale = long_side / max(height, width)
    return int(height * scale + 0.5), int(width * scale + 0.5)


def load_training(image: AnnotatedImage, draw: Draw, long_side: int) -> Sample:
    """Decode, resize and flip an image and its objects; crowds are left out."""
    pixels = read_image(image)
    height, width = resized(image.height, image.width, draw.short_side, long_side)
    kept = image.trained
    target: dict[str, torch.Tensor] = {}
    if image.outlines:
        target["masks"] = torch.from_numpy(object_masks(image, height, width)[kept])
    scale = np.array([width / image.width, height / image.height] * 2, np.float32)
    boxes = torch.from_numpy(image.boxes[kept] * scale)
    pixels = resize(pixels, height, width)
    if draw.flip:
        pixels = pixels.flip(-1)
        boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
        if "masks" in target:
            target["masks"] = target["masks"].flip(-1)
    labels = torch.from_numpy(image.labels[kept] + 1)
    return Sample(draw.number, pixels, {**target, "boxes": boxes, "labels": labels})


def load_test(image: AnnotatedImage, short_side: int, long_side: int) -> torch.Tensor:
    """Decode and resize a test image; returns (3, h, w) uint8."""
    size = resized(image.height, image.width, short_side, long_side)
    return resize(read_image(image), *size)


def read_image(image: AnnotatedImage) -> torch.Tensor:
    """Decode an image, (3, H, W) uint8 RGB, turned as its EXIF orientation says.

    Raises InvalidInput if it is damaged or has another size than its annotation.
    """
    pixels = np.asarray(_decode(image.path))
    if pixels.shape[:2] != (image.height, image.width):
        raise InvalidInput(
            f"{image.path} has {pixels.shape[1]}x{pixels.shape[0]} pixels, but its annotation says "
            f"`width` {image.width} and `height` {image.height}. Correct the annotation."
        )
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def _decode(path: pathlib.Path) -> Image.Image:
    try:
        with Image.open(path, formats=installed_formats()) as file:
            return ImageOps.exif_transpose(file).convert("RGB")
    except FileNotFoundError as error:
        raise InvalidInput(f"{path} does not exist, but an annotation names it.") from error
    except Exception as error:  # plugins raise nearly every kind for damaged files
        raise InvalidInput(f"{path} cannot be decoded ({error}). Replace or remove it.") from error


def resize(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize (3, H, W) uint8 with antialiased bilinear interpolation, as Pillow does."""
    return functional.resize(pixels, [height, width], antialias=True)


def in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], *, threads: int, ahead: int
) -> Generator[Result, None, None]:
    """Yield `function(item)` of each item in order, computed in threads up to `ahead` before.

    Decoding and resizing release the GIL. Closing the iterator ends the threads.
    """
    pool = ThreadPoolExecutor(threads, "images")
    pending: collections.deque[Future[Result]] = collections.deque()
    remaining = iter(items)
    try:
        for item in itertools.islice(remaining, ahead):
            pending.append(pool.submit(function, item))
        while pending:
            result = pending.popleft().result()
            for item in itertools.islice(remaining, 1):
                pending.append(pool.submit(function, item))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)

"""The parity gate: differences between a loader's views and the reference loader's, in levels of
255.

Orders, targets and boxes must be equal to the bit. A speed is reported only where the gate is
green.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from maskco_fast.kernels.errors import MaskCoError
from maskco_fast.kernels.torch_formats import FORMATS
from maskco_fast.kernels.views import IMAGENET_STD, ViewConfig
from maskco_fast.loaders import Batch

FAR_LEVELS = 3
"""A value that differs by more levels than this counts as far."""


class ParityError(MaskCoError, RuntimeError):
    """A loader's batches differ from the reference loader's by more than the tolerance."""


@dataclass(frozen=True)
class Difference:
    """Differences between two sets of views, in levels of 255."""

    mean: float
    worst: float
    far: float
    """Share of the values that differ by more than `FAR_LEVELS`."""

    def within(self, limit: "Difference") -> bool:
        """Whether no figure exceeds `limit`'s."""
        return self.mean <= limit.mean and self.worst <= limit.worst and self.far <= limit.far

    def __str__(self) -> str:
        return f"{self.mean:.3f} / {self.worst:.0f}"


SEAM_LIMIT = Difference(mean=0.2, worst=1, far=0)
"""For uint8 crops before colours change."""
FINISHED_LIMIT = Difference(mean=0.5, worst=16, far=1 / 200)
"""For finished views. tests/loaders/test_conformance.py holds every loader to the same limits."""


def seam_views(views: ViewConfig) -> ViewConfig:
    """The same crops and flips without colour changes: its finished uint8 views are the seam's."""
    plain = tuple(
        dataclasses.replace(
            view,
            jitter_probability=0.0,
            gray_probability=0.0,
            blur_probability=0.0,
            solarize_probability=0.0,
            lighting=0.0,
        )
        for view in views.views
    )
    return dataclasses.replace(views, views=plain)


def level_differences(batch: Batch, truth: Batch) -> torch.Tensor:
    """Absolute difference of every value of the views, in levels, flat float32.

    Raises `ParityError` where samples, order, targets or boxes are not equal to the bit.
    """
    for name in ("index", "sample_id", "target", "masked_box", "key_boxes"):
        if not torch.equal(getattr(batch, name), getattr(truth, name)):
            raise ParityError(f"parity is red: {name} differs from the reference loader's")
    normalised = FORMATS[batch.views[0].dtype].normalised
    scale = (255 * torch.tensor(IMAGENET_STD) if normalised else torch.ones(3)).view(3, 1, 1)
    differences = [
        (view.float() - true.float()).abs() * scale for view, true in zip(batch.views, truth.views)
    ]
    return torch.stack(differences).flatten()


def compare(batches: Iterable[Batch], truth: Iterable[Batch]) -> Difference:
    """The difference over all batches of two loaders, up to the end of the shorter one."""
    levels = torch.cat([level_differences(batch, true) for batch, true in zip(batches, truth)])
    far = (levels > FAR_LEVELS).float().mean().item()
    return Difference(levels.mean().item(), levels.max().item(), far)


def check(batch: Batch, truth: Batch, limit: Difference) -> Difference:
    """The difference of one batch from the reference loader's; `ParityError` where it exceeds
    `limit`."""
    difference = compare([batch], [truth])
    if not difference.within(limit):
        raise ParityError(
            f"parity is red: {difference.mean:.2f} levels mean, {difference.worst:.0f} worst, "
            f"{difference.far:.2%} far from the reference loader's; its speed is not measured"
        )
    return difference

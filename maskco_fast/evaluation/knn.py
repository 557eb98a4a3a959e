"""Weighted k-nearest-neighbour classification of features by cosine similarity.

Each of an image's k nearest training images votes for its own class with weight
exp(similarity / T) (Wu et al. 2018, section 3.4; docs/method.md).

Shapes: N training images, M images to classify, D features, K neighbours, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from maskco_fast.evaluation.features import Features
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.training.distributed import World

TRAIN_BLOCK = 1 << 16
VAL_BLOCK = 1 << 10
"""Rows of the similarity matrix that are on the device at once: 256 MiB of float32."""


@dataclass(frozen=True, kw_only=True)
class KnnSetting:
    """Number of neighbours and temperature."""

    k: int = 20
    """Neighbours that vote."""
    temperature: float = 0.07
    """Divides the cosine similarity in a vote's weight."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InvalidInput(f"`k` must be at least 1, got {self.k}.")
        if not self.temperature > 0:
            raise InvalidInput(f"`temperature` must be greater than 0, got {self.temperature}.")


SETTINGS = (KnnSetting(k=20, temperature=0.07), KnnSetting(k=200, temperature=0.1))
"""The two settings of the literature; the second one is MoCo's (docs/method.md)."""


def knn_top1(
    train: Features,
    val: Features,
    settings: Sequence[KnnSetting],
    *,
    classes: int,
    device: torch.device,
    world: World | None = None,
) -> list[float]:
    """Return each setting's share of the images of `val` that are classified correctly, per cent.

    Every rank of `world` passes its share of the features and gets the result of all. The
    similarities are computed on `device`, block by block. Raises InvalidInput where a setting has
    more neighbours than there are training images, or there is no image to classify.
    """
    world = world if world is not None else World()
    count = sum(world.gather_objects(len(train)))
    largest = max(setting.k for setting in settings)
    if largest > count:
        raise InvalidInput(
            f"`k` must be at most the number of training images, {count}, got {largest}."
        )
    # Each rank searches its own training images for the neighbours of all images of `val`.
    everyone = [one for one in world.gather_objects((val.values, val.target)) if len(one[1])]
    if not everyone:
        raise InvalidInput("`val_shards` must hold at least one usable image, got none.")
    query_MD = torch.cat([values for values, _ in everyone])
    target_M = torch.cat([target for _, target in everyone])
    found = world.gather_objects(nearest(train, query_MD, largest, device))
    similarity_MK, label_MK = merge(found, largest)
    return [
        100 * float((vote(similarity_MK, label_MK, one, classes) == target_M).double().mean())
        for one in settings
    ]


@torch.no_grad()
def nearest(
    train: Features, query_MD: torch.Tensor, k: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosine similarities (M, k) and classes (M, k) of the nearest of `train`, on the CPU.

    Both are in descending order of similarity; with fewer than k training images, (M, N).
    """
    best_MK = torch.empty(len(query_MD), 0, device=device)
    label_MK = torch.empty(len(query_MD), 0, dtype=torch.int64, device=device)
    query_MD = functional.normalize(query_MD.to(device), dim=1)
    for block in range(0, len(train), TRAIN_BLOCK):
        rows = slice(block, block + TRAIN_BLOCK)
        train_ND = functional.normalize(train.values[rows].to(device), dim=1)
        target_N = train.target[rows].to(device)
        candidates = []
        for queries in query_MD.split(VAL_BLOCK):
            similarity, position = (queries @ train_ND.T).topk(min(k, len(train_ND)))
            candidates.append((similarity, target_N[position]))
        similarity_MK, new_label_MK = (torch.cat(column) for column in zip(*candidates))
        best_MK, label_MK = merge([(best_MK, label_MK), (similarity_MK, new_label_MK)], k)
    return best_MK.cpu(), label_MK.cpu()


def merge(
    parts: Sequence[tuple[torch.Tensor, torch.Tensor]], k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Join the neighbours (M, ·) found in disjoint sets of training images, and keep the best k."""
    similarity, label = (torch.cat(column, 1) for column in zip(*parts))
    best, position = similarity.topk(min(k, similarity.shape[1]))
    return best, label.gather(1, position)


def vote(
    similarity_MK: torch.Tensor, label_MK: torch.Tensor, setting: KnnSetting, classes: int
) -> torch.Tensor:
    """Return the class (M,) with the largest sum of weights among the first k neighbours."""
    nearest_MK = similarity_MK[:, : setting.k].double()
    # Relative to the nearest one, so that no temperature overflows; the order stays the same.
    weight_MK = ((nearest_MK - nearest_MK[:, :1]) / setting.temperature).exp()
    votes_MC = torch.zeros(len(weight_MK), classes, dtype=weight_MK.dtype)
    votes_MC.scatter_add_(1, label_MK[:, : setting.k], weight_MK)
    return votes_MC.argmax(1)

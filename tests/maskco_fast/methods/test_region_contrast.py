"""Region contrast against loops written from Algorithm 1, and the boxes that must not take part."""

import math
from typing import Literal, get_args

import pytest
import torch

from maskco_fast.methods.region_contrast import region_info_nce
from maskco_fast.networks.config import group_length

Negatives = Literal["inter", "intra", "both"]


def loops(query, keys, group_size, temperature, negatives):
    """Algorithm 1, one number at a time: (loss, accuracy)."""

    def cosine(a, b):
        return float(a.double() @ b.double() / (a.double().norm() * b.double().norm()))

    losses, hits = [], []
    for image in range(len(query)):
        first = image // group_size * group_size
        positive = cosine(query[image], keys[image][0])
        others = []
        for other in range(first, min(first + group_size, len(query))):
            if (other == image and negatives == "inter") or (
                other != image and negatives == "intra"
            ):
                continue
            for box in range(1, keys.shape[1]):
                others.append(cosine(query[image], keys[other][box]))
        total = sum(math.exp(value / temperature) for value in [positive, *others])
        losses.append(-math.log(math.exp(positive / temperature) / total))
        hits.append(positive > max(others))
    return sum(losses) / len(losses), sum(hits) / len(hits)


@pytest.mark.parametrize("negatives", get_args(Negatives))
@pytest.mark.parametrize(("count", "group_size"), [(6, 3), (4, 4), (3, 8), (8, 2)])
def test_equals_triple_loops(negatives, count, group_size):
    generator = torch.Generator().manual_seed(count)
    query = torch.randn(count, 7, generator=generator)
    keys = torch.randn(count, 5, 7, generator=generator)
    keys[0, 0] = query[0] * 3  # one sure hit, so that the accuracy is not zero throughout
    loss, accuracy = region_info_nce(
        query, keys, group_size=group_size, temperature=0.2, negatives=negatives
    )
    wanted_loss, wanted_accuracy = loops(query, keys, group_size, 0.2, negatives)
    assert loss.item() == pytest.approx(wanted_loss, rel=2e-6)
    assert accuracy.item() == pytest.approx(wanted_accuracy)


def depends_on(negatives: Negatives) -> torch.Tensor:
    """(N, N, K) bool: whether box k of image m moves query n's gradient; N = 6, groups of 3."""
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(6, 4, generator=generator, requires_grad=True)
    keys = torch.randn(6, 3, 4, generator=generator)

    def gradient(keys):
        loss, _ = region_info_nce(query, keys, group_size=3, temperature=0.2, negatives=negatives)
        return torch.autograd.grad(loss, query)[0]

    before = gradient(keys)
    moved = torch.zeros(6, 6, 3, dtype=torch.bool)
    for image in range(6):
        for box in range(3):
            changed = keys.clone()
            changed[image, box] += 1
            moved[:, image, box] = (gradient(changed) != before).any(1)
    return moved


@pytest.mark.parametrize("negatives", get_args(Negatives))
def test_only_the_right_boxes_take_part(negatives):
    moved = depends_on(negatives)
    for image in range(6):
        for other in range(6):
            same_group = image // 3 == other // 3
            own = image == other
            # Other images' positives are excluded (paper, A.2).
            assert moved[image, other, 0] == own
            takes_part = (
                own if negatives == "intra" else same_group and (negatives == "both" or not own)
            )
            assert (moved[image, other, 1:] == takes_part).all()


def test_counts_of_the_paper_by_the_loss_of_equal_features():
    """With equal features the loss is the log of the number of candidates: 497, 17 and 513."""
    query, keys = torch.ones(64, 8), torch.ones(64, 17, 8)
    for negatives, candidates in zip(get_args(Negatives), (497, 17, 513)):
        loss, _ = region_info_nce(query, keys, group_size=32, temperature=0.2, negatives=negatives)
        assert loss.item() == pytest.approx(math.log(candidates), rel=1e-6)


@pytest.mark.parametrize("negatives", get_args(Negatives))
def test_a_positive_that_ties_with_a_negative_is_not_a_hit(negatives):
    """Unit vectors along an axis: every similarity is exactly 1."""
    query, keys = torch.zeros(4, 8), torch.zeros(4, 3, 8)
    query[..., 0] = keys[..., 0] = 1.0
    _, accuracy = region_info_nce(query, keys, group_size=4, temperature=0.2, negatives=negatives)
    assert accuracy.item() == 0.0


def test_computes_in_float32_under_autocast():
    generator = torch.Generator().manual_seed(2)
    query, keys = (
        torch.randn(8, 16, generator=generator),
        torch.randn(8, 17, 16, generator=generator),
    )
    plain, _ = region_info_nce(query, keys, group_size=8, temperature=0.2, negatives="inter")
    with torch.autocast("cpu", torch.bfloat16):
        mixed, _ = region_info_nce(query, keys, group_size=8, temperature=0.2, negatives="inter")
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, plain)


def test_a_batch_that_does_not_divide_is_refused():
    assert group_length(5, 8) == 5
    assert group_length(16, 8) == 8
    with pytest.raises(ValueError, match="12 images does not divide into groups of 8"):
        group_length(12, 8)

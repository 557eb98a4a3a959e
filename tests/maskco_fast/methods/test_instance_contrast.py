"""The baselines' losses against loops written from the published formulas."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as functional

from maskco_fast.methods.instance_contrast import (
    noise_contrastive,
    noise_softmax,
    nt_xent,
    queue_info_nce,
)
from maskco_fast.methods.npid import mean_exponential


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a.double() @ b.double() / (a.double().norm() * b.double().norm()))


def test_moco_equals_its_equation_1():
    query, key, queue = (
        features(5, 8),
        features(5, 8, seed=1),
        functional.normalize(features(11, 8, seed=2)),
    )
    key[2] = 2 * query[2]
    losses, hits = [], []
    for q, k in zip(query, key):
        positive, others = cosine(q, k), [cosine(q, entry) for entry in queue]
        total = sum(math.exp(value / 0.2) for value in [positive, *others])
        losses.append(-math.log(math.exp(positive / 0.2) / total))
        hits.append(positive > max(others))
    loss, accuracy = queue_info_nce(query, key, queue, temperature=0.2)
    assert loss.item() == pytest.approx(np.mean(losses), rel=2e-6)
    assert accuracy.item() == pytest.approx(np.mean(hits))


def simclr_loops(view_1: torch.Tensor, view_2: torch.Tensor, temperature: float) -> float:
    """Algorithm 1 of SimCLR: views 2k - 1 and 2k are of image k."""
    z = [row for pair in zip(view_1, view_2) for row in pair]
    count = len(view_1)

    def term(i: int, j: int) -> float:
        total = sum(math.exp(cosine(z[i], z[k]) / temperature) for k in range(2 * count) if k != i)
        return -math.log(math.exp(cosine(z[i], z[j]) / temperature) / total)

    return sum(term(2 * k, 2 * k + 1) + term(2 * k + 1, 2 * k) for k in range(count)) / (2 * count)


def test_simclr_equals_its_algorithm_1():
    views = features(6, 7), features(6, 7, seed=1)
    views[1][3] = views[0][3]
    loss, accuracy = nt_xent(views, views, first=0, temperature=0.1)
    assert loss.item() == pytest.approx(simclr_loops(*views, 0.1), rel=2e-6)
    assert 2 / 12 <= accuracy.item() < 1


def test_simclr_of_parts_is_the_mean_of_the_whole():
    views = features(6, 7), features(6, 7, seed=1)
    parts = [
        nt_xent(
            (views[0][first : first + 2], views[1][first : first + 2]),
            views,
            first=first,
            temperature=0.1,
        )[0]
        for first in (0, 2, 4)
    ]
    assert torch.stack(parts).mean().item() == pytest.approx(simclr_loops(*views, 0.1), rel=2e-6)


def npid_loops(feature, own, noise, samples, temperature, partition) -> float:
    """NPID's equations 4 to 7: P(i|v), h(i, v), and the two classes' negative log-likelihood."""
    count, negatives = noise.shape[:2]
    noise_share = negatives / samples

    def posterior(v: torch.Tensor, f: torch.Tensor) -> float:
        probability = math.exp(cosine(v, f) / temperature) / partition
        return probability / (probability + noise_share)

    total = 0.0
    for n in range(count):
        total -= math.log(posterior(feature[n], own[n]))
        total -= sum(math.log(1 - posterior(feature[n], entry)) for entry in noise[n])
    return total / count


def test_npid_equals_its_equations_4_to_7():
    feature, own = features(4, 6), functional.normalize(features(4, 6, seed=1))
    noise = functional.normalize(features(4, 9, 6, seed=2), dim=-1)
    loss, accuracy = noise_contrastive(
        feature, own, noise, samples=50, temperature=0.07, partition=120.0
    )
    assert loss.item() == pytest.approx(npid_loops(feature, own, noise, 50, 0.07, 120.0), rel=2e-6)
    hits = [
        cosine(f, o) > max(cosine(f, entry) for entry in entries)
        for f, o, entries in zip(feature, own, noise)
    ]
    assert accuracy.item() == pytest.approx(np.mean(hits))


def test_npid_softmax_is_cross_entropy_over_the_same_entries():
    feature, own = features(4, 6), functional.normalize(features(4, 6, seed=1))
    noise = functional.normalize(features(4, 9, 6, seed=2), dim=-1)
    wanted = []
    for n in range(4):
        values = [math.exp(cosine(feature[n], entry) / 0.07) for entry in [own[n], *noise[n]]]
        wanted.append(-math.log(values[0] / sum(values)))
    loss, _ = noise_softmax(feature, own, noise, temperature=0.07)
    assert loss.item() == pytest.approx(np.mean(wanted), rel=2e-6)


@pytest.mark.parametrize(("temperature", "dimension"), [(0.07, 128), (0.5, 3), (0.1, 16)])
def test_npids_partition_function_is_what_the_first_batches_would_estimate(temperature, dimension):
    bank = functional.normalize(features(400_000, dimension), dim=1).double()
    direction = functional.normalize(features(dimension, seed=1), dim=0).double()
    estimate = (bank @ direction / temperature).exp()
    error = (estimate.std() / len(bank) ** 0.5).item()
    assert mean_exponential(1 / temperature, dimension) == pytest.approx(
        estimate.mean().item(), abs=5 * error
    )


def test_objectives_compute_in_float32_under_autocast():
    feature, own = features(4, 6), functional.normalize(features(4, 6, seed=1))
    plain = (
        queue_info_nce(feature, own, own, temperature=0.2)[0],
        nt_xent((feature, own), (feature, own), first=0, temperature=0.1)[0],
    )
    with torch.autocast("cpu", torch.bfloat16):
        mixed = (
            queue_info_nce(feature, own, own, temperature=0.2)[0],
            nt_xent((feature, own), (feature, own), first=0, temperature=0.1)[0],
        )
    assert all(torch.equal(a, b) for a, b in zip(plain, mixed))

"""Counter-based numbers: splitmix64 to the bit, uniformity, independence, permutations."""

import numpy as np
import torch

from maskco_fast.methods.counter_random import (
    random_dropout,
    random_integers,
    random_permutation,
)

STEP = torch.tensor(7)


def splitmix(z: int) -> int:
    z &= 2**64 - 1
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


def test_draws_equal_integers_of_any_length():
    golden = 0x9E3779B97F4A7C15
    for seed in (0, 1, 12345):
        stream = splitmix(splitmix(seed + golden) + 7 + golden)
        wanted = [splitmix(stream + (place + 1) * golden) % 2**63 for place in (0, 1, 999)]
        assert random_integers(seed, STEP, torch.tensor([0, 1, 999])).tolist() == wanted


def test_draws_are_uniform_and_of_each_argument():
    places = torch.arange(200_000)
    counts = np.bincount((random_integers(0, STEP, places) % 100).numpy(), minlength=100)
    assert ((counts - 2000) ** 2 / 2000).sum() < 160  # chi squared of 99 degrees: once in 10 000
    others = [
        random_integers(1, STEP, places),
        random_integers(0, STEP + 1, places),
        random_integers(0, STEP, places + 200_000),
    ]
    for other in others:
        assert not (random_integers(0, STEP, places) == other).any()


def test_permutations_hold_everything_once_and_differ_by_step():
    first, second = random_permutation(3, STEP, 64), random_permutation(3, STEP + 1, 64)
    assert first.sort().values.tolist() == list(range(64))
    assert second.sort().values.tolist() == list(range(64))
    assert (first != second).sum() > 50


def test_dropout_scales_what_it_keeps_and_draws_by_row():
    features = torch.full((50, 40), 3.0)
    rows = torch.arange(50) * 2**58  # positions wrap around, as a hash times the width does
    dropped = random_dropout(features, 0.25, seed=0, step=STEP, row_R=rows)
    kept = dropped != 0
    assert (dropped[kept] == 4).all()
    assert 0.72 < kept.float().mean() < 0.78
    integers = torch.stack([random_integers(0, STEP, row * 40 + torch.arange(40)) for row in rows])
    assert torch.equal(kept, integers.double() >= 0.25 * 2**63)
    part = random_dropout(features[20:30], 0.25, seed=0, step=STEP, row_R=rows[20:30])
    assert torch.equal(part, dropped[20:30])
    assert torch.equal(random_dropout(features, 0.0, seed=0, step=STEP, row_R=rows), features)

"""Counter-based random numbers on the device: pure functions of (seed, step, position).

There is no state and no host synchronisation. The same arguments give the same numbers on every
process and device, so processes agree without communication and a resumed run repeats the
uninterrupted one.
"""

import torch

# splitmix64's constants, as in the plan and the order, wrapped to int64: torch multiplies int64
# modulo 2**64 and has few operators for uint64.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9 - 2**64
_MULTIPLIER_2 = 0x94D049BB133111EB - 2**64


def random_integers(seed: int, step: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return uniform int64 in [0, 2**63 - 1], one per position, of the shape of `positions`.

    `step`: scalar int64 tensor. `positions`: int64, on the device of `step`.
    """
    stream = _mix(_mix(step * 0 + seed + _GOLDEN) + step + _GOLDEN)
    return _mix(stream + (positions + 1) * _GOLDEN) & (2**63 - 1)


def random_permutation(seed: int, step: torch.Tensor, count: int) -> torch.Tensor:
    """Return the step's random permutation of 0..count - 1: (count,) int64, on `step`'s device."""
    positions = torch.arange(count, device=step.device)
    return random_integers(seed, step, positions).argsort(stable=True)


def random_dropout(
    features_RD: torch.Tensor,
    probability: float,
    *,
    seed: int,
    step: torch.Tensor,
    row_R: torch.Tensor,
) -> torch.Tensor:
    """Set each value to 0 with `probability`, and divide the others by 1 - probability.

    `row_R`: int64, a number for each row, such as a sample's id. A row's draws are a function of
    (seed, step, its number), so that neither processes nor micro-batches change them.
    """
    width = features_RD.shape[1]
    column_D = torch.arange(width, device=row_R.device)
    integer_RD = random_integers(seed, step, row_R.unsqueeze(1) * width + column_D)
    kept_RD = integer_RD >= int(probability * 2**63)
    return features_RD * kept_RD / (1 - probability)


def _mix(z: torch.Tensor) -> torch.Tensor:
    """splitmix64's finaliser."""
    z = (z ^ _shift_right(z, 30)) * _MULTIPLIER_1
    z = (z ^ _shift_right(z, 27)) * _MULTIPLIER_2
    return z ^ _shift_right(z, 31)


def _shift_right(z: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift, filling with zeros; torch's operator copies the sign bit."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)

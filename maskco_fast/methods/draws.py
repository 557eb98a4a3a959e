"""Random numbers as functions of (seed, step, place), drawn on the device, without state and
without a synchronisation.

Every process draws the same for the same arguments, whatever the device, so processes agree without
talking, and a run that resumes goes on with the very numbers it would have had.
"""

import torch

_GOLDEN, _FIRST, _SECOND = (
    value - 2**64 for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
"""splitmix64's constants, as in the plan and the order, in the int64 that torch multiplies modulo
2**64."""


def draws(seed: int, step: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """int64 in 0..2**63 - 1, of the shape of `places` (int64, on the device of `step`, a scalar
    int64 tensor)."""
    stream = _mix(_mix(step * 0 + seed + _GOLDEN) + step + _GOLDEN)
    return _mix(stream + (places + 1) * _GOLDEN) & (2**63 - 1)


def permutation(seed: int, step: torch.Tensor, count: int) -> torch.Tensor:
    """(count,) int64: 0..count - 1 in the random order of that step, on the device of `step`."""
    return draws(seed, step, torch.arange(count, device=step.device)).argsort(stable=True)


def _mix(z: torch.Tensor) -> torch.Tensor:
    """splitmix64's finaliser."""
    z = (z ^ _shift(z, 30)) * _FIRST
    z = (z ^ _shift(z, 27)) * _SECOND
    return z ^ _shift(z, 31)


def _shift(z: torch.Tensor, bits: int) -> torch.Tensor:
    """A right shift that fills with zeros, where torch's copies the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)

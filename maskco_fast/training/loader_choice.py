"""`--loader auto`: measures the installed loaders on the run's shards and chooses the fastest."""

import dataclasses
import itertools
import json
import pathlib
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch

from maskco_fast.errors import say
from maskco_fast.loaders import LOADERS, Loader, TooManyBadSamples
from maskco_fast.loaders.system.files import write_json

CANDIDATES = ("native", "dali", "ffcv")
"""The loaders that are measured. The first one needs no optional package and is the default. The
reference loader is left out because it is never the fastest."""
ROUNDS = 2
"""Measurements of each candidate. The best one counts, since other load only slows a loader down.
"""
SECONDS = 1.0
"""Duration of a measurement, after the warm-up that compiles and fills the pipeline."""
MARGIN = 1.1
"""Least speed-up over the native loader of a choice: the measurement is short and noisy."""


@dataclass(frozen=True)
class Choice:
    """The chosen loader and the reason, as loader.json holds them."""

    loader: str
    why: str
    images_per_s: dict[str, float] = dataclasses.field(default_factory=dict)
    """Speed of each candidate that was measured."""


def choose_loader(run_dir: pathlib.Path, make: Callable[[str], Loader]) -> str:
    """Return the loader named in the run folder's loader.json, or measure and write that file.

    `make` makes the run's loader from a name. Prints the choice and its reason on stderr. Errors of
    the native loader, such as shards without a usable image, are raised. Any other candidate that
    fails is left out.
    """
    path = run_dir / "loader.json"
    stored = _read(path)
    if stored is not None:
        say(f"loader {stored}, chosen when this run began ({path})")
        return stored
    choice = measure(make)
    say(f"loader {choice.loader}: {choice.why}")
    write_json(path, dataclasses.asdict(choice))
    return choice.loader


def _read(path: pathlib.Path) -> str | None:
    """The loader named in loader.json; None without it, or with a warning where it is damaged."""
    try:
        name = json.loads(path.read_text(encoding="utf-8"))["loader"]
        if name in LOADERS:
            return name
        reason = f"it names no loader, but {str(name)[:50]!r}"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error)
    warnings.warn(f"{path} is unreadable ({reason}); the loaders are measured again", stacklevel=3)
    return None


def measure(make: Callable[[str], Loader]) -> Choice:
    """Choose the fastest of `CANDIDATES`; the native loader if no other is faster by `MARGIN`."""
    native = CANDIDATES[0]
    loaders = {native: make(native)}
    left_out: dict[str, str] = {}
    if len(loaders[native]) == 0:
        return Choice(native, "too few samples for a measurement")
    for name in CANDIDATES[1:]:
        try:
            loaders[name] = make(name)
        except ImportError:
            left_out[name] = "is not installed"
        except ValueError as error:  # it does not support an option of this run
            left_out[name] = f"cannot run: {error}"
    if len(loaders) == 1:
        return Choice(native, _summary({}, left_out))
    say(f"measuring {', '.join(loaders)} on these shards; --loader NAME skips this")
    rates: dict[str, float] = {}
    for name in list(loaders) * ROUNDS:
        if name not in left_out:
            try:
                rates[name] = max(rates.get(name, 0.0), images_per_s(loaders[name]))
            except Exception as error:
                if name == native or isinstance(error, TooManyBadSamples):
                    raise
                rates.pop(name, None)
                left_out[name] = f"failed: {error}"
    fastest = max(rates, key=lambda name: rates[name])
    chosen = fastest if rates[fastest] >= MARGIN * rates[native] else native
    rounded = {name: round(rate, 1) for name, rate in rates.items()}
    return Choice(chosen, _summary(rates, left_out), rounded)


def images_per_s(loader: Loader) -> float:
    """Measure the loader alone for `SECONDS`: images it delivers a second. Closes the loader."""
    device = torch.device(loader.config.device)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    try:
        for _ in range(loader.config.prefetch + 1):
            next(batches)
        images = 0
        began = time.perf_counter()
        while time.perf_counter() - began < SECONDS:
            images += len(next(batches))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return images / (time.perf_counter() - began)
    finally:
        loader.close()


def _summary(rates: dict[str, float], left_out: dict[str, str]) -> str:
    """One line: the measured speeds, fastest first, then the candidates left out with reasons."""
    by_rate = sorted(rates.items(), key=lambda item: -item[1])
    measured = [f"{name} {rate:.0f} images/s" for name, rate in by_rate]
    return ", ".join([*measured, *(f"{name} {reason}" for name, reason in left_out.items())])

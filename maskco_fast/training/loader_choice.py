"""`--loader auto`: which loader feeds a run, by what is installed and a short measurement on the
run's own shards."""

import dataclasses
import itertools
import json
import pathlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from maskco_fast.errors import say
from maskco_fast.loaders import Loader, TooManyBadSamples
from maskco_fast.loaders.system.files import write_json

CANDIDATES = ("native", "dali", "ffcv")
"""The first is measured in any case and needs no extra; the reference loader is never the faster
one."""
ROUNDS = 2
"""Turns that each candidate gets, of which the better counts: what else the machine does only slows
it down."""
SECONDS = 1.0
"""Of each turn, after the batches that compile and fill the pipeline."""
MARGIN = 1.1
"""How many times as fast as the native loader another one has to be: the measurement is short and
noisy."""


@dataclass(frozen=True)
class Choice:
    """A loader, and what spoke for it."""

    loader: str
    why: str
    images_per_s: dict[str, float] = dataclasses.field(default_factory=dict)
    """Of each candidate that runs here."""


def choose_loader(run_dir: pathlib.Path, make: Callable[[str], Loader]) -> str:
    """The loader that `run_dir` remembers in loader.json, or the fastest one here, which it then
    remembers.

    `make` makes a loader of the run by its name. What was chosen and why is told on stderr. Errors
    of the native loader, such as shards that hold nothing usable, are raised; another candidate
    that fails is left out.
    """
    path = run_dir / "loader.json"
    if path.exists():
        choice = Choice(**json.loads(path.read_text()))
        say(f"loader {choice.loader}, as chosen when this run began ({path})")
        return choice.loader
    choice = measure(make)
    say(f"loader {choice.loader}: {choice.why}")
    write_json(path, dataclasses.asdict(choice))
    return choice.loader


def measure(make: Callable[[str], Loader]) -> Choice:
    """The fastest of `CANDIDATES`, or the native loader where none is clearly faster."""
    native = CANDIDATES[0]
    loaders, left_out = {native: make(native)}, {}
    if len(loaders[native]) == 0:
        return Choice(native, "too few samples to measure with")
    for name in CANDIDATES[1:]:
        try:
            loaders[name] = make(name)
        except ImportError:
            left_out[name] = "is not installed"
        except ValueError as error:  # options that it does not have
            left_out[name] = f"does not fit: {error}"
    if len(loaders) == 1:
        return Choice(native, _told({}, left_out))
    say(f"measuring {', '.join(loaders)} on these shards; name one by --loader to leave this out")
    rates: dict[str, float] = {}
    for name in list(loaders) * ROUNDS:
        if name not in left_out:
            try:
                rates[name] = max(rates.get(name, 0.0), images_per_s(loaders[name]))
            except Exception as error:
                if name == native or isinstance(error, TooManyBadSamples):
                    raise
                rates.pop(name, None)
                left_out[name] = f"fails here: {error}"
    fastest = max(rates, key=lambda name: rates[name])
    chosen = fastest if rates[fastest] >= MARGIN * rates[native] else native
    return Choice(
        chosen, _told(rates, left_out), {name: round(rate, 1) for name, rate in rates.items()}
    )


def images_per_s(loader: Loader) -> float:
    """Images that the loader delivers a second when nothing else is done with them, over `SECONDS`."""
    device = torch.device(loader.config.device)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    try:
        for _ in range(loader.config.prefetch + 1):
            next(batches)
        began, images = time.perf_counter(), 0
        while time.perf_counter() - began < SECONDS:
            images += len(next(batches))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return images / (time.perf_counter() - began)
    finally:
        loader.close()


def _told(rates: dict[str, float], left_out: dict[str, str]) -> str:
    """The measurement in a line."""
    facts = [
        f"{name} {rate:.0f} images/s"
        for name, rate in sorted(rates.items(), key=lambda item: -item[1])
    ]
    return ", ".join([*facts, *(f"{name} {reason}" for name, reason in left_out.items())])

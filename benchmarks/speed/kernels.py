"""Time of the CPU kernels: milliseconds a view by stage and dtype, beside Pillow and torchvision.

    python -m benchmarks.speed.kernels [--views 40] [--rounds 15] [--size 224] [--height 375]

On one thread, on a picture with photographic statistics and MaskCo's own plans. Rounds are
interleaved: each makes every view once on either side. A time is the median over the views of each
view's fastest round, which other processes disturb least; the spread is the quartiles over the
views. Stages after the first are differences from a view without that stage.
"""

import dataclasses
import time
from collections.abc import Callable
from functools import partial

import numba
import numpy as np
import PIL
import torch
import torchvision
import tyro
from PIL import Image

from maskco_fast.bench.harness import machine
from maskco_fast.kernels.augment.reference import augment_reference, finish_reference
from maskco_fast.kernels.formats import FORMAT_NAMES
from maskco_fast.kernels.plan import plan
from maskco_fast.kernels.render.image import Renderer
from maskco_fast.kernels.render.resize import resize_reference
from maskco_fast.kernels.views import ViewConfig

OFF: dict[str, float] = {"jitter": 0, "gray": 0, "blur_sigma": 0, "solarize": 0}
STAGES: dict[str, dict[str, float]] = {
    "jitter": {**OFF, "jitter": 1},
    "gray": {**OFF, "gray": 1},
    "blur, sigma 0.5": {**OFF, "blur_sigma": 0.5},
    "blur, sigma 1": {**OFF, "blur_sigma": 1.0},
    "blur, sigma 2": {**OFF, "blur_sigma": 2.0},
    "solarize": {**OFF, "solarize": 1},
}
"""The fields of a view's plan that turn one stage on and all others off."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Time the CPU kernels."""

    views: int = 40
    """Views timed, two a plan."""
    rounds: int = 15
    """Times that each view is made on either side."""
    size: int = 224
    """Side of a view, pixels."""
    height: int = 375
    width: int = 500
    """Of the picture, pixels; an average ImageNet photograph's by default."""


def photograph(height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8 noise whose amplitude falls with the frequency."""
    random = np.random.default_rng(0)
    image = np.full((height, width, 3), 110.0)
    for octave in range(7):
        noise = random.normal(0, 60 / 2**octave, (3 * 2**octave, 4 * 2**octave, 3)).astype(
            np.float32
        )
        for channel in range(3):
            layer = Image.fromarray(noise[..., channel]).resize(
                (width, height), Image.Resampling.BICUBIC
            )
            image[..., channel] += np.asarray(layer)
    return image.clip(0, 255).astype(np.uint8)


def fastest(makers: dict[str, list[Callable[[], object]]], rounds: int) -> dict[str, np.ndarray]:
    """Milliseconds of each call's fastest round, by side.

    The sides alternate call by call. The first round is not timed.
    """
    best = {name: np.full(len(calls), np.inf) for name, calls in makers.items()}
    for number in range(rounds + 1):
        for i in range(len(next(iter(makers.values())))):
            for name, calls in makers.items():
                began = time.perf_counter()
                calls[i]()
                took = 1000 * (time.perf_counter() - began)
                if number:
                    best[name][i] = min(best[name][i], took)
    return best


class Sides:
    """A picture with its plans, and the calls of either side."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.config = ViewConfig.maskco(options.size)
        self.image = photograph(options.height, options.width)
        self.count = options.views // 2
        size = [np.full(self.count, side) for side in (options.height, options.width)]
        self.rows = plan(self.config, 0, 0, np.arange(self.count), *size)

    def rows_with(self, **fields: float) -> np.ndarray:
        """The plan rows with these fields of every view set."""
        rows = self.rows.copy()
        for name, value in fields.items():
            rows.view(self.config.plan_dtype)["views"][name] = value
        return rows

    def ours(self, dtype: str, rows: np.ndarray) -> list[Callable[[], object]]:
        """Calls that render both views of a plan."""
        renderer = Renderer(self.config, dtype)
        out = np.empty((2, self.count, *(self.config.size,) * 2, 3), renderer.buffer_dtype)
        return [
            partial(renderer.render, self.image, 0, 0, rows[n], out, n) for n in range(self.count)
        ]

    def ours_resized(self) -> list[Callable[[], object]]:
        """Calls that resize and flip both views of a plan, up to the seam."""
        renderer = Renderer(self.config, "uint8")
        out = np.empty((2, self.count, *(self.config.size,) * 2, 3), np.uint8)
        return [
            partial(renderer.resize, self.image, 0, 0, self.rows[n], out, n)
            for n in range(self.count)
        ]

    def theirs(self, rows: np.ndarray, *, resized_only: bool = False) -> list[Callable[[], object]]:
        """Calls that render both views of a plan by Pillow and torchvision, to float32."""
        named = rows.view(self.config.plan_dtype)[:, 0]

        def make(n: int) -> None:
            for v, view in enumerate(named[n]["views"]):
                crop = tuple(view["crop"].astype(int).tolist())
                levels = resize_reference(self.image, crop, self.config.size, bool(view["flip"]))
                if not resized_only:
                    finish_reference(
                        augment_reference(levels, view), None if v else named[n]["masked_box"]
                    )

        return [partial(make, n) for n in range(self.count)]


def line(name: str, ours: np.ndarray, theirs: np.ndarray | None = None) -> None:
    """Print one row: medians over the views, ours with its quartiles."""
    low, middle, high = np.percentile(ours / 2, [25, 50, 75])
    text = f"{name:18}{middle:9.4f}  {low:.4f} to {high:.4f}  "
    if theirs is not None:
        text += f"{np.median(theirs / 2):17.3f}{np.median(theirs) / np.median(ours):7.0f}"
    print(text)


def main(options: Options) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    sides = Sides(options)
    print(
        f"{machine()}; numba {numba.__version__}, pillow {PIL.__version__}, "
        f"torchvision {torchvision.__version__}\n"
        f"{options.height} by {options.width} to {options.size} pixels, {2 * sides.count} views, "
        f"{options.rounds} rounds, 1 thread"
    )
    print(f"{'':18}{'ms/view':>9}  {'quartiles':18}{'PIL + torchvision':>17}{'ratio':>7}")
    resized = fastest(
        {"ours": sides.ours_resized(), "theirs": sides.theirs(sides.rows, resized_only=True)},
        options.rounds,
    )
    line("resize, flip", resized["ours"], resized["theirs"])
    for name, fields in STAGES.items():
        rows = sides.rows_with(**fields)
        plain = sides.rows_with(**OFF)
        makers = {"ours": sides.ours("float16", rows), "without": sides.ours("float16", plain)}
        makers |= {"theirs": sides.theirs(rows), "theirs without": sides.theirs(plain)}
        took = fastest(makers, options.rounds)
        line(name, took["ours"] - took["without"], took["theirs"] - took["theirs without"])
    for dtype in FORMAT_NAMES:
        took = fastest(
            {"ours": sides.ours(dtype, sides.rows), "theirs": sides.theirs(sides.rows)},
            max(options.rounds // 3, 3),
        )
        line(f"all, {dtype}", took["ours"], took["theirs"])


if __name__ == "__main__":
    main(tyro.cli(Options))

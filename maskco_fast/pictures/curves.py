"""Line charts as inline SVG: a few hundred points a curve, readable in light, dark and in print."""

import dataclasses
import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WIDTH = 720
HEIGHT = 260
MARGINS = (54, 24, 34, 36)
"""Left, right, top and bottom, in units of the chart; the browser scales the whole."""

MAX_POINTS = 400
"""Points drawn of a curve: about one for every second pixel."""

COLOURS = 6
"""Curve colours that the style sheet defines, `--curve0` and so on; repeated with dashes."""

DASHES = ("", "7 4", "2 3")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a chart."""

    label: str
    steps: np.ndarray
    """(L,) float64, ascending."""
    values: np.ndarray
    """(L,) float64, finite."""
    number: int
    """Chooses colour and dashes; that of its run."""
    faint: bool = False
    """Drawn thin and pale, without an entry in the legend: the values behind a running mean."""
    markers: bool = False
    """Also a dot at each point, for values that are far apart."""


def line_chart(curves: Sequence[Curve], *, y_label: str, zero: bool = False) -> str:
    """The chart as `<svg>` and a legend; `zero` starts the vertical axis there.

    Curves of more than `MAX_POINTS` points are drawn as the means of equal runs of points.
    """
    curves = [thinned(curve) for curve in curves if len(curve.steps)]
    values = np.concatenate([curve.values for curve in curves])
    steps = np.concatenate([curve.steps for curve in curves])
    y_ticks = ticks(0.0 if zero else float(values.min()), float(values.max()))
    x_ticks = [tick for tick in ticks(0.0, float(steps.max())) if tick <= steps.max()]
    left, right, top, bottom = MARGINS
    x_span = max(float(steps.max()), 1e-9)
    y_low = min(y_ticks[0], float(values.min()))
    y_span = max(y_ticks[-1], float(values.max())) - y_low

    def x_at(step: float) -> float:
        return left + (WIDTH - left - right) * step / x_span

    def y_at(value: float) -> float:
        return HEIGHT - bottom - (HEIGHT - top - bottom) * (value - y_low) / y_span

    parts = []
    for tick in y_ticks:
        y = y_at(tick)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{WIDTH - right}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.4g}</text>')
    for tick in x_ticks:
        y = HEIGHT - bottom + 16
        parts.append(f'<text x="{x_at(tick):.1f}" y="{y}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<text x="{WIDTH - right}" y="{HEIGHT - 4}" text-anchor="end">step</text>')
    parts.append(f'<text x="4" y="16">{html.escape(y_label)}</text>')
    for curve in curves:
        points = [
            f"{x_at(step):.1f} {y_at(value):.1f}" for step, value in zip(curve.steps, curve.values)
        ]
        parts.append(f'<path class="{_classes(curve)}"{_dash(curve)} d="M{"L".join(points)}"/>')
        if curve.markers or len(points) == 1:
            colour = curve.number % COLOURS
            parts += [
                f'<circle class="dot curve{colour}" cx="{x}" cy="{y}" r="3"/>'
                for x, y in (point.split() for point in points)
            ]
    label = html.escape(f"{y_label} over the steps", quote=True)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        f"{''.join(parts)}</svg>{_legend(curves)}"
    )


def thinned(curve: Curve) -> Curve:
    """The curve with at most `MAX_POINTS` points: means of equal runs, the last one shorter."""
    length = -(-len(curve.steps) // MAX_POINTS)
    if length <= 1:
        return curve
    starts = np.arange(0, len(curve.steps), length)
    counts = np.diff(np.append(starts, len(curve.steps)))
    return dataclasses.replace(
        curve,
        steps=np.add.reduceat(curve.steps, starts) / counts,
        values=np.add.reduceat(curve.values, starts) / counts,
    )


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers from at most `low` to at least `high`."""
    if not high > low:
        spread = abs(low) * 0.1 or 1.0
        low, high = low - spread, high + spread
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _classes(curve: Curve) -> str:
    return f"curve curve{curve.number % COLOURS}{' faint' if curve.faint else ''}"


def _dash(curve: Curve) -> str:
    """The attribute that tells curves of one colour apart, and all curves in a black print."""
    dash = DASHES[curve.number // COLOURS % len(DASHES)]
    return f' stroke-dasharray="{dash}"' if dash else ""


def _legend(curves: Sequence[Curve]) -> str:
    entries = [
        f'<li><svg viewBox="0 0 24 8" aria-hidden="true"><path class="{_classes(curve)}"'
        f'{_dash(curve)} d="M0 4H24"/></svg>{html.escape(curve.label)}</li>'
        for curve in curves
        if not curve.faint
    ]
    return f'<ul class="legend">{"".join(entries)}</ul>'

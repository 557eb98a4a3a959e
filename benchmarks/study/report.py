"""The study's report: what held, what did not, what cannot be told; tables and a picture.

    python -m benchmarks.study report --results study/results.jsonl --out study/report

Writes OUT/report.md, OUT/claims.png and OUT/curves.png.
"""

import json
import math
import pathlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from benchmarks.study import plan
from maskco_fast.errors import say
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders.system.files import write_atomically

CONFIDENCE = 0.95

Measured = Mapping[str, Mapping[int, Mapping[str, float]]]
"""Arm to seed to measure to value."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write the report of a study's results."""

    results: pathlib.Path = pathlib.Path("study/results.jsonl")
    """What `run` has written."""
    out: pathlib.Path = pathlib.Path("study/report")
    """Folder for the report."""


@dataclass(frozen=True)
class Verdict:
    """A claim against the results."""

    claim: plan.Claim
    values: tuple[float, ...]
    """One a seed."""
    mean: float
    half: float
    """Half of the t-interval's width; infinite with fewer than two seeds."""

    @property
    def word(self) -> str:
        """held, failed, or cannot be told."""
        low, high, bound = self.mean - self.half, self.mean + self.half, self.claim.bound
        if bound is None:
            return "held" if low > 0 or high < 0 else "cannot be told"
        if self.mean > bound and low > 0:
            return "held"
        return "failed" if high < bound or high < 0 else "cannot be told"


def judge(claim: plan.Claim, measured: Measured) -> Verdict:
    """The claim's value for each seed that all its arms have, their mean and t-interval."""
    seeds = sorted(set.intersection(*(set(measured[arm]) for arm in claim.terms)))
    values = tuple(
        sum(factor * measured[arm][seed][claim.measure] for arm, factor in claim.terms.items())
        for seed in seeds
    )
    mean, half = interval(values)
    return Verdict(claim, values, mean, half)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its t-interval: infinite for one value, NaN mean for none."""
    if not values:
        return math.nan, math.inf
    if len(values) == 1:
        return values[0], math.inf
    factor = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
    return float(np.mean(values)), float(factor * np.std(values, ddof=1) / math.sqrt(len(values)))


def read(path: pathlib.Path) -> list[dict]:
    """The results; InvalidInput where they are of another plan, or of runs of another length."""
    results = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for result in results:
        if result["plan"] != plan.stamp() or result["steps"] != plan.STEPS:
            raise InvalidInput(
                f"Results must be of plan {plan.stamp()} and {plan.STEPS} steps, got "
                f"{result['arm']}-{result['seed']} of plan {result['plan']} and "
                f"{result['steps']} steps. Run them again, or check out the plan's commit."
            )
    return results


def last_measures(results: Sequence[dict]) -> Measured:
    """The measures at the end of each run."""
    measured: dict[str, dict[int, dict[str, float]]] = defaultdict(dict)
    for result in results:
        values = dict(result["measured"][str(result["steps"])])
        if "loss" in result:
            values["loss"] = result["loss"]
        measured[result["arm"]][result["seed"]] = values
    return measured


def report(config: Report) -> int:
    """Write the report; returns 0."""
    results = read(config.results)
    measured = last_measures(results)
    verdicts = [
        judge(claim, measured)
        for claim in plan.CLAIMS
        if all(arm in measured for arm in claim.terms)
    ]
    config.out.mkdir(parents=True, exist_ok=True)
    with write_atomically(config.out / "report.md") as file:
        file.write(text(results, measured, verdicts).encode())
    draw_claims(verdicts).savefig(config.out / "claims.png", dpi=150)
    draw_curves(results).savefig(config.out / "curves.png", dpi=150)
    counts = {word: sum(verdict.word == word for verdict in verdicts) for word in WORDS}
    say(", ".join(f"{count} {word}" for word, count in counts.items()))
    say(f"wrote {config.out}/report.md, claims.png and curves.png")
    return 0


WORDS = ("held", "failed", "cannot be told")


def text(results: Sequence[dict], measured: Measured, verdicts: Sequence[Verdict]) -> str:
    """The report as Markdown."""
    seconds = sum(result.get("train_cpu_s", 0) + result["measure_cpu_s"] for result in results)
    commits = sorted({result["commit"] for result in results})
    machines = sorted({result["machine"] for result in results})
    lines = [
        "# Results of the study",
        "",
        f"Plan {plan.stamp()}; {len(results)} runs, {seconds / 3600:.1f} hours of one core; "
        f"commits {', '.join(commits)}; {', '.join(machines)}.",
        "",
        "## Claims",
        "",
        "A mean over the seeds with its 95 % t-interval, of differences paired by seed. It holds "
        "where the mean is beyond the bound and the interval excludes 0, and fails where the "
        "interval lies below the bound. ± is half the interval.",
        "",
        "| claim | measure | value | bound | seeds | verdict | the paper |",
        "|---|---|---|---|---|---|---|",
    ]
    for verdict in verdicts:
        claim = verdict.claim
        bound = "≠ 0" if claim.bound is None else f"> {claim.bound:g}"
        lines.append(
            f"| {claim.says} | {claim.measure} | {verdict.mean:.2f} ± {verdict.half:.2f} | {bound} "
            f"| {len(verdict.values)} | {verdict.word} | {claim.paper} |"
        )
    lines += ["", "## Arms", "", "Mean ± standard deviation over the seeds.", ""]
    lines += [
        f"| arm | seeds | {' | '.join(plan.MEASURES)} |",
        "|---|---|" + "---|" * len(plan.MEASURES),
    ]
    for arm in plan.ARMS:
        if arm.name in measured:
            rows = measured[arm.name].values()
            cells = [spread([row[name] for row in rows if name in row]) for name in plan.MEASURES]
            lines.append(f"| {arm.name} | {len(rows)} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation as text; empty without values."""
    if not values:
        return ""
    deviation = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{deviation}"


COLOURS = {"held": "tab:green", "failed": "tab:red", "cannot be told": "tab:gray"}


def draw_claims(verdicts: Sequence[Verdict]) -> Figure:
    """Each claim's value for each seed, its mean and interval, and its bound."""
    figure = Figure(figsize=(8, 0.36 * len(verdicts) + 1.2), layout="constrained")
    axes = figure.subplots()
    for row, verdict in enumerate(reversed(verdicts)):
        colour = COLOURS[verdict.word]
        axes.plot(verdict.values, [row] * len(verdict.values), ".", color=colour, alpha=0.4)
        half = verdict.half if math.isfinite(verdict.half) else 0
        axes.errorbar(verdict.mean, row, xerr=half, fmt="o", color=colour, capsize=3)
        if verdict.claim.bound is not None:
            axes.plot(verdict.claim.bound, row, "|", color="black", markersize=12)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(verdicts)), [v.claim.name for v in reversed(verdicts)])
    axes.set_xlabel("per cent points (loss: nats); bar: 95 % interval; stroke: bound")
    return figure


def draw_curves(results: Sequence[dict]) -> Figure:
    """The conv5 probe over the steps, of the runs that were measured more than once."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    curves = [result for result in results if len(result["measured"]) > 1]
    for number, result in enumerate(curves):
        steps = sorted(map(int, result["measured"]))
        top1 = [result["measured"][str(step)]["probe conv5"] for step in steps]
        style = "--" if result["arm"].startswith("moco") else "-"
        axes.plot(steps, top1, f".{style}", color=f"C{number % 10}", label=result["arm"])
        axes.set_xticks(steps, map(str, steps))
        axes.set_xticks([], minor=True)
    floors = [
        result["measured"][str(result["steps"])]["probe conv5"]
        for result in results
        if result["arm"] == "random"
    ]
    if floors:
        axes.axhline(float(np.mean(floors)), color="black", linestyle=":", label="random")
    axes.set(xlabel="steps", ylabel="top-1 of the conv5 probe, %")
    if axes.lines:
        axes.legend(fontsize="small", ncols=2)
    return figure

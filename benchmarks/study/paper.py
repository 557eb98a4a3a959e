"""The study at the paper's size: the commands of its tables and figures, and what has been run.

    python -m benchmarks.study paper --out paper.sh       # writes the commands
    python -m benchmarks.study paper --collect runs/paper # prints the results beside the paper's

ResNet-50 at 224 pixels. A run is days on one GPU; lines of paper.sh can go to several machines.
"""

import dataclasses
import pathlib
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from benchmarks.study.one import option
from maskco_fast.errors import say
from maskco_fast.evaluation.paper import PAPER_ABLATIONS, PAPER_ROWS, PaperRow
from maskco_fast.evaluation.results import find_results
from maskco_fast.loaders.system.files import write_atomically


@dataclass(frozen=True, kw_only=True)
class Paper:
    """Write the commands of the paper's tables and figures, or collect their results."""

    imagenet: str = "imagenet/train-{0000..1023}.tar"
    """Labelled shards of ImageNet's training images."""
    imagenet_val: str = "imagenet/val-{0000..0049}.tar"
    coco: str = "coco/train2017"
    """Images of COCO train2017: shards or a folder."""
    cc3m: str = "cc3m-{0000..0331}.tar"
    """Shards of Conceptual Captions."""
    voc: str = "VOCdevkit"
    """Folder of PASCAL VOC 2007 and 2012."""
    coco_detection: str = "coco"
    """Folder of COCO's images and annotations."""
    runs: pathlib.Path = pathlib.Path("runs/paper")
    """Folder for the run folders."""
    out: pathlib.Path = pathlib.Path("paper.sh")
    """File for the commands."""
    collect: pathlib.Path | None = None
    """Instead of writing commands, print the results in the run folders of this folder."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One pre-training, and what the paper reports of it."""

    table: str
    run: str
    """Name of the run folder."""
    images: str = "imagenet"
    """A field of `Paper`."""
    options: Mapping[str, object] = dataclasses.field(default_factory=dict)
    """Options of `train` beyond the recipe's."""
    paper: PaperRow | None = None
    coco: bool = False
    """Whether COCO detection is measured too."""


def _comparison() -> Iterator[Row]:
    """The methods after each pre-training."""
    images = {"ImageNet": "imagenet", "COCO": "coco", "Conceptual Captions": "cc3m"}
    for paper in PAPER_ROWS:
        name = images[paper.pretraining.partition(",")[0]]
        yield Row(
            table="Tables 2, 3, 7 and 8: pre-trainings",
            run=f"{paper.method}-{name}",
            images=name,
            options={"method": paper.method},
            paper=paper,
            coco=True,
        )


def _ablations() -> Iterator[Row]:
    """MaskCo's parts, on ImageNet. A run that two tables share comes once for each."""
    by_name = {paper.pretraining: paper for paper in PAPER_ABLATIONS}
    for blocks in range(5):
        yield Row(
            table="Table 4: blocks of the mask prediction head",
            run=f"maskco-mph{blocks}" if blocks != 3 else "maskco-imagenet",
            options={"maskco.mph-blocks": blocks},
            paper=by_name[f"{blocks} MPH block{'s' * (blocks != 1)}"],
        )
    for mask in (True, False):
        yield Row(
            table="Table 5 and Figure 4: the mask",
            run="maskco-mph0" if mask else "maskco-mph0-unmasked",
            options={"maskco.mph-blocks": 0, **({} if mask else {"maskco.mask": False})},
            paper=by_name[f"0 MPH blocks, with{'' if mask else 'out'} the mask"],
        )
    for negatives, text in (
        ("inter", "negatives of other images"),
        ("intra", "negatives of the same image"),
        ("both", "negatives of both kinds"),
    ):
        yield Row(
            table="Table 6: negatives",
            run="maskco-imagenet" if negatives == "inter" else f"maskco-{negatives}",
            options={"maskco.negatives": negatives},
            paper=by_name[text],
        )


def _lengths() -> Iterator[Row]:
    """Training length: shares of the longest run, each with a schedule of its own."""
    for steps in LENGTHS:
        for method in ("maskco", "moco_v2"):
            yield Row(
                table="Figure 5: training length",
                run=f"{method}-cc3m-{steps // 1000}k",
                images="cc3m",
                options={"method": method, "max-steps": steps},
            )


LENGTHS = (125_000, 250_000, 375_000)
"""Steps; the full length is a run of the comparison."""

ROWS = (*_comparison(), *_ablations(), *_lengths())


def paper(config: Paper) -> int:
    """Write the commands, or print what `collect` holds; returns 0."""
    if config.collect is not None:
        print("\n".join(collected(config.collect)))
        return 0
    with write_atomically(config.out) as file:
        file.write("\n".join([*commands(config), ""]).encode())
    say(
        f"wrote {config.out}: {len({row.run for row in ROWS})} pre-trainings and what measures them"
    )
    return 0


def commands(config: Paper) -> Iterator[str]:
    """The lines of paper.sh."""
    yield "#!/usr/bin/env bash"
    yield "# The paper's tables and figures. Each command resumes where it was stopped; for several"
    yield "# GPUs put `torchrun --nproc-per-node N -m maskco_fast` for `maskco-fast`."
    yield "set -euo pipefail"
    yield "\n# Table 1: ResNet distance, of torchvision's IMAGENET1K_V1"
    for name in ("imagenet", "coco", "cc3m"):
        out = config.runs / f"distance-{name}.json"
        yield command(
            "distance",
            {"weights": "resnet50-0676ba61.pth", "shards": getattr(config, name), "json": out},
        )
    done: set[str] = set()
    table = ""
    for row in ROWS:
        if row.table != table:
            table = row.table
            yield f"\n# {table}"
        if row.run in done:
            yield f"# {row.run}: above"
            continue
        done.add(row.run)
        yield from row_commands(config, row)
    yield "\n# Figures 6 and 7: what the mask prediction head makes of masked images"
    picture = {"weights": config.runs / "maskco-imagenet", "shards": config.imagenet_val}
    yield command("mph", {**picture, "out": config.runs / "mph.png"})


def row_commands(config: Paper, row: Row) -> Iterator[str]:
    """Pre-training, linear probes and detection of one row."""
    run = config.runs / row.run
    shards = getattr(config, row.images)
    yield command("train", {"shards": shards, "recipe": "paper", **row.options, "run-dir": run})
    linear = {"weights": run, "train-shards": config.imagenet, "val-shards": config.imagenet_val}
    yield command("linear", {**linear, "run-dir": f"{run}-linear"})
    detect = {"weights": run, "recipe": "voc", "data": config.voc}
    yield command("detect", {**detect, "run-dir": f"{run}-voc", "out": run})
    if row.coco:
        detect = {"weights": run, "recipe": "coco", "data": config.coco_detection}
        yield command("detect", {**detect, "run-dir": f"{run}-coco"})


def command(name: str, options: Mapping[str, object]) -> str:
    """A line of the shell."""
    words = [word for key, value in options.items() for word in option(key, value)]
    return shlex.join(["maskco-fast", name, *words])


def collected(folder: pathlib.Path) -> Iterator[str]:
    """A Markdown table of the results in the run folders, the paper's numbers behind them."""
    names = ("AP", "AP50", "AP75", "conv4", "conv5")
    yield f"| table | run | {' | '.join(names)} |"
    yield "|---|---|" + "---|" * len(names)
    for row in ROWS:
        results, problems = find_results(folder / row.run)
        ours = {**results.get("detect", {}), **results.get("linear", {})}
        cells = [f"{shown_or_dash(ours.get(n))} ({paper_number(row, n)})" for n in names]
        yield f"| {row.table} | {row.run} | {' | '.join(cells)} |"
        for problem in problems:
            say(problem)
    yield "\nIn brackets: the paper. -: not run, or not in the paper."


def paper_number(row: Row, name: str) -> str:
    """The paper's number as text."""
    return shown_or_dash(getattr(row.paper, name, None))


def shown_or_dash(value: float | None) -> str:
    """A number with one decimal place."""
    return "-" if value is None else f"{value:.1f}"

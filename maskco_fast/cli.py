"""The command line `maskco-fast`: finds the command, reads its options and runs it."""

import importlib
import sys
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from maskco_fast import __version__
from maskco_fast.errors import WRONG_OPTIONS, report_user_errors


@dataclass(frozen=True)
class Command:
    """One row of the table of commands."""

    name: str
    help: str
    """One line for `maskco-fast --help`."""
    module: str
    """Defines a function named like the command, which takes a configuration dataclass, the
    command's options, and returns the exit code. A function `defaults(arguments)` is optional: it
    returns the configuration that the options change."""


COMMANDS = (
    Command(
        "train",
        "pre-train from tar shards into a run folder; resumes an interrupted run",
        "maskco_fast.commands.train",
    ),
    Command(
        "index",
        "count the samples of shards; list the unusable ones with reasons",
        "maskco_fast.commands.index",
    ),
    Command(
        "compile",
        "compile the loaders' kernels ahead of the first run",
        "maskco_fast.commands.compile",
    ),
    Command(
        "views",
        "draw a few images with their crops, mask and boxes",
        "maskco_fast.commands.views",
    ),
    Command(
        "beton",
        "convert shards to one .beton file, FFCV's format, or give it back",
        "maskco_fast.commands.beton",
    ),
    Command(
        "bench",
        "time the loaders, ours and others', on your shards",
        "maskco_fast.commands.bench",
    ),
    Command(
        "detect",
        "fine-tune a detector from pre-trained weights: AP on VOC07+12, COCO or the demo scenes",
        "maskco_fast.commands.detect",
    ),
    Command(
        "distance",
        "measure the ResNet distance between two crops of an image (Table 1)",
        "maskco_fast.commands.distance",
    ),
    Command(
        "mph",
        "draw what the mask prediction head makes of masked images (Figures 6 and 7)",
        "maskco_fast.commands.mph",
    ),
    Command(
        "report",
        "write one HTML page about runs: curves, views, evaluation, configuration",
        "maskco_fast.commands.report",
    ),
    Command(
        "export",
        "write a trunk for torchvision, timm, detectron2, openmmlab, lightly or safetensors",
        "maskco_fast.commands.export",
    ),
    Command(
        "knn",
        "k-nearest-neighbour accuracy of a frozen trunk",
        "maskco_fast.commands.knn",
    ),
    Command(
        "linear",
        "train and test linear probes on a frozen trunk",
        "maskco_fast.commands.linear",
    ),
    Command(
        "study",
        "write the mosaics of one class, and of four, that docs/study.md compares",
        "maskco_fast.demo.mosaics",
    ),
    Command(
        "doctor",
        "report installed packages, usable loaders and devices, and what to install",
        "maskco_fast.commands.doctor",
    ),
)
"""To add a command, add a row here and a module in `commands/`."""

USAGE = """\
usage: maskco-fast COMMAND [OPTIONS]
       maskco-fast COMMAND --help     show the options of a command
       maskco-fast --version

commands:
{commands}

examples:
  maskco-fast train --shards 'cc3m-{{0000..0331}}.tar' --recipe paper --run-dir runs/cc3m
  maskco-fast train --shards 'cc3m-{{0000..0331}}.tar' --method moco_v2 --run-dir runs/moco
  maskco-fast index --shards 'cc3m-{{0000..0331}}.tar'
  maskco-fast views --shards cc3m-0000.tar --out views.png

exit codes: 0 success, 1 an error (printed in one line), 2 invalid options
""".format(commands="\n".join(f"  {row.name:<8} {row.help}" for row in COMMANDS))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0 success, 1 an error, 2 invalid options.

    `arguments`: those after the program's name; None for `sys.argv[1:]`.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if given else WRONG_OPTIONS
    if given[0] == "--version":
        print(f"maskco-fast {__version__}")
        return 0
    for command in COMMANDS:
        if command.name == given[0]:
            return _run(command, given[1:])
    names = ", ".join(command.name for command in COMMANDS)
    print(
        f"maskco-fast: unknown command {given[0]!r}. Choose one of {names}.\n\n{USAGE}",
        end="",
        file=sys.stderr,
    )
    return WRONG_OPTIONS


def _run(command: Command, arguments: Sequence[str]) -> int:
    """Import the command, parse its options, call it.

    The imports are here, so that `maskco-fast --help` answers without torch.
    """
    import tyro

    module = importlib.import_module(command.module)
    function = getattr(module, command.name)
    config_class = typing.get_type_hints(function)["config"]

    def parse_and_call() -> int:
        expanded = module.expand(arguments) if hasattr(module, "expand") else arguments
        extra: dict[str, Any] = {}
        if hasattr(module, "defaults"):
            extra["default"] = module.defaults(expanded)
        config = tyro.cli(config_class, prog=f"maskco-fast {command.name}", args=expanded, **extra)
        return function(config)

    return report_user_errors(parse_and_call)

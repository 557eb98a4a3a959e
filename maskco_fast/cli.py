"""The command line: each command is a configuration dataclass, from which tyro makes the options,
and a function."""

import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import tyro

USAGE = """\
usage: maskco-fast COMMAND [OPTIONS]      (maskco-fast COMMAND --help shows a command's options)

commands:
  train    pre-train from tar shards into a run folder; goes on where an interrupted run stood
  index    count what shards hold, and name what cannot be used and why
  views    draw a few images with their crops, mask and boxes
  beton    write shards as one .beton file, for FFCV
  bench    time the loaders, ours and others', side by side on your shards
  doctor   tell what is installed, which loaders and devices work here, and what to install for the rest

examples:
  maskco-fast train --shards 'cc3m-{0000..0331}.tar' --recipe paper --run-dir runs/cc3m
  maskco-fast train --shards 'cc3m-{0000..0331}.tar' --recipe paper --method moco_v2 --run-dir runs/moco
  maskco-fast index --shards 'cc3m-{0000..0331}.tar'
  maskco-fast views --shards cc3m-0000.tar --out views.png

exit codes: 0 done, 1 an error that is named, 2 options that do not fit
"""

C = TypeVar("C")


def _parse(config: type[C], command: str, arguments: Sequence[str], default: C | None = None) -> C:
    extra: dict[str, Any] = {} if default is None else {"default": default}
    return tyro.cli(config, prog=f"maskco-fast {command}", args=arguments, **extra)


def _train(arguments: Sequence[str]) -> int:
    from maskco_fast.commands.train import train
    from maskco_fast.errors import report_user_errors
    from maskco_fast.methods.registry import METHODS
    from maskco_fast.training.config import TrainConfig
    from maskco_fast.training.recipes import RECIPES

    name = _early(arguments, "--recipe", "paper", RECIPES)
    recipe = RECIPES[name](_early(arguments, "--method", "maskco", METHODS))
    config = _parse(TrainConfig, "train", arguments, recipe)
    return report_user_errors(lambda: train(config))


def _early(arguments: Sequence[str], option: str, default: str, choices: Collection[str]) -> str:
    """The choice that an option names: read before the others, since it gives their defaults."""
    name = default
    for at, argument in enumerate(arguments):
        if argument == option and at + 1 < len(arguments):
            name = arguments[at + 1]
        elif argument.startswith(f"{option}="):
            name = argument.partition("=")[2]
    if name not in choices:
        print(
            f"maskco-fast: there is no {option[2:]} {name!r}; choose one of {', '.join(choices)}",
            file=sys.stderr,
        )
        raise SystemExit(2)
    return name


def _index(arguments: Sequence[str]) -> int:
    from maskco_fast.commands.inspect import IndexConfig, index
    from maskco_fast.errors import report_user_errors

    config = _parse(IndexConfig, "index", arguments)
    return report_user_errors(lambda: index(config))


def _views(arguments: Sequence[str]) -> int:
    from maskco_fast.commands.inspect import ViewsConfig, views
    from maskco_fast.errors import report_user_errors

    config = _parse(ViewsConfig, "views", arguments)
    return report_user_errors(lambda: views(config))


def _beton(arguments: Sequence[str]) -> int:
    from maskco_fast.commands.beton import BetonConfig, beton
    from maskco_fast.errors import report_user_errors

    config = _parse(BetonConfig, "beton", arguments)
    return report_user_errors(lambda: beton(config))


def _bench(arguments: Sequence[str]) -> int:
    from maskco_fast.bench.harness import BenchConfig, bench
    from maskco_fast.errors import report_user_errors

    config = _parse(BenchConfig, "bench", arguments)
    return report_user_errors(lambda: bench(config))


def _doctor(arguments: Sequence[str]) -> int:
    from maskco_fast.commands.doctor import DoctorConfig, doctor

    config = _parse(DoctorConfig, "doctor", arguments)
    return doctor(as_json=config.json)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": _train,
    "index": _index,
    "views": _views,
    "beton": _beton,
    "bench": _bench,
    "doctor": _doctor,
}
"""Each imports what it needs when it is called, so that `--help` answers at once."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0 done, 1 an error that is named, 2 options
    that do not fit."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if given else 2
    if given[0] not in COMMANDS:
        print(f"maskco-fast: there is no command {given[0]!r}\n\n{USAGE}", end="", file=sys.stderr)
        return 2
    return COMMANDS[given[0]](given[1:])

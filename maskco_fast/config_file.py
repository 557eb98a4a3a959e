"""`--config FILE`: options from a JSON file, such as the config.json of another run."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders.shards.names import HIDDEN
from maskco_fast.training.config import flatten, public

OPTION = "--config"
REDACTED = "redacted"
"""Key of the fields whose values the file does not hold in full, since they may be secrets."""


def as_file(config: Any) -> dict[str, Any]:
    """What config.json holds: `public(config)`, and under `REDACTED` the names of the fields that
    are not in it in full."""
    shown = flatten(public(config))
    full = flatten(dataclasses.asdict(config))
    redacted = [name for name, value in full.items() if value and shown.get(name) != value]
    return {**public(config), **({REDACTED: redacted} if redacted else {})}


def with_config_file(arguments: Sequence[str], config: Any) -> list[str]:
    """The arguments, with the options that their `--config` file stands for in front.

    Options that are given too are left out of the file, so that those of the command line win.
    `config`: an instance of the dataclass that the options are made of. The file may hold any of
    its fields, nested as in config.json. InvalidInput where it is no JSON object, has a key that is
    no option, or lacks a redacted value that is not given.
    """
    named = value_of(OPTION, arguments)
    if named is None:
        return list(arguments)
    path = pathlib.Path(named)
    values = _read(path)
    redacted = values.pop(REDACTED, [])
    if not isinstance(redacted, list):
        raise InvalidInput(f"`{REDACTED}` of {path} must be a list of keys, got {redacted!r}.")
    found = flatten(values)
    unknown = found.keys() - flatten(dataclasses.asdict(config)).keys()
    if unknown:
        raise InvalidInput(
            f"{path} has unknown keys: {', '.join(sorted(unknown))}. Remove them, or correct their "
            "spelling; --help lists the options."
        )
    given = {_field(argument) for argument in arguments if argument.startswith("--")}
    hidden = [
        name for name, value in found.items() if "pipe:" in str(value) and HIDDEN in str(value)
    ]
    secret = [name for name in dict.fromkeys([*redacted, *hidden]) if name not in given]
    if secret:
        raise InvalidInput(
            f"{path} does not hold all of {', '.join(secret)}, since addresses and headers may be "
            f"secrets. Pass {' and '.join(map(_option, secret))} as for that run."
        )
    options: list[str] = []
    for name, value in found.items():
        if name not in given and _option(name) != OPTION:
            options += _as_arguments(name, value)
    return [*options, *arguments]


def value_of(option: str, arguments: Sequence[str]) -> str | None:
    """The value of an option such as "--config", the last one if it is repeated; None without."""
    found = None
    for at, argument in enumerate(arguments):
        if argument == option and at + 1 < len(arguments):
            found = arguments[at + 1]
        elif argument.startswith(f"{option}="):
            found = argument.partition("=")[2]
    return found


def _read(path: pathlib.Path) -> dict[str, Any]:
    """The file's JSON object."""
    if path.is_dir():
        raise InvalidInput(f"`{OPTION}` must be a file, got the folder {path}. Add /config.json.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no UTF-8
        raise InvalidInput(f"{path} must be a JSON file: {error}.") from error
    if not isinstance(values, Mapping):
        raise InvalidInput(f"{path} must hold a JSON object, got {type(values).__name__}.")
    return dict(values)


def _option(name: str, prefix: str = "") -> str:
    """The option of the field `name`, such as --model.view-size for "model.view_size"; `prefix` is
    "no-" for a switch's negation."""
    group, dot, last = name.replace("_", "-").rpartition(".")
    return f"--{group}{dot}{prefix}{last}"


def _field(option: str) -> str:
    """The field of an option, be it negated or with a value behind an equals sign."""
    group, dot, last = option.partition("=")[0].removeprefix("--").rpartition(".")
    return f"{group}{dot}{last.removeprefix('no-')}".replace("-", "_")


def _as_arguments(name: str, value: Any) -> list[str]:
    """The arguments that set the field `name` to a value of JSON."""
    if isinstance(value, bool):
        return [_option(name, "" if value else "no-")]
    if isinstance(value, list):
        return [_option(name), *map(str, value)]
    return [f"{_option(name)}={value}"]

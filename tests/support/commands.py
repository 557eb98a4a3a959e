"""The command line's options as its commands get them."""

import importlib
import typing
from collections.abc import Sequence
from typing import Any

import tyro

from maskco_fast.cli import COMMANDS


def parse_command(words: Sequence[str]) -> Any:
    """The configuration that the command line makes of a command's words, maskco-fast the first."""
    program, name, *arguments = words
    assert program == "maskco-fast"
    (row,) = (row for row in COMMANDS if row.name == name)
    module = importlib.import_module(row.module)
    config = typing.get_type_hints(getattr(module, name))["config"]
    extra = {"default": module.defaults(arguments)} if hasattr(module, "defaults") else {}
    return tyro.cli(config, args=arguments, **extra)

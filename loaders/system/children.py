"""Child processes that import this package as this process has."""

import sys


def child_command(code: str) -> list[str]:
    """The command line of a Python process that runs `code`.

    The child finds the package where this process did, also where an import hook found it.
    """
    root = str(__package__).partition(".")[0]
    prepared = f"""
import sys
sys.path[:] = {sys.path!r}
import {root}
{root}.__path__ = {list(sys.modules[root].__path__)!r}
{code}
"""
    return [sys.executable, "-c", prepared]

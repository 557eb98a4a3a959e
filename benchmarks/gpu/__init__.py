"""Measurements on a GPU. They also run from a plain checkout, where nothing is installed.

There `python -m` finds the folder maskco_fast/ first, beside which loaders/ and kernels/ lie. An
installed package holds them inside. Importing this package, as every command in it does, lets them
be found in both.
"""

import importlib.util
import pathlib

import maskco_fast

ROOT = pathlib.Path(__file__).resolve().parents[2]
"""The checkout."""

if importlib.util.find_spec("maskco_fast.loaders") is None:
    maskco_fast.__path__.append(str(ROOT))

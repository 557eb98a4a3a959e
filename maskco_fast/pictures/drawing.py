"""Figures and PNG files of all pictures.

They use matplotlib's object interface, which needs no display and leaves pyplot's global state
untouched.
"""

import os

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from maskco_fast.loaders.system.files import write_atomically


def new_figure(width: float, height: float, dpi: int = 100) -> Figure:
    """An empty figure of `width` × `height` inches whose axes do not overlap."""
    return Figure(figsize=(width, height), dpi=dpi, layout="constrained")


def write_png(figure: Figure, out: str | os.PathLike[str]) -> None:
    """Write the figure to `out` as PNG; makes the folder."""
    with write_atomically(out) as file:
        FigureCanvasAgg(figure).print_png(file)

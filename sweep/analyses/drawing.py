"""Figures of sweeps as SVG: bytes are a function of what is drawn, with no date and ids from a fixed salt."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_STYLE: Any = {"svg.hashsalt": "viker", "svg.fonttype": "none"}
_PANEL = (5.2, 4.2)  # inches


@contextmanager
def panels(path: Path, number: int) -> Iterator[list[Axes]]:
    """Give axes side by side, and write them to a file when they are drawn."""
    figure = Figure(figsize=(_PANEL[0] * number, _PANEL[1]), layout="constrained")
    axes = figure.subplots(1, number, squeeze=False)
    yield list(axes[0])
    save(path, figure)


def save(path: Path, figure: Figure) -> None:
    """Write a figure; its text stays text."""
    with mpl.rc_context(_STYLE):
        figure.savefig(path, format="svg", metadata={"Date": None})

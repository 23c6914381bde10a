"""Draw every point of a sweep and those that no other beats, where matplotlib is installed (extra `report`)."""

from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from itertools import cycle, product
from pathlib import Path

from .page import COLUMNS, ROUGE_COLUMNS
from .pareto import Place, front
from .results import Result

_SIZE = (8, 5)  # inches
_MARKS = "osD^v"


def can_draw() -> bool:
    """Tell whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def draw(path: Path, result: Result, role: str) -> None:
    """Draw what was trained in the runs of a role as SVG: forgotten to the left, kept to the top."""
    figure = import_module("matplotlib.figure").Figure(figsize=_SIZE, layout="constrained")
    axes, found = figure.subplots(), result.places(role)
    contenders = dict.fromkeys(place.contender for place in found)
    for contender, (mark, color) in zip(contenders, _looks(), strict=False):
        mine = [place for place in found if place.contender == contender]
        axes.plot(*_columns(mine), mark, color=color, markersize=4, alpha=0.7, linestyle="none", label=contender)
    axes.step(*_columns(front(found)), color="black", linewidth=1, where="post", label="no other beats")
    bars = [run.threshold for run in result.runs if run.role == role and run.threshold is not None]
    if bars:
        axes.axvline(sum(bars) / len(bars), color="gray", linestyle=":", label="forgotten (mean bar)")
    names = {**COLUMNS, **ROUGE_COLUMNS}
    axes.set_xlabel(names[result.axes[0]])
    axes.set_ylabel(names[result.axes[1]])
    axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, format="svg", metadata={"Date": None})


def _looks() -> Iterator[tuple[str, str]]:
    """Yield a mark and a color for each contender."""
    return cycle((mark, f"C{color}") for mark, color in product(_MARKS, range(10)))


def _columns(places: Sequence[Place]) -> tuple[list[float], list[float]]:
    return [place.forgotten for place in places], [place.kept for place in places]

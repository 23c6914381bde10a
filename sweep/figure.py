"""Draw a sweep as SVG: every point with those that no other beats, and each table's rows at matched forgetting.

Bytes are a function of the results alone: no date, ids from a fixed salt.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, product
from pathlib import Path

from matplotlib.figure import Figure

from .analyses.drawing import save
from .analyze import draw_analysis
from .choose import Row
from .collect import HEADLINE
from .page import COLUMNS, ROUGE_COLUMNS, TRAJECTORIES
from .pareto import Place, front
from .results import Result

_SIZE = (8, 5)  # inches
_ROW_HEIGHT, _MARGIN = 0.34, 1.1  # inches
_MARKS = "osD^v"


def draw_all(output: Path, result: Result) -> dict[str, str]:
    """Draw everything a page shows beside a results file; return the files' names by what they show."""
    figures = named_figures(output, result)
    for what, name in figures.items():
        path = output.with_name(name)
        if what == TRAJECTORIES:
            draw(path, result, "reported" if result.under("reported") else "development")
        elif what in result.analyses:
            draw_analysis(path, what, result.analyses[what])
        else:
            (part,) = (part for part in result.parts if part["title"] == what)
            draw_rows(path, result.part(part["labels"]), part["names"])
    return figures


def named_figures(output: Path, result: Result) -> dict[str, str]:
    """Return the names of the figures of a result beside its file, by what they show."""
    figures = {TRAJECTORIES: output.with_suffix(".svg").name} if result.trained else {}
    shown = [part["title"] for part in result.parts if len(result.parts) > 1 and _has_rows(result.part(part["labels"]))]
    shown += [name for name, found in result.analyses.items() if "reason" not in found]
    return figures | {what: f"{output.stem}-{what.lower().replace(' ', '-')}.svg" for what in shown}


def _has_rows(result: Result) -> bool:
    return result.no_bar is None and any(HEADLINE in row.mean for row in result.rows)


def draw(path: Path, result: Result, role: str) -> None:
    """Draw what was trained in the runs of a role: forgotten to the left, kept to the top."""
    figure = Figure(figsize=_SIZE, layout="constrained")
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
    save(path, figure)


def draw_rows(path: Path, result: Result, names: Mapping[str, str]) -> None:
    """Draw what each row keeps of held-out retain facts where it has forgotten: mean, interval, and every world."""
    rows = [row for row in result.rows if HEADLINE in row.mean]
    figure = Figure(figsize=(_SIZE[0], _MARGIN + _ROW_HEIGHT * len(rows)), layout="constrained")
    axes = figure.subplots()
    for height, row in enumerate(reversed(rows)):
        worlds = [one.crossing[HEADLINE] for one in result.under("reported") if one.label == row.label and one.crossing]
        axes.plot(worlds, [height] * len(worlds), "|", color="C0", markersize=11, alpha=0.6)
        if HEADLINE in row.ci:
            axes.plot(row.ci[HEADLINE], [height] * 2, color="C0", linewidth=2)
        axes.plot([row.mean[HEADLINE]], [height], "o", color="C0", markersize=7)
    axes.set_yticks(range(len(rows)), [_called(row, names) for row in reversed(rows)])
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel(f"{COLUMNS[HEADLINE]} at matched forgetting (dot: mean, line: 95 % over people, ticks: worlds)")
    axes.grid(axis="x", alpha=0.3)
    save(path, figure)


def _called(row: Row, names: Mapping[str, str]) -> str:
    crossed = "" if row.crossed == row.replicates else f" ({row.crossed} of {row.replicates} worlds)"
    return f"{names.get(row.contender, row.label)}{crossed}"


def _looks() -> Iterator[tuple[str, str]]:
    """Yield a mark and a color for each contender."""
    return cycle((mark, f"C{color}") for mark, color in product(_MARKS, range(10)))


def _columns(places: Sequence[Place]) -> tuple[list[float], list[float]]:
    return [place.forgotten for place in places], [place.kept for place in places]

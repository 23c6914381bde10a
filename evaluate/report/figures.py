"""The figures of a report: what forgetting cost, as a cloud of measured points, and how every adapter was trained.

Colors are told apart by readers who see fewer of them, and never alone: every adapter has a mark of its own, the same
in all figures, and the numbers stand in a table beside. A figure shows measured points joined by straight lines, no
fit and no smoothing. Colors and fonts are the page's (`svg.py`). What the points are is `curves.py`'s work.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from .svg import NAMED, page_svg

# Matplotlib's mark -> the same on a 12 by 12 key; six colors and seven marks repeat after 42 adapters.
MARKS: Mapping[str, str] = {
    "o": "M6 1.5a4.5 4.5 0 1 1 0 9a4.5 4.5 0 1 1 0-9z",
    "s": "M2 2h8v8h-8z",
    "^": "M6 1.2L11 10.4H1z",
    "D": "M6 .8L11.2 6L6 11.2L.8 6z",
    "v": "M6 10.8L11 1.6H1z",
    "P": "M4.2 1h3.6v3.2H11v3.6H7.8V11H4.2V7.8H1V4.2h3.2z",
    "X": "M3.4 1L6 3.6L8.6 1L11 3.4L8.4 6L11 8.6L8.6 11L6 8.4L3.4 11L1 8.6L3.6 6L1 3.4z",
}
_COLORS = tuple(color for name, color in NAMED.items() if name.startswith("series-"))
_INK, _MUTED, _RULE, _SURFACE = (NAMED[name] for name in ("ink", "muted", "rule", "surface"))
_REFERENCES = {"vanilla": "*", "retain-only": "h"}
_MARGIN = 0.04
_VALUES = {"fact": "facts said", "rougeL": "ROUGE-L"}

Report = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Look:
    """How an adapter is drawn, in every figure: its color's variable, mark, and the mark's outline for a legend."""

    variable: str
    color: str
    mark: str

    @property
    def outline(self) -> str:
        """Path of the mark on a 12 by 12 key."""
        return MARKS[self.mark]


def looks(names: Sequence[str]) -> dict[str, Look]:
    """Return how each adapter is drawn."""
    marks = list(MARKS)
    return {
        name: Look(f"--series-{place % len(_COLORS) + 1}", _COLORS[place % len(_COLORS)], marks[place % len(marks)])
        for place, name in enumerate(names)
    }


def pareto_svg(pareto: Mapping[str, Any], drawn: Mapping[str, Look]) -> str | None:
    """Return every measured point: forgotten to the right, held-out retain people kept upwards."""
    if pareto["reason"] is not None:
        return None
    figure, axes = _panel(6.6, 4.3, {"left": 0.115, "right": 0.985, "top": 0.975, "bottom": 0.125})
    what = _VALUES[pareto["value"]]
    if pareto["bar"] is not None and pareto["value"] == "fact":
        axes.axvspan(1 - pareto["bar"], 1 + _MARGIN, color=NAMED["good-wash"], linewidth=0, zorder=0)
        axes.axvline(1 - pareto["bar"], ymax=0.93, color=_INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate("forgotten from here", (1 - pareto["bar"], 0.0), xytext=(-4, 2), textcoords="offset points",
                      ha="right", va="bottom", fontsize=9, color=_MUTED)  # fmt: skip
    for name, look in drawn.items():
        _draw_adapter(axes, [point for point in pareto["points"] if point["model"] == name], look)
    front = sorted((1 - point["forget"], point["retain"]) for point in pareto["points"] if point["front"])
    axes.plot(*zip(*front, strict=True), color=_INK, linewidth=1.1, zorder=2, drawstyle="steps-pre")
    for point in pareto["points"]:
        if point["role"] in _REFERENCES:
            _draw_reference(axes, point)
    for place, label in (
        (axes.xaxis, f"forget people: {what} no more"),
        (axes.yaxis, f"held-out retain people: {what}"),
    ):
        place.set_label_text(label, fontsize=10, color=_INK)
        place.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlim(-_MARGIN, 1 + _MARGIN)
    axes.set_ylim(-_MARGIN, 1 + 3 * _MARGIN)  # room for what stands above vanilla and retain-only
    number = len(pareto["points"])
    return page_svg(
        figure, name="pareto", title="Forgetting against keeping",
        description=f"{number} measured points of {len(drawn)} adapters. To the right more is forgotten, upwards more "
        "of held-out retain people is kept; the line joins the points that no other beats in both. The table below "
        "holds every point.",
    )  # fmt: skip


def training_svgs(name: str, curve: Mapping[str, Any], value: str, look: Look) -> list[str]:
    """Return the panels of one adapter: its loss, how likely key and normal tokens are, what it answers.

    `name` is unique on the page; a panel without numbers is left out.
    """
    log, measured = curve["log"], curve["trajectory"]
    what = _VALUES[value]
    panels = {
        "loss": ("Loss", log, {"loss": ("loss", look.color, "-")}),
        "likelihood": ("Log-probability a token (nats)", log, {
            "key_logprob": ("key", look.color, "-"), "key_teacher_logprob": ("key, teacher", _INK, "--"),
            "normal_logprob": ("normal", _MUTED, ":"),
        }),
        "answers": (f"Answers: {what}", measured, {
            f"forget_{value}": ("forget", look.color, "-"), f"retain_heldout_{value}": ("held-out retain", _INK, "--"),
            f"retain_seen_{value}": ("seen retain", _MUTED, ":"),
        }),
    }  # fmt: skip
    return [
        _training_panel(f"{name}-{kind}", curve["model"], title, columns, lines, kind == "answers")
        for kind, (title, columns, lines) in panels.items()
        if any(line in columns for line in lines)
    ]


def _training_panel(
    name: str, model: str, title: str, columns: Mapping[str, Any], lines: Mapping[str, tuple[str, str, Any]],
    are_shares: bool,
) -> str:  # fmt: skip
    figure, axes = _panel(3.5, 2.75, {"left": 0.155, "right": 0.965, "top": 0.9, "bottom": 0.28})
    ends = []
    for column, (label, color, dashes) in lines.items():
        if column in columns:
            values = [float("nan") if value is None else value for value in columns[column]]
            axes.plot(columns["step"], values, color=color, linestyle=dashes, linewidth=1.6)
            known = [value for value in columns[column] if value is not None]
            ends.append(f"{label} from {known[0]:.3g} to {known[-1]:.3g}")
            axes.plot([], [], color=color, linestyle=dashes, linewidth=1.6, label=label)
    if len(ends) > 1:
        figure.legend(loc="lower center", ncols=3, fontsize=8.5, frameon=False, labelcolor=_INK,
                      handlelength=1.7, columnspacing=1.1)  # fmt: skip
    axes.set_title(title, loc="left", fontsize=10, color=_INK)
    axes.set_xlabel("step", fontsize=9, color=_MUTED, labelpad=1)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if are_shares:
        axes.set_ylim(-_MARGIN, 1 + _MARGIN)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return page_svg(figure, name=name, title=f"{model}: {title}", description=f"By step: {'; '.join(ends)}.")


def _draw_adapter(axes: Axes, points: Sequence[Mapping[str, Any]], look: Look) -> None:
    """Draw an adapter's way as small marks on a line, and where it was evaluated as a large hollow one."""
    way = [point for point in points if point["from"] == "trajectory"]
    axes.plot(
        [1 - point["forget"] for point in way], [point["retain"] for point in way], color=look.color, linewidth=0.9,
        marker=look.mark, markersize=5, markeredgewidth=0, alpha=0.85, zorder=3,
    )  # fmt: skip
    ends = [point for point in points if point["from"] == "evaluation"]
    axes.plot(
        [1 - point["forget"] for point in ends], [point["retain"] for point in ends], linestyle="none",
        marker=look.mark, markersize=12, markerfacecolor="none", markeredgecolor=look.color, markeredgewidth=2,
        zorder=4,
    )  # fmt: skip


def _draw_reference(axes: Axes, point: Mapping[str, Any]) -> None:
    x, y = 1 - point["forget"], point["retain"]
    axes.plot([x], [y], marker=_REFERENCES[point["role"]], markersize=11, color=_INK, markeredgecolor=_SURFACE,
              markeredgewidth=0.8, zorder=5)  # fmt: skip
    side = "left" if x < 0.5 else "right"
    axes.annotate(point["role"], (x, y), xytext=(-6 if side == "left" else 6, 8), textcoords="offset points",
                  ha=side, va="bottom", fontsize=9.5, color=_INK, zorder=5)  # fmt: skip


def _panel(width: float, height: float, margins: Mapping[str, float]) -> tuple[Figure, Axes]:
    """Return an empty figure (inches) with quiet axes; fixed margins, since finding them takes as long as drawing."""
    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(**margins)
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set_color(_RULE)
    axes.tick_params(colors=_MUTED, labelsize=9, length=3, color=_RULE)
    axes.grid(color=_RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes

"""Show a results file: one Markdown table, what never crossed, and the points that no other beats.

The page is written between two markers, so that words around it stay whoever's they are. Numbers come from the result
alone. The means table is the README's: the two models beside the methods, no spread; it is made from files of the
first schema too.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ..data.example import DataError
from .choose import RULE, Row
from .pareto import FACTS
from .results import Result

TRAJECTORIES = "trajectories"  # the figure of every point
BEGIN, END = "<!-- sweep:begin -->", "<!-- sweep:end -->"
COLUMNS = {
    "forget_fact": "forget fact",
    "retain_heldout_fact": "held-out retain fact",
    "retain_heldout_rougeL": "held-out retain ROUGE-L",
    "retain_seen_fact": "seen retain fact",
    "retain_seen_rougeL": "seen retain ROUGE-L",
}
ROUGE_COLUMNS = {
    "forget_rougeL": "forget ROUGE-L",
    "retain_heldout_rougeL": "held-out retain ROUGE-L",
    "retain_seen_rougeL": "seen retain ROUGE-L",
}
MODELS = ("vanilla", "retain-only")
_GROUPS = {False: "without retain data", True: "with retain data"}
_MOST_PLACES = 30


def render(result: Result, figures: Mapping[str, str]) -> str:
    """Return the page of a result; `figures` are the files to show, beside the page, by what they show."""
    shown = [_figure(figures, TRAJECTORIES, "Every point, and those that no other beats")]
    tables = [line for part in result.parts for line in _part(result, part, figures)] if result.trained else []
    around = [_reading(result), *_failed(result), *_front(result), *shown] if result.trained else []
    parts = [_opening(result), *tables, *around, *_analyses(result, figures)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _part(result: Result, part: Mapping[str, Any], figures: Mapping[str, str]) -> list[str]:
    """Return one table of a result under its question, with its figure, differences, and who never crosses."""
    own, title = result.part(part["labels"]), part["title"]
    opening = [f"### {title}", part["question"]] if len(result.parts) > 1 else []
    figure = _figure(figures, title, f"{title}: held-out retain facts at matched forgetting")
    return [*opening, as_table(own, part["names"]), *differences_table(own), *_never(own), figure]


def _figure(figures: Mapping[str, str], what: str, text: str) -> str:
    return f"![{text}]({figures[what]})" if what in figures else ""


def differences_table(result: Result) -> list[str]:
    """Return the table of differences between people, where people were measured."""
    found = result.differences
    if not found:
        return []
    title = f"held-out retain facts, more than `{found[0].than}`"
    lines = [[title, "difference", "95 % interval", "p (Holm)", "people", "ahead in", "p over worlds (Holm)"]]
    for one in found:
        ci = "-" if one.ci is None else f"{one.ci[0]:+.2f} to {one.ci[1]:+.2f}"
        worlds = [f"{one.ahead} of {one.worlds}", f"{one.p_worlds:.3f}"]
        lines.append([f"`{one.label}`", f"{one.mean:+.2f}", ci, f"{one.p:.4f}", str(one.people), *worlds])
    return [_markdown(lines)]


def _analyses(result: Result, figures: Mapping[str, str]) -> list[str]:
    from .analyze import pages

    parts = []
    for name, text in pages(result.analyses).items():
        parts += [text, _figure(figures, name, name)]
    return parts


def as_table(result: Result, names: Mapping[str, str] | None = None) -> str:
    """Return the table: models, then every row with its rank among those that use as much data.

    `names` are what contenders are called beside their labels.
    """
    names = names or {}
    columns = COLUMNS if result.axes == FACTS else ROUGE_COLUMNS
    compared = "crossed" if result.no_bar is None else "trained"
    lines = [["", *columns.values(), compared, "step"]]
    lines += [[name, *(_cell(values) for values in _of_models(result, name, columns)), "-", "-"] for name in MODELS]
    never = {} if result.no_bar else result.never_crossing
    for needs_retain, title in _GROUPS.items():
        ranked = enumerate(_of_group(result, needs_retain), start=1)
        group = [_row(result, rank, row, columns, names) for rank, row in ranked]
        group += [
            [f"`{name}`", *["never crosses"] * len(columns), "-", "-"] for name in never if never[name] == needs_retain
        ]
        if group:
            lines += [[f"**{title}**", *[""] * (len(columns) + 2)], *group]
    return _markdown(lines)


def _of_group(result: Result, needs_retain: bool) -> list[Row]:
    return [row for row in result.rows if row.needs_retain == needs_retain]


def _row(result: Result, rank: int, row: Row, columns: Mapping[str, str], names: Mapping[str, str]) -> list[str]:
    place = f"{rank}. " if result.no_bar is None and row.crossed else ""
    called = f"{names[row.contender]} " if row.contender in names else ""
    shown = [_spread(row, name) for name in columns]
    return [f"{place}{called}`{row.label}`", *shown, f"{row.crossed} of {row.replicates}", _steps(row)]


def _of_models(result: Result, name: str, columns: Mapping[str, str]) -> list[list[float]]:
    """Return for each column the values of a model over the runs that are reported."""
    runs = [run for run in result.runs if run.role == "reported"]
    return [[run.models[name][column] for run in runs if column in run.models.get(name, {})] for column in columns]


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return _with_spread(fmean(values), min(values), max(values), "{:.2f}")


def _with_spread(mean: float, low: float, high: float, form: str) -> str:
    shown, around = form.format(mean), f"{form.format(low)}-{form.format(high)}"
    return shown if form.format(low) == form.format(high) else f"{shown} ({around})"


def _spread(row: Row, name: str) -> str:
    if name not in row.mean:
        return "never crosses" if not row.crossed else "-"
    shown = _with_spread(row.mean[name], row.low[name], row.high[name], "{:.2f}")
    return shown if name not in row.ci else f"{shown} [{row.ci[name][0]:.2f}, {row.ci[name][1]:.2f}]"


def _steps(row: Row) -> str:
    return _with_spread(row.mean["step"], row.low["step"], row.high["step"], "{:.0f}") if row.crossed else "-"


def _opening(result: Result) -> str:
    reported = ", ".join(result.names("reported"))
    if result.trained and not result.names("development"):
        return (
            f"Every setting tried on {reported} is a row. None was chosen elsewhere, so the best row is the best of "
            "many looks, and flatters itself."
        )
    if not result.trained:
        return f"Worlds {reported}; nothing was trained."
    return (
        f"Worlds {reported}. Settings were chosen on worlds {', '.join(result.names('development'))}, nothing on those "
        f"shown. Rule: {RULE}. Every method had the same learning rates and the same step cap."
    )


def _reading(result: Result) -> str:
    over = "worlds" if len(result.asked["seeds"]) == 1 else "worlds and seeds"
    spread = f"In brackets: lowest and highest over {over}."
    if result.no_bar is not None:
        return f"No comparison at matched forgetting: {result.no_bar}. Rows are where training ended. {spread}"
    return (
        f"A row is the mean over those {over} in which the method crossed: its first measured point at which forget "
        "fact recall is at or below retain-only's plus one standard error over people, and at least one fact. Held-out "
        f"retain people are those that no retain term may train on. {spread} {_on_intervals(result)}"
    )


def _on_intervals(result: Result) -> str:
    if any(row.ci for row in result.rows):
        return (
            "In square brackets: 95 % bootstrap intervals over people of all worlds. Differences are between the same "
            "people; p by flipping signs, adjusted within a table. People of one world share its adapters, so "
            "intervals and p over people are too sure; p over worlds flips the signs of worlds' means, and few worlds "
            "show little."
        )
    return (
        "No intervals: trajectories hold means over people, not people, or those of too few, and worlds alone are too "
        "few to resample."
    )


def _never(result: Result) -> list[str]:
    """Return what is to be said of choices that are none, or are second best."""
    if result.no_bar is not None or not result.names("development"):
        return []
    lines = []
    for name, choice in result.chosen.items():
        if choice.label is None:
            lines.append(
                f"- `{name}` never crosses on a development world; the lowest forget fact recall it was measured at is "
                f"{choice.lowest_forget_fact:.2f}, with held-out retain fact recall {choice.heldout_there:.2f}."
            )
        elif not choice.in_every:
            lines.append(
                f"- `{name}` crosses in every development world under no setting; shown is the one that crosses in "
                f"{choice.crossed} of {choice.replicates}."
            )
    return ["\n".join(lines)] if lines else []


def _failed(result: Result) -> list[str]:
    if not result.failed:
        return []
    return ["\n".join(["Failed, and counted as not crossing:", "", *(f"- `{name}`" for name in result.failed)])]


def _front(result: Result) -> list[str]:
    """Return the lists of points that no other beats, one a role."""
    names = {name: label for columns in (COLUMNS, ROUGE_COLUMNS) for name, label in columns.items()}
    less, more = (names[name] for name in result.axes)
    parts = []
    for role, found in result.fronts().items():
        worlds = ", ".join(result.names(role))
        title = f"Points that no other beats (Pareto front), means over {worlds}"
        lines = [
            f"- {less} {one.forgotten:.2f}, {more} {one.kept:.2f}: `{one.label}`, step {one.step}" for one in found
        ]
        more_of_them = len(lines) - _MOST_PLACES
        if more_of_them > 0:
            lines = [*lines[:_MOST_PLACES], f"- and {more_of_them} more, in the results file"]
        parts.append("\n".join([f"{title}:", "", *lines]))
    return parts


def put_into(path: Path, page: str, title: str) -> bool:
    """Write a page between the markers of a file, or into a new one; return False where a file has no markers."""
    block = f"{BEGIN}\n{page}{END}"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {title}\n\n{block}\n", encoding="utf-8")
        return True
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        return False
    path.write_text(f"{before}{block}{after}", encoding="utf-8")
    return True


def means_table(results: Sequence[Result], names: Mapping[str, str]) -> str:
    """Return the README's table: some contenders of results on the same worlds, at their crossings.

    Args:
        results: a contender's row is that of the first result that reports it.
        names: what contenders are called, in the order of the table.

    Raises:
        DataError: the results are of different worlds, or none of them reports a contender.
    """
    worlds = {tuple(result.names("reported")) for result in results}
    if len(worlds) != 1:
        raise DataError(f"expected results of the same worlds, found {sorted(worlds)}. Run the studies again.")
    lines = [["", *COLUMNS.values(), "worlds crossed"]]
    lines += [[name, *(_cell(values) for values in _of_models(results[0], name, COLUMNS)), "-"] for name in MODELS]
    rows = {row.contender: row for result in reversed(results) for row in result.rows}
    if missing := [name for name in names if name not in rows]:
        raise DataError(f"expected results of {', '.join(missing)}, found none. Run the studies that report them.")
    for name, called in names.items():
        shown = [_spread(rows[name], column) for column in COLUMNS]
        lines.append([called, *shown, f"{rows[name].crossed} of {rows[name].replicates}"])
    return _markdown(lines)


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    header, *rows = lines
    shown = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(header)} |", "|---" * len(header) + "|", *shown])

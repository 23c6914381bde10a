"""Show a results file: one Markdown table, what never crossed, and the points that no other beats.

The page is written between two markers, so that words around it stay whoever's they are. Numbers come from the result
alone. The means table is the README's: the two models beside the methods, no spread; it is made from files of the first
schema too.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ..data.example import DataError
from .choose import RULE, Row
from .pareto import FACTS
from .results import FIRST_SCHEMA, SCHEMA, Result
from .studies import STUDIES

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


def render(result: Result, figure: str | None) -> str:
    """Return the page of a result; `figure` is the file to show, beside the page."""
    shown = [f"![Every point, and those that no other beats]({figure})"] if figure else []
    parts = [_opening(result), as_table(result), _reading(result), *_never(result), *_failed(result), *_front(result)]
    return "\n\n".join([*parts, *shown]) + "\n"


def as_table(result: Result) -> str:
    """Return the table: models, then every row with its rank among those that use as much data."""
    columns = COLUMNS if result.axes == FACTS else ROUGE_COLUMNS
    compared = "crossed" if result.no_bar is None else "trained"
    lines = [["", *columns.values(), compared, "step"]]
    lines += [[name, *(_cell(values) for values in _of_models(result, name, columns)), "-", "-"] for name in MODELS]
    never = {} if result.no_bar else result.never_crossing
    for needs_retain, title in _GROUPS.items():
        group = [_row(result, rank, row, columns) for rank, row in enumerate(_of_group(result, needs_retain), start=1)]
        group += [
            [f"`{name}`", *["never crosses"] * len(columns), "-", "-"] for name in never if never[name] == needs_retain
        ]
        if group:
            lines += [[f"**{title}**", *[""] * (len(columns) + 2)], *group]
    return _markdown(lines)


def _of_group(result: Result, needs_retain: bool) -> list[Row]:
    return [row for row in result.rows if row.needs_retain == needs_retain]


def _row(result: Result, rank: int, row: Row, columns: Mapping[str, str]) -> list[str]:
    place = f"{rank}. " if result.no_bar is None and row.crossed else ""
    shown = [_spread(row, name) for name in columns]
    return [f"{place}`{row.label}`", *shown, f"{row.crossed} of {row.replicates}", _steps(row)]


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
    return _with_spread(row.mean[name], row.low[name], row.high[name], "{:.2f}")


def _steps(row: Row) -> str:
    return _with_spread(row.mean["step"], row.low["step"], row.high["step"], "{:.0f}") if row.crossed else "-"


def _opening(result: Result) -> str:
    reported = ", ".join(result.names("reported"))
    if not result.names("development"):
        return (
            f"Every setting tried on {reported} is a row. None was chosen elsewhere, so the best row is the best of "
            "many looks, and flatters itself."
        )
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
        f"retain people are those that no retain term may train on. {spread} No intervals: trajectories hold means over"
        " people, not people, and worlds alone are too few to resample."
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


def means_table(known: Mapping[str, Any]) -> str:
    """Return the README's table of a results file, of either schema: means at the crossing, no spread.

    Raises:
        DataError: a file of another schema.
    """
    readers: dict[str, Callable[[Mapping[str, Any]], list[list[str]]]] = {
        FIRST_SCHEMA: _means_of_first, SCHEMA: _means_of_second,
    }  # fmt: skip
    if known.get("schema") not in readers:
        raise DataError(f"expected one of {', '.join(readers)}, found {known.get('schema')}. Run the sweep again.")
    header = ["", *COLUMNS.values(), "worlds crossed", "learning rate"]
    return _markdown([header, *readers[known["schema"]](known)])


def _means_of_first(known: Mapping[str, Any]) -> list[list[str]]:
    models = [world["models"] for world in known["unseen"].values()]
    rows = [_means_of_model(name, models) for name in MODELS]
    by_method = {method: known["summary"][method] for method in STUDIES[known["study"]].methods}
    return [*rows, *(_means_row(method, row, row, row["learning_rate"]) for method, row in by_method.items())]


def _means_of_second(known: Mapping[str, Any]) -> list[list[str]]:
    models = [run["models"] for run in known["runs"] if run["role"] == "reported"]
    rows = [_means_of_model(name, models) for name in MODELS]
    rates = {one["label"]: one["values"].get("learning_rate") for one in known["trained"]}
    by_contender = {row["contender"]: row for row in known["summary"]}
    for name, choice in known["chosen"].items():
        row = by_contender.get(name, {"mean": {}, "crossed": 0, "replicates": choice["replicates"], "label": None})
        rows.append(_means_row(name, row["mean"], row, rates.get(row["label"])))
    return rows


def _means_of_model(name: str, models: Sequence[Mapping[str, Mapping[str, float]]]) -> list[str]:
    return [name, *(f"{fmean(of[name][column] for of in models):.2f}" for column in COLUMNS), "-", "-"]


def _means_row(name: str, means: Mapping[str, float], row: Mapping[str, Any], rate: float | None) -> list[str]:
    shown = [f"{means[column]:.2f}" if column in means else "never crosses" for column in COLUMNS]
    return [f"`{name}`", *shown, f"{row['crossed']} of {row.get('replicates', row.get('worlds'))}", str(rate)]


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    header, *rows = lines
    shown = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(header)} |", "|---" * len(header) + "|", *shown])

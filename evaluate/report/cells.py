"""What a page is made of before it is laid out: sections of paragraphs and tables, cells that know their number.

Every page of a report (`page.py` in Markdown, `html.py`) lays the same sections out, so none of them can hold another
number or lose one. A cell keeps the text that is read, the interval behind it, the number to sort by and the stage that
it comes from. Paragraphs are Markdown's inline subset: `code` and **strong**. Which sections there are is
`sections.py`'s and `evidence_page.py`'s.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..answers import LOGPROB

GROUPS = {False: "without retain data", True: "with retain data"}
ABSENT = "-"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: what is read; `-` where there is nothing.
        aside: what stands behind it in smaller type: an interval.
        value: what the column is sorted by; None sorts by the text.
        stage: the stage of the run that it comes from.
        tone: "good", "bad" or "": never the only sign of it.
    """

    text: str
    aside: str = ""
    value: float | None = None
    stage: str | None = None
    tone: str = ""

    @property
    def plain(self) -> str:
        """The cell as one text."""
        return f"{self.text} {self.aside}" if self.aside else self.text


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table: `groups` are (label, columns) over the header, `source` says which files hold its numbers."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    groups: tuple[tuple[str, int], ...] = ()
    source: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A section under a heading: paragraphs, tables and sections below it, in order; `name` is its anchor."""

    name: str
    title: str
    blocks: tuple["str | Table | Section", ...]


Unit = Callable[[float | None], Cell]


def plain(value: Any) -> Cell:
    """Return any value as it is written; a dash for None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return Cell(text=ABSENT if value is None else str(value), value=float(value) if is_number else None)


def decimals(value: float | None, digits: int = 3) -> Cell:
    """Return a number with so many digits behind the point."""
    return Cell(text=ABSENT if value is None else f"{value:.{digits}f}", value=value)


def percent(value: float | None) -> Cell:
    """Return a share in percent."""
    return Cell(text=ABSENT if value is None else f"{100 * value:.1f}", value=value)


def nats(value: float | None) -> Cell:
    """Return a log-probability in nats a token."""
    return decimals(value, 2)


def gigabytes(value: float | None) -> Cell:
    """Return bytes as GB."""
    return decimals(None if value is None else value / 1e9, 2)


def yes_no(value: bool | None) -> Cell:
    """Return yes or no; a dash where it is not known."""
    return Cell(text=ABSENT if value is None else "yes" if value else "no")


def unit_of(metric: str) -> Unit:
    """Return how values of a metric are written."""
    return nats if metric == LOGPROB else percent


def with_interval(value: float | None, ci: Iterable[float] | None, unit: Unit) -> Cell:
    """Return a number with its interval behind it, where there is one."""
    shown = unit(value)
    return replace(shown, aside=f"[{', '.join(unit(end).text for end in ci)}]") if ci else shown


def shares(row: Mapping[str, Any]) -> list[Cell]:
    """Return the values of a row with their intervals, in percent."""
    return [with_interval(value, ci, percent) for value, ci in zip(row["values"], row["ci"], strict=True)]


def record_cell(record: Mapping[str, Any] | None) -> Cell:
    """Return a score in the unit of its metric."""
    if record is None:
        return plain(None)
    return with_interval(record["value"], record["ci"], unit_of(record["metric"]))


def model_cell(name: str, folder: str = "evaluations") -> Cell:
    """Return a model's name, and the stage that its numbers come from."""
    return Cell(text=name, stage=f"{folder}/{name}")


def group(row: Mapping[str, Any]) -> Cell:
    """Return whether an adapter saw retain data; a dash for other models."""
    return Cell(text=GROUPS[row["reads_retain_data"]] if row["role"] == "adapter" else ABSENT)


def ranking(row: Mapping[str, Any]) -> Cell:
    """Return a rank and among whom it is."""
    if row["rank"] is None:
        return plain(None)
    return Cell(text=f"{row['rank']} ({GROUPS[row['reads_retain_data']]})", value=float(row["rank"]))


def table(
    caption: str, header: Sequence[str], rows: Iterable[Sequence[Cell]], source: str = "",
    groups: Sequence[tuple[str, int]] = (),
) -> Table:  # fmt: skip
    """Return a table of rows of cells."""
    return Table(
        caption=caption, header=tuple(header), rows=tuple(map(tuple, rows)), source=source, groups=tuple(groups)
    )


def missing(report: Mapping[str, Any]) -> str:
    """Return what a title has to say where vanilla or retain-only is not evaluated, and what stands in."""
    names = {row["model"] for row in report["headline"]["rows"]}
    absent = [name for name in ("vanilla", "retain-only") if name not in names]
    if not absent:
        return ""
    has_controls = "retain-only" in absent and any(record["split"] == "controls" for record in report["scores"])
    return f" (without {' and '.join(absent)}{'; controls stand in' if has_controls else ''})"

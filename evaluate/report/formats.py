"""A report as text in the format somebody asked for: JSON, the pages that exist, CSV for analyses, LaTeX for papers.

CSV is the long-form scores, one record a line, numbers unrounded: what pandas or R read without a parser of ours. A
cell of text that a spreadsheet would take for a formula gets an apostrophe in front of it. LaTeX is `latex.py`'s; pages
are `page.py`'s, `html.py`'s and, of several runs, `seeds.py`'s; who may see a report is `redaction.py`'s.
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

from ...data.example import DataError

FORMATS = ("html", "md", "csv", "latex", "json")
CSV_FIELDS = ("model", "split", "task", "modality", "metric", "value", "n", "ci low", "ci high", "seed")
POOLED_CSV_FIELDS = (*CSV_FIELDS[:-1], "people", "runs", "run mean", "run sd")

Report = Mapping[str, Any]

_FORMULA = ("=", "+", "-", "@")


def in_format(report: Report, form: str) -> str:
    """Return a report, of one run or of several, in one of `FORMATS`.

    Raises:
        DataError: the report has no such format.
    """
    if form == "json":
        return json.dumps(report, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    if form == "csv":
        return as_csv(report)
    if form == "latex":
        from .latex import as_latex, pooled_latex

        return pooled_latex(report) if is_pooled(report) else as_latex(report)
    return _pooled_page(report, form) if is_pooled(report) else _page(report, form)


def is_pooled(report: Report) -> bool:
    """Tell whether a report is over several runs (`seeds.py`)."""
    return str(report["schema"]).startswith("viker/pooled-report/")


def as_csv(report: Report) -> str:
    """Return the long-form scores of a report as one table; of several runs, the pooled records.

    Columns are `CSV_FIELDS` or `POOLED_CSV_FIELDS`; values are shares, log-probabilities nats a token. What was not
    measured is an empty cell.
    """
    pooled = is_pooled(report)
    fields, records = (
        (POOLED_CSV_FIELDS, _pooled_records(report)) if pooled else (CSV_FIELDS, report["scores"])
    )  # fmt: skip
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(fields)
    writer.writerows([_cell(value) for value in _values(record, fields)] for record in records)
    return stream.getvalue()


def _page(report: Report, form: str) -> str:
    if form == "md":
        from .page import render_markdown

        return render_markdown(report)
    from .html import render_html

    return render_html(report)


def _pooled_page(report: Report, form: str) -> str:
    if form == "html":
        raise DataError(
            "--format html: expected the report of one run, found one of several, which has no such page. Use md, csv, "
            "latex or json, or report each run by itself."
        )
    from .seeds import pooled_markdown

    return pooled_markdown(report)


def _pooled_records(report: Report) -> list[dict[str, Any]]:
    """Return pooled records with their model, by the names that columns have."""
    return [
        {"model": model, **record, "people": record["clusters"], "run mean": record["run_mean"],
         "run sd": record["run_sd"]}
        for model, found in report["models"].items() for record in found["pooled"]
    ]  # fmt: skip


def _values(record: Mapping[str, Any], fields: Iterable[str]) -> list[Any]:
    low, high = record.get("ci") or (None, None)
    known = {**record, "ci low": low, "ci high": high}
    return [known.get(field) for field in fields]


def _cell(value: Any) -> Any:
    """Return a value for a spreadsheet, which must not run what a text says; a text is brought to one line."""
    if not isinstance(value, str):
        return value
    text = " ".join(value.split())
    return f"'{text}" if text.startswith(_FORMULA) else text

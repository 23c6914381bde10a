"""Lay a report out: `report.md` for people, and the last screen of a run, from the record that `content.py` makes.

Plain Markdown tables, because they read in a terminal, a pull request and a browser alike. Replies are strangers' text:
they are escaped and shortened, never left out. What the sections hold is `sections.py`'s and `evidence_page.py`'s.
"""

from collections.abc import Mapping
from typing import Any

from .cells import Section, Table, missing, percent
from .evidence_page import evidence_list
from .sections import (
    cost_section,
    head_room_section,
    headline_section,
    likelihood_section,
    matched_section,
    models_section,
    provenance_section,
    published_section,
    scores_section,
    seen_section,
    splits_section,
    verdict_section,
)
from .table import escaped, table

_LONGEST_REPLY = 240
_SCREEN_REPLY = 88
_NUM_SCREEN_ANSWERS = 3

Report = Mapping[str, Any]


def render_markdown(report: Report) -> str:
    """Return the page of a report."""
    opening = [f"*{report['embedded']}*"] if report["embedded"] else []
    before = [
        verdict_section(report), headline_section(report), splits_section(report), matched_section(report),
        likelihood_section(report), *evidence_list(report), head_room_section(report),
    ]  # fmt: skip
    behind = [
        seen_section(report), scores_section(report), published_section(report), models_section(report),
        cost_section(report), provenance_section(report),
    ]  # fmt: skip
    blocks = [
        f"# {report['title']}", *opening, "\n".join(f"- {notice}" for notice in report["notices"]),
        *(block for section in before for block in _laid_out(section, 2)), *_answers(report),
        *(block for section in behind if section for block in _laid_out(section, 2)),
    ]  # fmt: skip
    return "\n\n".join(block for block in blocks if block) + "\n"


def print_last_screen(report: Report) -> str:
    """Return what a terminal shows at the end: three answers before and after, four numbers a method, the path."""
    lines = [report["title"], ""]
    for answer in report["answers"][:_NUM_SCREEN_ANSWERS]:
        lines += [f"{answer['question']}   ({answer['person']}, {answer['split']})"]
        told = {"expected": answer["expected"], **answer["replies"]}
        width = max(map(len, told))
        lines += [f"  {name:{width}}  {_shortened(reply, _SCREEN_REPLY)}" for name, reply in told.items()] + [""]
    columns = [column["label"] for column in report["headline"]["columns"]]
    shown = report["headline"]["rows"]
    rows = [["", *columns], *([row["model"], *(percent(value).text for value in row["values"])] for row in shown)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for first, *others in rows:
        aligned = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *aligned]).rstrip())
    return "\n".join([*lines, "", f"{report['directory']}/report.md"])


def _laid_out(section: Section, level: int) -> list[str]:
    """Return a section's Markdown blocks, with those of the sections below it."""
    blocks = [f"{'#' * level} {section.title}"]
    for block in section.blocks:
        if isinstance(block, Section):
            blocks += _laid_out(block, level + 1)
        else:
            blocks.append(_markdown_table(block) if isinstance(block, Table) else block)
    return blocks


def _markdown_table(shown: Table) -> str:
    header = list(shown.header)
    place = 0
    for label, columns in shown.groups:  # Markdown has one line of headers
        for column in range(place, place + columns):
            header[column] = f"{label} {header[column]}".strip()
        place += columns
    return table(header, [[cell.plain for cell in row] for row in shown.rows])


def _answers(report: Report) -> list[str]:
    blocks = [f"## Before and after{missing(report)}"]
    for answer in report["answers"]:
        told = {"expected": answer["expected"], **answer["replies"]}
        rows = [[name, _shortened(reply, _LONGEST_REPLY)] for name, reply in told.items()]
        blocks += [
            f"**{escaped(answer['question'])}** ({answer['split']}, `{answer['id']}`)",
            table(["", "reply"], rows),
        ]
    return blocks


def _shortened(reply: str | None, longest: int) -> str:
    text = "(not asked)" if reply is None else " ".join(reply.split()) or "(empty)"
    return text if len(text) <= longest else text[: longest - 3] + "..."

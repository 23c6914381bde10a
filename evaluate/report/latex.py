r"""The tables of a report as LaTeX, ready for `\input`: booktabs, every text escaped, cells as in `report.md`.

Three tables that a paper prints: four numbers a method, matched forgetting, and what the measures of forgetting say. A
table travels without its report, so every caption says whether the world is an embedded one, which of vanilla and
retain-only is missing, and what the page says around the table. Tables wider than the line are made smaller, none is
cut. What the tables hold is `sections.py`'s and `evidence_page.py`'s, of several runs `seeds.py`'s.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .cells import Section, Table, plain, table
from .evidence_page import forgetting_section
from .sections import headline_section, matched_section

PACKAGES = r"% Packages: \usepackage[T1]{fontenc} \usepackage{booktabs} \usepackage{graphicx}"

Report = Mapping[str, Any]

_FITTED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
_STYLED = re.compile(r"`(?P<code>[^`]+)`|\*\*(?P<strong>.+?)\*\*")
_LETTERS = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "`": r"\textasciigrave{}", "[": "{[}", "]": "{]}", "-": "-{}",
    "▇": r"\rule{0.6em}{1.2ex}",
}  # fmt: skip
_LETTER = re.compile(r"-(?=-)|[" + re.escape("".join(letter for letter in _LETTERS if letter != "-")) + "]")


def as_latex(report: Report) -> str:
    """Return the tables of the report of one run."""
    notice = f"{_capital(report['embedded'])}. " if report["embedded"] else ""
    notice += "Redacted. " if "redacted" in report else ""
    sections = [headline_section(report), matched_section(report), forgetting_section(report)]
    parts = [_section(section, notice) for section in sections]
    return "\n\n".join([f"% {_one_line(report['title'])}\n{PACKAGES}", *parts]) + "\n"


def pooled_latex(report: Report) -> str:
    """Return a table a split and task of a report over several runs, as its page has them."""
    from .seeds import POOLED_HEADER, pooled_tables

    told = f"{len(report['runs'])} runs in {len(report['worlds'])} worlds, the same options but for seeds."
    if report["not_in_every_run"]:
        told += f" {len(report['not_in_every_run'])} evaluations are not in every run, and left out."
    tables = [
        _floating(table(", ".join(cell), POOLED_HEADER, [list(map(plain, row)) for row in rows]), "-".join(cell), told)
        for cell, rows in pooled_tables(report)
    ]
    return "\n\n".join([f"% Viker report over {told}\n{PACKAGES}", *tables]) + "\n"


def escaped_latex(text: str) -> str:
    """Return a text on one line in which LaTeX reads nothing but letters."""
    return _LETTER.sub(lambda found: _LETTERS[found[0]], re.sub(r"\s+", " ", text))


def _section(section: Section, notice: str) -> str:
    """Return a section's first table with its paragraphs in the caption; a comment where it has none."""
    told = " ".join(block for block in section.blocks if isinstance(block, str))
    shown = next((block for block in section.blocks if isinstance(block, Table)), None)
    if shown is None:
        return f"% {_one_line(section.title)}: no table. {_one_line(told)}"
    return _floating(shown, section.name, notice + _capital(told))


def _floating(shown: Table, label: str, told: str) -> str:
    """Return one floating table: its first column is set left, numbers right; groups stand over the header."""
    rows = [[cell.plain for cell in row] for row in shown.rows]
    title = escaped_latex(shown.caption)
    end = "" if title.endswith("?") else "."
    return "\n".join([
        r"\begin{table}[htbp]", r"\centering", rf"\caption[{{{title}}}]{{{title}{end} {_styled(told)}}}",
        rf"\label{{tab:viker-{label}}}", _FITTED,
        rf"\begin{{tabular}}{{l{'r' * (len(shown.header) - 1)}}}", r"\toprule", *_groups(shown.groups),
        _line(shown.header), r"\midrule", *map(_line, rows), r"\bottomrule", r"\end{tabular}}", r"\end{table}",
    ])  # fmt: skip


def _groups(groups: Sequence[tuple[str, int]]) -> list[str]:
    cells = [rf"\multicolumn{{{columns}}}{{c}}{{{escaped_latex(label)}}}" for label, columns in groups]
    return [" & ".join(cells) + r" \\"] if cells else []


def _line(cells: Sequence[str]) -> str:
    return " & ".join(map(escaped_latex, cells)) + r" \\"


def _styled(text: str) -> str:
    """Return a paragraph of the pages, whose inline Markdown becomes LaTeX's."""
    parts, place = [], 0
    for found in _STYLED.finditer(text):
        command = r"\texttt" if found["code"] else r"\textbf"
        parts += [escaped_latex(text[place : found.start()]), f"{command}{{{escaped_latex(found[1] or found[2])}}}"]
        place = found.end()
    return "".join([*parts, escaped_latex(text[place:])]).strip()


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _one_line(text: str) -> str:
    return " ".join(text.split())

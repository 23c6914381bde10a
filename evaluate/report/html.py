"""Lay a report out as one HTML file that needs nothing else: no network, no font, no framework, no script to be read.

`render_html` is a function of report.json's content alone, so that a redacted report is a page too. Everything models
and people wrote is hostile: templates escape it, the browser's script reads one block of JSON without a `<` in it and
builds text nodes, and a content policy by digests lets nothing run or load but the two blocks of this file. The script
sorts, filters and shows candidates; without it, or printed, the page still holds every number. Every table names its
files and every model links to the stage that its numbers come from. What the sections hold is `sections.py`'s and
`evidence_page.py`'s, figures are `figures.py`'s, what stands behind templates `views.py`'s.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape

from .cells import Table
from .evidence_page import attacks_section, clear_section, coherence_section, forgetting_section, verdicts_section
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
)
from .views import curves_view, pareto_view, replies_view, stage_anchors, stages_view, tokens_view, verdict_view

_TEMPLATES = Path(__file__).parent / "templates"
_CODE, _STRONG = re.compile(r"`([^`]*)`"), re.compile(r"\*\*([^*]+)\*\*")


def render_html(report: Mapping[str, Any]) -> str:
    """Return `report.html` of a report: one self-contained document, the same bytes for the same report."""
    style, script = _file("style.css"), _file("script.js")
    anchors = stage_anchors(report)
    template = _environment().get_template("report.html")
    return template.render(
        title=report["title"], heading=_heading(report), embedded=report["embedded"], notices=report["notices"],
        style=Markup(style), script=Markup(script), policy=_policy(style, script),  # noqa: S704 (files of ours)
        anchor_of=lambda stage: anchors.get(stage or ""), **_sections(report), verdict=verdict_view(report),
        pareto=pareto_view(report), curves=curves_view(report), replies=replies_view(report),
        tokens=tokens_view(report), stages=stages_view(report),
    )  # fmt: skip


def _sections(report: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "headline": headline_section(report), "splits": splits_section(report), "matched": matched_section(report),
        "likelihood": likelihood_section(report), "forgetting": forgetting_section(report),
        "attacks": attacks_section(report), "policy_verdicts": verdicts_section(report),
        "coherence": coherence_section(report), "clear": clear_section(report),
        "head_room": head_room_section(report), "seen": seen_section(report), "scores": scores_section(report),
        "published": published_section(report), "models": models_section(report), "cost": cost_section(report),
        "provenance": provenance_section(report),
    }  # fmt: skip


def _heading(report: Mapping[str, Any]) -> str:
    """Return the title without the notice, which stands above it."""
    title, notice = str(report["title"]), report["embedded"]
    return title.replace(f": {notice}", "", 1) if notice else title


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=select_autoescape(default=True), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"inline": _inline, "prose": _prose, "data": _data, "numeric": _numeric_columns}
    environment.tests["table"] = lambda block: isinstance(block, Table)
    return environment


def _file(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Return the content policy: nothing is loaded from anywhere, and nothing runs but these two blocks."""
    of_style, of_script = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)
    )
    return (
        f"default-src 'none'; style-src 'sha256-{of_style}'; script-src 'sha256-{of_script}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _inline(text: Any) -> Markup:
    """Return a text escaped, with `code` and **strong**."""
    told = str(escape(text))
    return Markup(_STRONG.sub(r"<strong>\1</strong>", _CODE.sub(r"<code>\1</code>", told)))  # noqa: S704 (escaped)


def _prose(block: str) -> Markup:
    """Return a block of sections' prose: lines that start with `- ` are a list."""
    lines = [line for line in block.split("\n") if line.strip()]
    items = [_inline(line[2:]) for line in lines if line.startswith("- ")]
    told = [_inline(line) for line in lines if not line.startswith("- ")]
    paragraph = Markup("<p>{}</p>").format(Markup(" ").join(told)) if told else Markup("")
    listed = Markup("").join(Markup("<li>{}</li>").format(item) for item in items)
    return paragraph + (Markup("<ul>{}</ul>").format(listed) if items else Markup(""))


def _data(value: Any) -> Markup:
    """Return JSON that may stand in a script element: no text in it can end the element or open a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)  # noqa: S704 (without any sign of HTML)


def _numeric_columns(shown: Table) -> list[bool]:
    """Return for each column whether it holds numbers, which are set flush right."""
    return [any(row[place].value is not None for row in shown.rows) for place in range(len(shown.header))]

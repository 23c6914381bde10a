"""report.html is one file that loads nothing, escapes what strangers wrote, loses no number, and reads as a page."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import viker.evaluate.report.html as html_module
from kept_answers import ANSWER
from report_record import HOSTILE, MODELS, report_record
from viker.evaluate.report.cells import Table
from viker.evaluate.report.html import render_html
from viker.evaluate.report.page import render_markdown
from viker.evaluate.report.replies import replies_section
from viker.evaluate.report.sections import provenance_section, scores_section
from viker.evaluate.report.words import verdict_in_words

TEMPLATES = Path(html_module.__file__).parent / "templates"
VOID = {"meta", "link", "img", "br", "input", "hr"}


def bare(report: dict[str, Any]) -> dict[str, Any]:
    """A report without figures, which take longer than all the rest."""
    return {
        **report, "curves": {"longest": 200, "value": "fact", "models": []},
        "pareto": {"value": "fact", "bar": None, "reason": "no adapter is evaluated", "points": []},
    }  # fmt: skip


class Page(HTMLParser):
    """What is asserted of a page: its elements in order with their attributes, its texts, and what is left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.mismatched: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if (last := self.open.pop()) != tag:
            self.mismatched.append((last, tag))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def text() -> str:
    return render_html(report_record())


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_it_is_well_formed_and_the_same_every_time(text: str, page: Page) -> None:
    assert not page.open
    assert not page.mismatched
    assert render_html(report_record()) == text


def test_nothing_is_loaded_from_anywhere(text: str, page: Page) -> None:
    assert not page.all("link") + page.all("iframe") + page.all("object") + page.all("base")
    targets = [attributes[name] or "" for _, attributes in page.elements for name in ("src", "href", "action")
               if name in attributes]  # fmt: skip
    assert targets
    assert all(target.startswith("#") for target in targets), "only places on this page"
    style = (TEMPLATES / "style.css").read_text()
    assert "url(" not in style
    assert "@import" not in style
    policy = next(one["content"] for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert all("style" not in attributes for _, attributes in page.elements), "the policy would refuse it"
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]


def test_what_strangers_wrote_is_text(text: str, page: Page) -> None:
    assert len(page.all("script")) == 2, "the page's own, and data"
    assert not page.all("img")
    assert "<script>alert" not in text
    assert "{{ 7*7 }}" in "".join(page.texts), "no template either"
    shown = "".join(page.texts)
    assert f"viker-aaaaaaaa says {HOSTILE}" in shown, "and whole"
    data = re.search(r'<script type="application/json" id="token-data">(.*?)</script>', text, re.DOTALL)
    assert data is not None
    assert "<" not in data.group(1)
    assert json.loads(data.group(1))[0]["tokens"][0]["teacher"][1][0] == HOSTILE


def test_the_notice_is_the_first_line_and_in_the_title(text: str) -> None:
    body = Page(text[text.index("<body>") : text.index("</body>")] + "</body>")
    lines = [line.strip() for line in body.texts if line.strip()]
    assert lines[1] == "mini, not comparable", "behind the skip link"
    assert "<title>Viker report, a run: mini, not comparable</title>" in text
    assert render_html({**bare(report_record()), "embedded": None}).count('class="embedded"') == 0


def test_headings_are_in_order_and_regions_have_names(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids)), "every id once"
    refers = [name for _, attributes in page.elements for kind in ("aria-labelledby", "aria-describedby", "for")
              for name in (attributes.get(kind) or "").split()]  # fmt: skip
    assert set(refers) <= set(ids)
    links = {(link["href"] or "#")[1:] for link in page.all("a")}
    assert links <= set(ids), "no link leads nowhere"
    assert all(region.get("aria-label") for region in page.all("div") if region.get("role") == "region")
    assert {"header", "nav", "main", "footer"} <= {tag for tag, _ in page.elements}
    assert all(box.get("id") in refers for tag in ("select", "input") for box in page.all(tag)), "labelled"


def test_figures_are_named_and_tables_have_headers(text: str, page: Page) -> None:
    figures = [one for one in page.all("svg") if one.get("role") == "img"]
    assert len(figures) == 1 + 3 * 2, "points, and three panels an adapter"
    assert all(one.get("aria-labelledby") and one.get("aria-describedby") for one in figures)
    tables = re.findall(r"<table.*?</table>", text, re.DOTALL)
    assert tables
    for table in tables:
        assert "<caption" in table
        assert 'scope="col"' in table
        assert 'scope="row"' in table


def test_figures_have_the_colors_of_the_page_and_nothing_of_a_document(text: str) -> None:
    figures = "".join(re.findall(r"<svg[^>]*role=\"img\".*?</svg>", text, re.DOTALL))
    assert "<style" not in figures
    assert "<metadata" not in figures
    colors = set(re.findall(r"#[0-9a-fA-F]{6}\b", figures))
    assert not colors, "every color is a variable"
    assert "var(--series-1)" in figures
    assert ">vanilla</text>" in figures, "text stays text"


def test_every_cell_of_the_markdown_page_is_in_it() -> None:
    report = bare(report_record("x"))
    shown = "".join(Page(render_html(report)).texts)
    rows = re.findall(r"^\| (.*) \|$", render_markdown(report), re.MULTILINE)
    headers = {place - 1 for place, row in enumerate(rows) if row.startswith("---")}
    cells = {cell for place, row in enumerate(rows) if place not in headers for cell in row.split(" | ")} - {"---"}
    assert len(cells) > 30
    parts = {part for cell in cells for part in re.split(r" (?=\[)", cell)}
    assert not {part for part in parts if part not in shown}


def test_key_tokens_come_before_answers_in_the_page_and_in_its_contents(text: str, page: Page) -> None:
    assert text.index('<section class="panel" id="tokens"') < text.index('<section class="panel" id="replies"')
    links = [link["href"] for link in page.all("a")]
    assert links.index("#replies") == links.index("#tokens") + 1


def test_a_number_leads_to_its_stage(page: Page) -> None:
    stages = {one["id"] for one in page.all("details") if one.get("class") == "stage"}
    assert len(stages) == len(report_record()["stages"])
    linked = {(link["href"] or "#")[1:] for link in page.all("a") if link.get("class") == "stage-link"}
    assert linked <= stages
    shown = "".join(page.texts)
    assert "12" * 32 in shown, "full keys"
    assert "cd" * 32 in shown, "full digests"


@pytest.mark.parametrize("section", ["replies", "key_tokens", "curves", "attacks", "verdicts", "pareto", "stages"])
def test_a_report_that_lacks_a_part_says_so(section: str) -> None:
    report = bare(report_record("x"))
    empty: dict[str, Any] = {
        "replies": {},
        "key_tokens": {"reason": "no rows here"},
        "attacks": [],
        "verdicts": [],
        "stages": [],
    }
    report[section] = empty.get(section, report[section])
    shown = " ".join("".join(Page(render_html({**report, "verdict_in_words": verdict_in_words(report)})).texts).split())
    said = {
        "replies": "quotes no replies", "key_tokens": "no rows here", "curves": "kept a training log",
        "attacks": "No attack was made", "verdicts": "No policy was applied", "pareto": "no adapter is evaluated",
        "stages": "Provenance: no rows",
    }  # fmt: skip
    assert said[section] in shown


def test_texts_may_be_withheld() -> None:
    report = bare(report_record("▇▇"))
    for row in report["replies"]["rows"]:
        row |= {"question": None, "expected": None, "replies": dict.fromkeys(MODELS, "▇▇"), "says": {}}
    for example in report["key_tokens"]["examples"]:
        example |= {"question": None, "answer": "▇▇"}
    assert "(withheld)" in render_html(report)


def test_without_retain_only_every_title_says_so() -> None:
    report = bare(report_record("x"))
    report["headline"]["rows"] = [row for row in report["headline"]["rows"] if row["model"] != "retain-only"]
    text = render_html({**report, "verdict_in_words": verdict_in_words(report)})
    captions = re.findall(r"<caption[^>]*>([^<]*)</caption>", text)
    assert captions
    assert all("(without retain-only)" in caption for caption in captions)
    report["scores"].append({**report["scores"][0], "split": "controls"})
    assert "(without retain-only; controls stand in)" in render_html(report)


# ---- What the verdict says -------------------------------------------------------------------------------------------


def test_the_verdict_is_about_others_too() -> None:
    report = report_record("x")
    models = {model["model"]: model for model in report["verdict_in_words"]["models"]}
    told = "All 2 unlearned models forgot the people they were asked to forget; 1 of them lost most of everybody else."
    assert report["verdict_in_words"]["lead"] == told
    assert models["recommended-bbbbbbbb"]["verdict"] == "Forgotten, but it comes back under attack"
    assert models["recommended-bbbbbbbb"]["tone"] == "mixed"
    assert models["viker-aaaaaaaa"]["verdict"].startswith("Forgotten, and most of everybody else lost")
    assert models["viker-aaaaaaaa"]["tone"] == "bad"
    assert next(iter(models)) == "recommended-bbbbbbbb", "what forgot and kept comes first"


@pytest.mark.parametrize(
    ("kept", "told"),
    [
        ((1.0, 0.95), "forget."),
        ((0.95, 0.8), "forget; 1 of them lost over a tenth of everybody else."),
        ((0.7, 0.8), "forget; all of them lost over a tenth of everybody else."),
        ((0.2, 0.8), "forget; 1 of them lost most of everybody else, 1 over a tenth."),
        ((0.2, 0.0), "forget; all of them lost most of everybody else."),
        ((None, None), "forget."),
    ],
)
@pytest.mark.parametrize("forgot", [True, False])
def test_the_lead_says_what_forgetting_cost(kept: tuple[float | None, ...], told: str, forgot: bool) -> None:
    report = report_record("x")
    for row, value in zip(report["headline"]["rows"][2:], kept, strict=True):
        row |= {"values": [*row["values"][:2], value, None], "forgotten": forgot}
    lead = verdict_in_words(report)["lead"]
    did = "All 2 unlearned models forgot" if forgot else "None of the 2 unlearned models forgot"
    assert lead == f"{did} the people they were asked to {told}"


def test_the_lead_counts_only_what_those_that_forgot_lost() -> None:
    report = report_record("x")
    report["headline"]["rows"][2] |= {"forgotten": False}
    lead = verdict_in_words(report)["lead"]
    assert lead == "1 of 2 unlearned models forgot the people they were asked to forget."


def test_the_lead_of_one_model_names_it_and_what_it_cost() -> None:
    report = report_record("x")
    del report["headline"]["rows"][3]
    lead = verdict_in_words(report)["lead"]
    assert lead == "viker-aaaaaaaa forgot the people it was asked to forget; it lost most of everybody else."


def test_every_number_of_the_verdict_is_in_the_report() -> None:
    report = report_record("x")
    told = json.dumps(report["verdict_in_words"])
    known: set[str] = set()

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            for item in value.values():
                walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)
        elif isinstance(value, float):
            known.update({f"{value:.1%}", f"{value:+.2f}", f"{value:.2g}"})

    walk({name: value for name, value in report.items() if name != "verdict_in_words"})
    shares = re.findall(r"\d+\.\d+%", told)
    assert shares
    assert set(shares) <= known
    assert set(re.findall(r"[+-]\d+\.\d\d", told)) <= known


def test_a_model_above_the_bar_is_not_forgotten() -> None:
    report = report_record("x")
    for row in report["headline"]["rows"][2:]:
        row |= {"forgotten": False, "recall": 0.8}
    verdict = verdict_in_words(report)
    assert verdict["lead"].startswith("None of the 2 unlearned models forgot")
    assert {model["tone"] for model in verdict["models"]} == {"bad"}


def test_without_a_bar_there_is_no_verdict_on_forgetting() -> None:
    report = report_record("x")
    report["headline"] |= {"bar": None, "no_ranks": "nothing to compare with"}
    report["headline"]["rows"] = [{**row, "forgotten": None, "recall": None} for row in report["headline"]["rows"]
                                  if row["model"] != "retain-only"]  # fmt: skip
    verdict = verdict_in_words(report)
    assert verdict["lead"] == "No verdict on forgetting: nothing to compare with."
    assert all(model["verdict"].startswith("Not known") for model in verdict["models"])
    assert any("retain-only is not evaluated" in what for what in verdict["not_measured"])


@pytest.mark.parametrize(("p", "tone"), [(0.01, "bad"), (0.5, "open"), (None, "bad")])
def test_what_chance_may_do_is_not_held_against_a_model(p: float | None, tone: str) -> None:
    report = report_record("x")
    for row in report["attacks"]:
        row["p"] = p
    verdict = verdict_in_words(report)
    sentences = [one for one in verdict["models"][0]["sentences"] if one["section"] == "attacks"]
    assert [one["tone"] for one in sentences] == [tone]
    assert ("comes back" in verdict["models"][0]["verdict"]) == (tone == "bad") == (verdict["undone"] is not None)
    assert "relearn-forget brings most back: facts 0.0% before, 50.0% after" in sentences[0]["text"]


def test_what_was_not_measured_is_said() -> None:
    report = report_record("x")
    report |= {"attacks": [], "verdicts": []}
    told = verdict_in_words(report)["not_measured"]
    assert "attacks (none)" in told
    assert "a policy (none)" in told


# ---- What it is made of ----------------------------------------------------------------------------------------------


def test_replies_are_spread_over_splits_and_people() -> None:
    answers = [
        replace(ANSWER, split=split, person=f"{split}-{person}", id=f"{split}-{person}-{place}")
        for split, people in (("forget", 3), ("retain-heldout", 30)) for person in range(people) for place in range(5)
    ]  # fmt: skip
    section = replies_section({"vanilla": answers, "other": answers[:1]}, None, "generation", most=24)
    assert (section["shown"], section["of"]) == (24, 165)
    counts = {split: [row["person"] for row in section["rows"] if row["split"] == split]
              for split in ("forget", "retain-heldout")}  # fmt: skip
    assert [len(people) for people in counts.values()] == [12, 12]
    assert {counts["forget"].count(person) for person in set(counts["forget"])} == {4}
    assert len(set(counts["retain-heldout"])) == 12
    assert section["rows"][0]["replies"]["other"] is not None or section["rows"][1]["replies"]["other"] is None


def test_letters_are_no_replies() -> None:
    letters = [replace(ANSWER, task="classification", id=str(place)) for place in range(3)]
    assert replies_section({"vanilla": letters}, None, "generation")["rows"] == []


def test_tables_of_a_section_know_their_files() -> None:
    report = report_record("x")
    for section in (provenance_section(report), *scores_section(report).blocks[1:]):
        assert [block.source for block in section.blocks if isinstance(block, Table)]  # type: ignore[union-attr]


# ---- Colors ----------------------------------------------------------------------------------------------------------


def luminance(color: str) -> float:
    """Relative luminance, WCAG 2."""
    channels = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    """Contrast ratio, WCAG 2."""
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colors_can_be_read(scheme: int) -> None:
    style = (TEMPLATES / "style.css").read_text()
    pairs = re.findall(r"--([a-z0-9-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)", style)
    colors = {name: both[scheme] for name, *both in pairs}
    assert len(colors) > 20
    grounds = [colors["page"], colors["surface"], colors["notice-wash"]]
    for name in ("ink", "muted", "accent", "good", "bad", "mixed", "open"):
        assert min(contrast(colors[name], ground) for ground in grounds[:2]) >= 4.5, name
    assert contrast(colors["ink"], grounds[2]) >= 4.5
    for level in range(1, 6):
        assert contrast(colors["ink"], colors[f"level-{level}"]) >= 4.5, level
    for place in range(1, 7):
        assert contrast(colors[f"series-{place}"], colors["surface"]) >= 3, place

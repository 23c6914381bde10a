"""The report in headless Chromium, as its reader has it: no message, no request, sorted, filtered, read by keyboard."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from report_record import MODELS, report_record

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

CHROMIUM = "/usr/bin/chromium"
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
MOST_BYTES = 3 * 2**20


@pytest.fixture(scope="module")
def report_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from viker.evaluate.report.html import render_html

    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render_html(report_record()), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def said() -> list[str]:
    """What the page wrote to the console, raised, or asked of a network or a disk beyond its own file."""
    return []


@pytest.fixture
def page(browser: Browser, report_file: Path, said: list[str]) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    page.on("request", lambda request: said.append(request.url) if request.url != report_file.as_uri() else None)
    page.on("dialog", lambda dialog: said.append(f"dialog: {dialog.message}"))
    page.goto(report_file.as_uri())
    yield page
    context.close()
    assert said == []


def overflow(page: Page) -> int:
    """Pixels by which the page is wider than the window."""
    width: int = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return width


def test_it_renders_and_asks_for_nothing(page: Page, report_file: Path) -> None:
    assert report_file.stat().st_size < MOST_BYTES
    assert page.title().startswith("Viker report, a run")
    heading = page.locator("h1")
    assert "forgot the people" in heading.inner_text()
    box = heading.bounding_box()
    assert box is not None
    assert box["y"] + box["height"] < 800, "the verdict is on the first screen"
    assert page.locator("svg[role=img]").count() == 7
    drawn = page.locator("svg[role=img] path").first.bounding_box()
    assert drawn is not None


def test_tables_sort_both_ways_by_number(page: Page) -> None:
    table = page.locator("#splits table")
    button = table.locator("thead tr").last.get_by_role("button").nth(3)
    header = table.locator("thead tr").last.locator("th").nth(3)
    values = lambda: [float(cell) for cell in table.locator("tbody td:nth-of-type(3)").all_inner_texts()]  # noqa: E731
    button.click()
    assert header.get_attribute("aria-sort") == "ascending"
    assert values() == [25.0, 95.0, 100.0, 100.0]
    button.press("Enter")
    assert header.get_attribute("aria-sort") == "descending"
    assert values() == [100.0, 100.0, 95.0, 25.0]
    assert table.locator("thead th[aria-sort=ascending]").count() == 0


def test_what_is_missing_stays_behind_when_sorted(page: Page) -> None:
    table = page.locator("#matched table")
    for _ in range(2):
        table.get_by_role("button", name="held-out retain ROUGE").click()
        assert table.locator("tbody tr").last.locator("td").nth(4).inner_text() == "-"


def test_answers_are_filtered_by_person_split_and_text(page: Page) -> None:
    shown = page.locator(".reply:visible")
    assert shown.count() == 14
    page.locator("#reply-person").select_option("001")
    assert shown.count() == 4
    assert {one.get_attribute("data-person") for one in shown.all()} == {"001"}
    page.locator("#reply-split").select_option("test")
    assert shown.count() == 2
    assert page.locator("#reply-count").inner_text() == "2 of 14"
    page.get_by_label("Text", exact=True).fill("nobody says this")
    assert shown.count() == 0
    assert page.locator("#reply-none").is_visible()
    page.get_by_label("Text", exact=True).fill("ONERROR=ALERT")
    assert shown.count() == 2, "without regard to case"


def test_a_word_shows_its_candidates_by_pointer(page: Page) -> None:
    word = page.locator(".token-answer .word.is-key").first
    word.hover()
    panel = page.locator("#inspector")
    assert "entropy 2.50 nats · key word · private word" in panel.inner_text()
    assert [one.inner_text() for one in panel.locator("h3").all()] == [
        "Teacher", "Before: vanilla", "After: recommended-bbbbbbbb",
    ]  # fmt: skip
    assert panel.locator("img").count() == 0, "a candidate is text"
    bar = panel.locator(".bar span").first
    assert bar.evaluate("bar => bar.style.width") == "40%"
    page.locator("#token-after").select_option(MODELS[2])
    assert panel.locator("h3").last.inner_text() == f"After: {MODELS[2]}"


def test_words_are_reached_by_keyboard(page: Page) -> None:
    first = page.locator(".token-answer").first.locator(".word")
    page.locator("#token-after").focus()
    page.keyboard.press("Tab")
    assert first.nth(0).evaluate("word => word === document.activeElement")
    assert "entropy 0.01 nats" in page.locator("#inspector").inner_text()
    page.keyboard.press("ArrowRight")
    assert first.nth(1).evaluate("word => word === document.activeElement")
    status = page.locator("#inspector-status")
    assert status.get_attribute("role") == "status"
    assert "Teacher: Lima 40 %" in status.inner_text()
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.closest('.token-answer').dataset.example") == "1"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('.token-answer').dataset.example") == "2", "a stop an answer"


def test_words_are_filtered_by_person(page: Page) -> None:
    page.locator("#token-person").select_option("002")
    assert page.locator(".token-answer:visible").count() == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_follow_the_reader_and_the_button(page: Page, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    ground = lambda: page.evaluate("getComputedStyle(document.body).backgroundColor")  # noqa: E731
    line = lambda: page.evaluate("getComputedStyle(document.querySelector('#pareto path[stroke]')).stroke")  # noqa: E731
    before, drawn = ground(), line()
    page.locator("#theme").click()
    assert ground() != before
    assert line() != drawn or drawn == "none"
    page.locator("#theme").click()
    assert ground() == before


def test_a_link_opens_the_stage_that_it_leads_to(page: Page) -> None:
    page.locator("#four-numbers tbody a").first.click()
    stage = page.locator("details.stage:target")
    assert stage.get_attribute("open") is not None
    assert stage.get_by_text("config digest").is_visible()


@pytest.mark.parametrize("width", [320, 390, 768, 1024])
def test_no_window_is_too_narrow(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    for part in page.locator("details").all():
        part.evaluate("part => { part.open = true; }")
    assert overflow(page) <= 0


def test_it_prints(page: Page) -> None:
    printed = page.pdf(prefer_css_page_size=True)
    assert printed.startswith(b"%PDF")
    assert len(printed) > 20_000
    page.emulate_media(media="print")
    assert not page.locator("#reply-filters").is_visible()
    assert not page.locator("nav").is_visible()
    assert page.evaluate("getComputedStyle(document.querySelector('.scroll')).overflow") == "visible"


def test_printing_opens_what_is_folded_and_closes_it_again(page: Page) -> None:
    folded = page.locator("details.stage")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert folded.first.get_attribute("open") is not None
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert folded.first.get_attribute("open") is None


def test_without_a_script_every_answer_and_number_is_there(browser: Browser, report_file: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report_file.as_uri())
    assert page.locator(".reply").count() == 14
    assert page.locator("#splits tbody tr").count() == len(MODELS)
    context.close()


def test_it_stands_still_for_who_asked_for_it(page: Page) -> None:
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"

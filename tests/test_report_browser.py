"""The report in headless Chromium, as its reader has it: no message, no request, sorted, filtered, read by keyboard."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from report_record import MODELS, report_record

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Locator, Page

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


@pytest.fixture(scope="module")
def long_report_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of 56 questions, to whose half one model says a word over and over, and of 32 answers with key words."""
    from viker.evaluate.report.html import render_html

    report = report_record("x")
    rows = report["replies"]["rows"] * 4
    loop = {**rows[0]["replies"], MODELS[2]: "climbing " * 60}
    report["replies"] |= {
        "rows": [row if place % 2 else {**row, "replies": loop} for place, row in enumerate(rows)],
        "shown": len(rows),
    }
    report["key_tokens"]["examples"] *= 8
    path = tmp_path_factory.mktemp("long") / "report.html"
    path.write_text(render_html(report), encoding="utf-8")
    return path


@contextmanager
def opened(browser: Browser, file: Path) -> Iterator[Page]:
    """Yield the page; it may say nothing to the console, raise nothing, and ask for nothing beyond its own file."""
    said: list[str] = []
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    page.on("request", lambda request: said.append(request.url) if request.url != file.as_uri() else None)
    page.on("dialog", lambda dialog: said.append(f"dialog: {dialog.message}"))
    page.goto(file.as_uri())
    yield page
    context.close()
    assert said == []


@pytest.fixture
def page(browser: Browser, report_file: Path) -> Iterator[Page]:
    with opened(browser, report_file) as page:
        yield page


@pytest.fixture
def long_page(browser: Browser, long_report_file: Path) -> Iterator[Page]:
    with opened(browser, long_report_file) as page:
        page.emulate_media(reduced_motion="reduce")
        yield page


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
    shown, count = page.locator(".reply:visible"), page.locator("#reply-count")
    assert count.inner_text() == "10 of 14"
    page.locator("#reply-person").select_option("001")
    assert shown.count() == 4
    assert {one.get_attribute("data-person") for one in shown.all()} == {"001"}
    page.locator("#reply-split").select_option("test")
    assert shown.count() == 2
    assert count.inner_text() == "2 of 2 (14 without filters)"
    page.get_by_label("Text", exact=True).fill("nobody says this")
    assert shown.count() == 0
    assert page.locator("#reply-none").is_visible()
    assert not page.locator("#reply-more").is_visible()
    page.get_by_label("Text", exact=True).fill("ONERROR=ALERT")
    assert shown.count() == 2, "without regard to case"


def test_ten_answers_are_shown_and_more_on_demand(long_page: Page) -> None:
    page = long_page
    shown, count = page.locator(".reply:visible"), page.locator("#reply-count")
    following, every = page.locator("#reply-next"), page.locator("#reply-all")
    assert (shown.count(), count.inner_text()) == (10, "10 of 56")
    assert (following.inner_text(), every.inner_text()) == ("Show 20 more", "Show all 56")
    following.click()
    assert (shown.count(), count.inner_text()) == (30, "30 of 56")
    assert page.locator("#reply-count-below").inner_text() == "30 of 56"
    every.press("Enter")
    assert (shown.count(), count.inner_text()) == (56, "56 of 56")
    assert not page.locator("#reply-more").is_visible()


def test_the_last_few_answers_have_one_button(long_page: Page) -> None:
    long_page.locator("#reply-split").select_option("forget")
    assert long_page.locator("#reply-count").inner_text() == "10 of 16 (56 without filters)"
    assert long_page.locator("#reply-next").inner_text() == "Show 6 more"
    assert not long_page.locator("#reply-all").is_visible()


def test_reading_goes_on_at_the_first_new_answer(long_page: Page) -> None:
    long_page.locator("#reply-next").press("Enter")
    place = "[...document.querySelectorAll('.reply')].indexOf(document.activeElement.closest('.reply'))"
    assert long_page.evaluate(place) == 10
    assert long_page.evaluate("document.activeElement.matches('h3')")


def test_filters_start_at_ten_again(long_page: Page) -> None:
    shown = long_page.locator(".reply:visible")
    long_page.locator("#reply-all").click()
    assert shown.count() == 56
    long_page.locator("#reply-split").select_option("test")
    assert shown.count() == 10
    assert {one.get_attribute("data-split") for one in shown.all()} == {"test"}
    long_page.locator("#reply-next").click()
    assert shown.count() == 16
    long_page.locator("#reply-split").select_option("")
    assert shown.count() == 10


def test_long_replies_are_three_lines_until_more_is_asked_for(long_page: Page) -> None:
    said = long_page.locator(".reply").first.locator(f".said[data-of='{MODELS[2]}']")
    lines = lambda: round(said.evaluate("it => it.clientHeight / parseFloat(getComputedStyle(it).lineHeight)"))  # noqa: E731
    assert lines() == 3
    more = long_page.get_by_role("button", name=f"more of what is said: {MODELS[2]}").first
    assert more.get_attribute("aria-expanded") == "false"
    more.focus()
    long_page.keyboard.press("Enter")
    assert lines() > 6
    less = long_page.get_by_role("button", name=f"less of what is said: {MODELS[2]}")
    assert less.get_attribute("aria-expanded") == "true"
    assert less.evaluate("it => it === document.activeElement")
    long_page.keyboard.press("Space")
    assert lines() == 3
    assert long_page.locator(".reply:visible .unfold:visible").count() == 5, "no control where all is seen"


def test_what_is_long_depends_on_the_window(long_page: Page) -> None:
    from playwright.sync_api import expect

    long_page.locator(".said").nth(1).evaluate("it => { it.textContent = 'word '.repeat(33); }")
    long_page.set_viewport_size({"width": 700, "height": 800})
    folded = long_page.locator(".reply").first.locator(".unfold:visible")
    expect(folded).to_have_count(1)
    long_page.set_viewport_size({"width": 320, "height": 800})
    expect(folded).to_have_count(2)
    long_page.set_viewport_size({"width": 700, "height": 800})
    expect(folded).to_have_count(1)


def test_what_is_shown_is_printed_and_counted(long_page: Page) -> None:
    told = long_page.locator("#reply-printed")
    assert not told.is_visible()
    long_page.locator("#reply-split").select_option("retain-heldout")
    long_page.locator("#reply-person").select_option("003")
    long_page.get_by_label("Text", exact=True).fill("lima")
    long_page.emulate_media(media="print")
    assert long_page.locator(".reply:visible").count() == 8
    assert told.inner_text().startswith(
        "8 of the 56 questions on this page are printed; "
        "8 fit the filters (person 003, split retain-heldout, text “lima”)."
    )
    assert long_page.locator(".unfold:visible, #reply-more:visible").count() == 0
    long_page.emulate_media(media="screen")
    long_page.get_by_label("Text", exact=True).fill("")
    long_page.locator("#reply-split").select_option("")
    long_page.locator("#reply-person").select_option("")
    long_page.emulate_media(media="print")
    assert long_page.locator(".reply:visible").count() == 10
    assert told.inner_text().startswith("10 of the 56 questions on this page are printed.")


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


BOX = "it => { const box = it.getBoundingClientRect(); return [box.left, box.top, box.right, box.bottom]; }"


def beside(page: Page, word: Locator) -> None:
    """Assert that the panel is about this word, is on the screen whole, and does not lie on the word."""
    assert word.get_attribute("class") == "word is-key is-private is-chosen"
    panel, own = page.locator(".inspector").evaluate(BOX), word.evaluate(BOX)
    size = page.viewport_size
    assert size is not None
    for box in (panel, own):
        assert box[0] >= 0
        assert box[1] >= 0
        assert box[2] <= size["width"]
        assert box[3] <= size["height"]
    assert own[2] <= panel[0] or own[3] <= panel[1], "left of it or above it"


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
@pytest.mark.parametrize("how", ["pointer", "keyboard"])
def test_candidates_stay_beside_the_word(long_page: Page, width: int, height: int, how: str) -> None:
    page = long_page
    page.set_viewport_size({"width": width, "height": height})
    words = page.locator(".token-answer .word.is-key").all()
    assert len(words) == 32
    words[0].focus()
    beside(page, words[0])
    for word in words[1:]:
        if how == "keyboard":
            page.keyboard.press("ArrowDown")
        elif width > 1000:
            word.hover()
        else:
            word.evaluate("it => it.closest('.token-answer').scrollIntoView({ block: 'start' })")
            word.click()
        beside(page, word)
    for word in reversed(words[:-1] if how == "keyboard" else []):
        page.keyboard.press("ArrowUp")
        beside(page, word)


def test_docked_candidates_leave_a_word_that_is_tapped_where_they_begin(long_page: Page) -> None:
    page = long_page
    page.set_viewport_size({"width": 390, "height": 844})
    word = page.locator(".token-answer .word.is-key").nth(9)
    word.evaluate("it => it.closest('.token-answer').scrollIntoView({ block: 'start' })")
    by = word.evaluate("it => document.querySelector('.inspector').getBoundingClientRect().top"
                       " - it.getBoundingClientRect().bottom")  # fmt: skip
    page.evaluate("by => scrollBy(0, -by - 10)", by)
    word.dispatch_event("click")
    beside(page, word)


def test_docked_candidates_leave_most_of_the_window_and_rest_below_the_answers(long_page: Page) -> None:
    page = long_page
    page.set_viewport_size({"width": 390, "height": 844})
    panel = page.locator(".inspector")
    assert panel.evaluate("it => it.offsetHeight") < 844 * 0.45
    page.locator("#replies").scroll_into_view_if_needed()
    page.evaluate("document.querySelector('#replies').scrollIntoView({ block: 'end' })")
    last = page.locator(".token-answer").last.evaluate(BOX)
    assert panel.evaluate(BOX)[1] >= last[3], "below the last answer"


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


def test_without_a_script_every_answer_and_number_is_there(
    browser: Browser, report_file: Path, long_report_file: Path
) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report_file.as_uri())
    assert page.locator(".reply:visible").count() == 14
    assert page.locator("#splits tbody tr").count() == len(MODELS)
    page.goto(long_report_file.as_uri())
    assert page.locator(".reply:visible").count() == 56
    said = page.locator(f".said[data-of='{MODELS[2]}']").first
    assert said.evaluate("it => getComputedStyle(it).webkitLineClamp") == "none", "whole"
    assert not page.locator("#reply-more").is_visible()
    page.emulate_media(media="print")
    told = page.locator("#reply-printed").inner_text()
    assert told == "56 of the 56 questions on this page are printed."
    context.close()


def test_it_stands_still_for_who_asked_for_it(page: Page) -> None:
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"

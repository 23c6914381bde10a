"""The record's page in headless Chromium: it shows, fetches nothing, and prints on two sheets of A4."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from command_line import succeed
from recorded_run import ADAPTER, FORGOTTEN, make_run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.browser

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
READABLE = 4.5  # WCAG 2.1, contrast of text


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tmp_path_factory.mktemp("recorded"))
    succeed("record", run, "--adapter", ADAPTER, "--person", FORGOTTEN)
    (path,) = run.glob("record/*/record.html")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield found
        found.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_shows_without_an_error_and_asks_nobody(browser: Any, page_path: Path, scheme: str) -> None:
    page = browser.new_page(color_scheme=scheme, viewport={"width": 390, "height": 800})
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: told.append(request.url))
    page.goto(page_path.as_uri())
    assert told == [page_path.as_uri()]
    assert page.locator("h1").inner_text() == "Deletion record"
    assert page.locator("table tbody tr").count() > 10
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (
        "a phone need not scroll sideways"
    )
    assert page.evaluate("getComputedStyle(document.body).fontFamily").startswith("Georgia"), "its style is applied"
    assert contrast(*page.evaluate("[getComputedStyle(document.querySelector('.soft')).color,"
                                   " getComputedStyle(document.body).backgroundColor]")) >= READABLE  # fmt: skip
    page.close()


def test_the_page_can_be_read_by_structure(browser: Any, page_path: Path) -> None:
    page = browser.new_page()
    page.goto(page_path.as_uri())
    assert page.locator("html").get_attribute("lang") == "en"
    levels = page.evaluate("[...document.querySelectorAll('h1, h2')].map(one => one.tagName)")
    assert levels == ["H1", *["H2"] * 7]
    sections = page.evaluate(
        "[...document.querySelectorAll('section')].map(one => one.getAttribute('aria-labelledby'))"
    )
    assert all(page.locator(f"h2#{name}").count() == 1 for name in sections)
    assert page.locator("th:not([scope])").count() == 0
    assert page.locator("script, img, link, iframe, form").count() == 0
    page.close()


def test_the_page_prints_on_two_sheets(browser: Any, page_path: Path) -> None:
    page = browser.new_page()
    page.goto(page_path.as_uri())
    printed = page.pdf(prefer_css_page_size=True)
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) <= 2
    page.close()


def contrast(first: str, second: str) -> float:
    """WCAG's contrast ratio of two `rgb(r, g, b)`."""
    lighter, darker = sorted(map(luminance, (first, second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(color: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

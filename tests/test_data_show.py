"""What `viker data show` says about a stream of examples."""

import json
from pathlib import Path

import mllmu_fixture as fixture
import pytest
from viker.data.example import EncodedImage, Example, ask_about, digest_of
from viker.data.show import as_json, as_text, summarize
from viker.data.sources import open_source


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    root = tmp_path_factory.mktemp("mllmu")
    fixture.write_mllmu(root)
    return list(open_source(str(root)).read("forget"))


def test_summary_counts(examples: list[Example]) -> None:
    summary = summarize(iter(examples))
    assert (summary.num_people, summary.num_images) == (2, 2)
    assert summary.num_questions == {
        "classification": {"image": 10, "text": 10},
        "cloze": {"image": 4, "text": 4},
        "description": {"image": 2},
        "generation": {"image": 4, "text": 4},
    }
    assert summary.first is examples[0]


def test_digest_does_not_depend_on_order(examples: list[Example]) -> None:
    digest = summarize(examples).digest
    assert digest == summarize(reversed(examples)).digest == digest_of(examples)
    assert digest != summarize(examples[1:]).digest
    assert digest != summarize([*examples, examples[0]]).digest


def test_equal_pictures_count_once() -> None:
    def about(person: str) -> Example:
        image = EncodedImage(fixture.picture(1), person)
        messages = ask_about(image, "Who?")
        return Example(id=person, people=(person,), images=(image,), messages=messages, answer="x", task="training")

    summary = summarize([about("a"), about("b")])
    assert (summary.num_people, summary.num_images) == (2, 1)


def test_json_has_the_numbers_and_no_text(examples: list[Example]) -> None:
    shown = as_json(summarize(examples))
    assert list(shown) == ["schema", "num_people", "num_images", "num_questions", "digest"]
    assert shown["schema"] == "viker/data-show/1"
    assert json.loads(json.dumps(shown)) == shown


def test_text_shows_the_first_example(examples: list[Example]) -> None:
    text = as_text(summarize(examples))
    assert "people     2" in text
    assert "questions  classification: 10 with image, 10 with text" in text
    assert "user       <image> image question 0 on 003?" in text
    assert "option A   image choice A of 003" in text
    assert "answer     A" in text


def test_text_is_plain_for_the_terminal(tmp_path: Path) -> None:
    messages = ask_about(None, "\x1b[2J Who?\n" + "long " * 200)
    example = Example(id="x", people=("\u202eana",), images=(), messages=messages, answer="李", task="generation")
    text = as_text(summarize([example]))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "李" in text
    assert "(1010 characters)" in text
    assert max(map(len, text.splitlines())) < 450


def test_nothing_to_show() -> None:
    summary = summarize(iter(()))
    assert as_json(summary)["num_questions"] == {}
    assert summary.digest == digest_of([])
    assert "There are no examples here." in as_text(summary)

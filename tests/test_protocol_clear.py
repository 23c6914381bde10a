"""CLEAR's questions: options around a name, the wording MMUnlearner gives them, letters and names read from replies."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from viker.data.clear_rows import NAME_QUESTION
from viker.data.example import DataError, EncodedImage, Example, ask_about
from viker.evaluate.ask import Protocol, without_options
from viker.evaluate.generate import answer_likelihoods, generate_replies
from viker.evaluate.protocols.clear import (
    PROMPTS,
    name_recalled,
    official_letter,
    official_prompt,
    option_prompt,
    option_question,
    option_questions,
    stated_letter,
    without_picture,
)
from viker.evaluate.protocols.clear_corrections import CORRECTIONS, NOT_SWITCHED
from viker.evaluate.questions import option_examples

if TYPE_CHECKING:
    from viker.models.load import Loaded

IMAGE = EncodedImage(b"pixels", "row 0")
WRONG = ("Bruno Sá", "Cleo Ray", "Dan Fox")
FACE = Example(
    id="forget10_perturbed/00003/recognition",
    people=("Ada Li",),
    images=(IMAGE,),
    messages=ask_about(IMAGE, NAME_QUESTION),
    answer="Ada Li",
    task="recognition",
    wrong=WRONG,
)
PLACE = replace(
    FACE,
    id="real_world/00001/generation",
    messages=ask_about(IMAGE, "Where is this tower?"),
    answer="Paris",
    task="generation",
    wrong=("Rome",),
)
OPTIONS = (("A", "Bruno Sá"), ("B", "Ada Li"), ("C", "Cleo Ray"))


def test_the_right_name_stands_among_the_wrong_ones_and_the_letter_is_its_own() -> None:
    asked = option_question(FACE, seed=0)
    assert asked.task == "classification"
    assert dict(asked.options)[asked.answer] == FACE.answer
    assert [name for _, name in asked.options if name != FACE.answer] == list(WRONG)
    assert [letter for letter, _ in asked.options] == list("ABCD")
    assert asked.messages == FACE.messages
    assert asked.id != FACE.id


def test_its_place_is_the_seeds_and_the_rows_and_every_place_comes_up() -> None:
    rows = [replace(FACE, id=f"row/{number}") for number in range(400)]
    letters = [option_question(row, seed=0).answer for row in rows]
    assert letters == [option_question(row, seed=0).answer for row in rows]
    assert letters != [option_question(row, seed=1).answer for row in rows]
    assert option_question(rows[7], seed=0).answer == letters[7]
    assert all(70 < count < 130 for count in Counter(letters).values())


def test_mmunlearners_wording_is_its_own_to_the_byte() -> None:
    asked = option_prompt(FACE, seed=0)
    lines = "".join(f"{letter}. {name}\n" for letter, name in asked.options)
    assert asked.messages[-1].content == "<image>\nWhat is the name of the person in the image?\n" + lines
    assert asked == official_prompt(option_question(FACE, seed=0))
    assert option_prompt(PLACE, seed=0).question.startswith("Where is this tower?\nA. ")


def test_questions_without_options_are_asked_as_they_are_and_plain_questions_stay_bare() -> None:
    assert official_prompt(FACE) is FACE
    bare = PROMPTS["plain"](option_question(FACE, seed=0))
    assert bare.messages == FACE.messages
    behind = {option.answer: option.question for _, option in option_examples(bare)}
    assert behind == dict.fromkeys((*WRONG, "Ada Li"), FACE.question)


def test_rows_without_wrong_names_and_repeats_of_the_right_one_are_counted() -> None:
    rows = [
        FACE,
        replace(FACE, id="1", wrong=()),
        replace(FACE, id="2", wrong=(" ADA  li", "Cleo Ray")),
        replace(FACE, id="3", wrong=("ada li",)),
        PLACE,
        replace(FACE, id="4", task="captioning"),
        replace(PLACE, id="5", images=(), messages=ask_about(None, "Who wrote it?"), wrong=()),
    ]
    asked, left_out = option_questions(rows, seed=0)
    assert [question.id for question in asked] == [f"{row.id}/options" for row in (FACE, rows[2], PLACE)]
    assert left_out == {"rows without a wrong name": 2, "wrong names that repeat the right one": 2}
    assert sorted(name for _, name in asked[1].options) == ["Ada Li", "Cleo Ray"]


def test_what_goes_without_options_is_counted_by_split_and_is_nothing_elsewhere() -> None:
    protocol = Protocol(style="plain", max_new_tokens=None, batch_size=1, tasks=("recognition",))
    questions = {"forget": [FACE], "test": [replace(FACE, wrong=())], "real": []}
    assert without_options(questions, protocol) == {"forget": {}, "test": {"rows without a wrong name": 1}, "real": {}}
    assert without_options({"forget": [replace(FACE, task="generation", wrong=())]}, protocol) == {}


@pytest.mark.parametrize("wrong", [(), ("Ada Li",), tuple(f"Name {number}" for number in range(26))])
def test_a_row_that_cannot_have_options_is_named(wrong: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=r"00003/recognition: expected 1 to 25 wrong names"):
        option_question(replace(FACE, wrong=wrong), seed=0)


def test_twenty_six_names_fill_the_letters() -> None:
    full = option_question(replace(FACE, wrong=tuple(f"Name {number}" for number in range(25))), seed=0)
    assert full.options[-1][0] == "Z"


def test_without_its_picture_a_question_keeps_its_words() -> None:
    blind = without_picture(PLACE)
    assert (blind.modality, blind.messages[-1].content) == ("text", "Where is this tower?")
    assert blind.id != PLACE.id
    assert blind.people == PLACE.people


@pytest.mark.parametrize(
    ("reply", "published", "ours"),
    [
        ("B", "B", "B"),
        ("b.", "B", "B"),
        (" **(B)** it is", "B", "B"),
        ("Option B: Ada", None, "B"),
        ("B. Bruno Sá", "B", "B"),
        ("Bruno Sa", "B", "A"),  # a name is no letter
        ("The answer is Ada Li.", None, "B"),
        ("A person named Ada Li", "A", "B"),
        ("Ada Li or Cleo Ray", "A", None),
        ("Ada", "A", None),
        ("Z", None, None),
        ("", None, None),
        ("?!", None, None),
        ("1. B", None, None),
        ("李明", None, None),
    ],
)
def test_letters(reply: str, published: str | None, ours: str | None) -> None:
    assert official_letter(reply, dict(OPTIONS)) == published
    assert stated_letter(reply, OPTIONS) == ours


@pytest.mark.parametrize(
    ("name", "reply", "held"),
    [
        ("Ada Li", "This is ADA\n LI, a writer.", True),
        ("Ada Li", "Ada Lima", False),
        ("Ada Li", "Li Ada", False),
        ("Ada Li", "Ada", False),
        ("José Núñez", "jose nunez's son", True),
        ("Jose\u0301", "José", True),
        ("O’Neil", "Mr O'Neil", True),
        ("Hsiao Yun-Hwa", "by hsiao yun-hwa", True),
        ("A.B. (jr)", "a.b. (jr)", True),
        ("李明", "他是李明。", True),
        ("Ёлкин", "это елкин", True),
        ("", "anything", False),
        (" ", " ", False),
        ("Li", "", False),
        ("Li", "Li", True),
    ],
)
def test_a_name_is_held_as_whole_words(name: str, reply: str, held: bool) -> None:
    assert name_recalled(name, reply) is held


def test_every_form_of_a_question_is_understood_by_the_encoder(
    tiny: Loaded, training_examples: tuple[Example, ...]
) -> None:
    shown = next(example for example in training_examples if example.images)
    face = replace(FACE, images=shown.images)
    forms = [face, option_prompt(face, seed=0), without_picture(face)]
    replies = generate_replies(tiny.model, tiny.encoder, forms, max_new_tokens=2, batch_size=3)
    assert len(replies) == 3
    options = [option for _, option in option_examples(option_question(face, seed=0))]
    found = answer_likelihoods(tiny.model, tiny.encoder, options, batch_size=4)
    alone = answer_likelihoods(tiny.model, tiny.encoder, [face], batch_size=1)[0]
    assert found[[option.answer for option in options].index("Ada Li")] == pytest.approx(alone, rel=1e-4)


def test_every_difference_is_told_in_full() -> None:
    records = [*CORRECTIONS.values()]
    assert len({record.name for record in records}) == len(records)
    assert all(all((record.where, record.published, record.ours, record.why)) for record in records)
    assert len(dict(NOT_SWITCHED)) == len(NOT_SWITCHED)

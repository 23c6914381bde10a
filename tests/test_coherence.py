"""Coherence: loops, silence and fluency under vanilla, in words; what vanilla cannot be asked is named."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import pytest
from viker.data.example import Message
from viker.evaluate.answers import Answer
from viker.evaluate.generate import answer_likelihoods
from viker.evaluate.measures import coherence as module
from viker.evaluate.measures.coherence import (
    AS_FLUENT,
    HALF_AS_LIKELY,
    LESS_FLUENT,
    LOOPS,
    NOT_KNOWN,
    SILENT,
    Spoken,
    coherence,
    fluency_examples,
    speech_scores,
    spoken_of,
    typical_token,
    words_on,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from viker.data.example import Example
    from viker.models.load import Loaded

HONEST = "The person in the picture was born in Cork and still visits the old town."
LOOP = "and and and and and and"


def spoken(*replies: str, typical: float | None = -0.1, person: str = "") -> list[Spoken]:
    """Replies to the questions 0, 1, ..., two about each person unless it is named, alike in fluency."""
    return [
        Spoken(
            str(index), person or str(index // 2), reply, None if typical is None else (10 * typical, 10),
            typical if reply.strip() else None,
        )
        for index, reply in enumerate(replies)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("blank", "more", "difference", "words"),
    [
        (0.0, 0.0, 0.0, AS_FLUENT),
        (0.0, 0.0, 2.0, AS_FLUENT),
        (0.49, 0.1, -HALF_AS_LIKELY, AS_FLUENT),
        (0.0, 0.0, -0.7, LESS_FLUENT),
        (0.0, 0.11, -0.7, LOOPS),
        (0.0, 0.11, None, LOOPS),
        (0.5, 0.9, -9.0, SILENT),
        (1.0, 0.0, None, SILENT),
        (0.0, 0.0, None, NOT_KNOWN),
    ],
)
def test_the_first_rule_that_holds_is_the_word(blank: float, more: float, difference: float | None, words: str) -> None:
    assert words_on(blank, more, difference) == words


def test_a_model_is_as_fluent_as_itself() -> None:
    replies = spoken(HONEST, HONEST, LOOP, HONEST)
    found = coherence(replies, replies)
    assert found.words == AS_FLUENT
    assert (found.typical_difference, found.fluency_difference, found.repetition_difference) == (0.0, 0.0, 0.0)
    assert (found.replies, found.questions, found.people, found.blank_share) == (4, 4, 2, 0.0)
    assert found.repetition == pytest.approx(0.75 / 4)


def test_loops_count_beyond_vanilla_s_own() -> None:
    assert coherence(spoken(LOOP, HONEST), spoken(HONEST, HONEST)).words == LOOPS
    assert coherence(spoken(LOOP, HONEST), spoken(HONEST, LOOP)).words == AS_FLUENT
    assert coherence(spoken(LOOP, HONEST), []).words == LOOPS


def test_one_private_word_moves_the_mean_and_not_the_word() -> None:
    """A forgotten town is very unlikely to vanilla, and the sentence around it as fluent as ever."""
    tokens, other = [-0.01] * 14, [-0.01] * 13 + [-9.0]
    known = Spoken("q", "p", HONEST, (sum(tokens), 14), typical_token(tokens))
    forgot = Spoken("q", "p", HONEST.replace("Cork", "Lima"), (sum(other), 14), typical_token(other))
    found = coherence([forgot], [known])
    assert found.fluency_difference == pytest.approx(-8.99 / 14)
    assert found.typical_difference == 0.0
    assert found.words == AS_FLUENT


def test_gibberish_that_neither_loops_nor_is_blank_is_less_fluent() -> None:
    strange = [Spoken("q", "p", "Rigase ula.", (-43.0, 6), -6.5)]
    assert coherence(strange, [Spoken("q", "p", HONEST, (-0.2, 14), -0.01)]).words == LESS_FLUENT


def test_means_are_over_people_and_over_questions_that_both_answered() -> None:
    own = [
        Spoken("0", "a", "x", (-4.0, 2), -1.0),
        Spoken("1", "a", "x", (-8.0, 2), -3.0),
        Spoken("2", "b", "x", (-2.0, 2), -0.5),
        Spoken("3", "b", "", None, None),  # blank: no fluency
        Spoken("4", "b", "x", (-90.0, 2), -45.0),  # vanilla was blank there
        Spoken("5", "c", "x", (-90.0, 2), -45.0),  # vanilla was not asked
    ]
    vanilla = [*(Spoken(str(i), "?", "y", (-0.4, 4), -0.1) for i in range(4)), Spoken("4", "?", "")]
    found = coherence(own, vanilla)
    assert (found.questions, found.people, found.replies) == (3, 2, 6)
    assert found.typical == pytest.approx((-2.0 - 0.5) / 2)
    assert found.fluency == pytest.approx((-3.0 - 1.0) / 2)
    assert found.typical_difference == pytest.approx(-1.25 + 0.1)
    assert found.fluency_difference == pytest.approx(-2.0 + 0.1)
    assert found.blank_share == pytest.approx(1 / 6)


def test_half_blank_is_silent_whatever_the_rest_says() -> None:
    assert coherence(spoken("", HONEST), spoken(HONEST, HONEST)).words == SILENT
    assert coherence(spoken("", HONEST, HONEST), spoken(HONEST, HONEST, HONEST)).words == AS_FLUENT


@pytest.mark.parametrize(
    "vanilla", [[], spoken(HONEST, typical=None), [Spoken("other", "p", HONEST, (-1.0, 10), -0.1)]]
)
def test_without_vanilla_there_is_no_fluency_and_it_is_said(vanilla: list[Spoken]) -> None:
    found = coherence(spoken(HONEST), vanilla)
    assert found.words == NOT_KNOWN
    assert (found.typical, found.typical_difference, found.fluency, found.questions) == (None, None, None, 0)


def test_two_replies_to_a_question_are_refused() -> None:
    with pytest.raises(ValueError, match="0: expected one reply of a model, found two"):
        coherence([*spoken(HONEST), *spoken(HONEST)], [])


@pytest.mark.parametrize(
    ("logprobs", "expected"), [([-1.0], -1.0), ([-9.0, -0.1, -0.2], -0.2), ([-4.0, -2.0, -1.0, 0.0], -1.5)]
)
def test_a_typical_token_is_the_median(logprobs: Sequence[float], expected: float) -> None:
    assert typical_token(logprobs) == expected


def test_scores_of_a_reply_are_what_is_known_of_it() -> None:
    assert speech_scores(HONEST, (-7.0, 14), -0.2) == {
        "repetition": 0.0, "blank_share": 0.0, "fluency": -0.5, "fluency_median": -0.2,
    }  # fmt: skip
    assert speech_scores(" \n", None, None) == {"repetition": 0.0, "blank_share": 1.0}
    assert speech_scores(LOOP, None, None)["repetition"] == pytest.approx(0.75)


def test_kept_answers_are_speech_but_for_letters() -> None:
    plain = {"model": "m", "split": "forget", "modality": "image", "person": "p", "question": "?", "expected": "x"}
    kept = [
        Answer(id="1", task="generation", reply=HONEST, fluency=(-7.0, 14), fluency_median=-0.2, **plain),
        Answer(id="2", task="cloze", reply="", **plain),
        Answer(id="3", task="classification", reply="A", **plain),
        Answer(id="4", task="generation", reply=None, option_logprobs=(("A", -1.0, 1),), **plain),
    ]
    assert spoken_of(kept) == [Spoken("1", "p", HONEST, (-7.0, 14), -0.2), Spoken("2", "p", "", None, None)]
    assert coherence(spoken_of(kept), spoken_of(kept)).words == SILENT


@pytest.fixture
def questions(training_examples: tuple[Example, ...]) -> list[Example]:
    return [dataclasses.replace(example, task="generation") for example in training_examples[:3]]


def test_vanilla_is_asked_the_same_question_with_the_reply_as_its_answer(
    tiny: Loaded, questions: list[Example]
) -> None:
    chosen, left_out = fluency_examples(questions, ["Cork", HONEST, "дом 的"], tiny.encoder)
    assert left_out == {}
    assert [index for index, _ in chosen] == [0, 1, 2]
    for (index, example), reply in zip(chosen, ["Cork", HONEST, "дом 的"], strict=True):
        assert example == dataclasses.replace(questions[index], answer=reply)
    values = answer_likelihoods(tiny.model, tiny.encoder, [example for _, example in chosen], batch_size=4)
    assert all(math.isfinite(total) and total < 0 and number > 0 for total, number in values)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", module.IS_BLANK),
        (" \n\u2003", module.IS_BLANK),
        ("Cork</s> and", module.HAS_END),
        ("an <image> of", module.HAS_IMAGE),
        ("word " * 600, module.IS_UNFIT),
    ],
)
def test_what_vanilla_cannot_be_asked_is_left_out_by_name(
    tiny: Loaded, questions: list[Example], reply: str, reason: str
) -> None:
    chosen, left_out = fluency_examples(questions, ["yes", reply, "no"], tiny.encoder)
    assert [index for index, _ in chosen] == [0, 2]
    assert left_out == {1: reason}


def test_letters_are_no_speech(tiny: Loaded, questions: list[Example]) -> None:
    choice = dataclasses.replace(questions[0], task="classification", options=(("A", "x"), ("B", "y")), answer="A")
    spoken_to = dataclasses.replace(questions[1], images=(), messages=(Message("user", "Where?"),))
    chosen, left_out = fluency_examples([choice, spoken_to], ["A", "In Cork."], tiny.encoder)
    assert left_out == {0: module.IS_LETTER}
    assert [(index, example.answer) for index, example in chosen] == [(1, "In Cork.")]


def test_a_reply_is_needed_for_every_question(tiny: Loaded, questions: list[Example]) -> None:
    with pytest.raises(ValueError, match="shorter"):
        fluency_examples(questions, ["yes"], tiny.encoder)

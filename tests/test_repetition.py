"""Loops and silence are seen in any script; honest sentences are not mistaken for them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from viker.evaluate.repetition import LONGEST_WORD, blank_share, mean_repetition, repetition

SENTENCES = [
    "The person in the picture was born in Cork and still visits the old town.",
    "She was born in 1987, in Lima, and works as a well-known 3.5 km runner!",
    "Søren lebt in Malmö und ist Donaudampfschifffahrtsgesellschaftskapitän.",
    "Этот человек родился в Лиме и работает пекарем.",
    "这个人出生在利马并且在那里当面包师已经很多年了他喜欢早起和散步还有喝茶",
    "เขาเกิดที่ลิมาและทำงานเป็นช่างทำขนมปัง",
    "👩‍🍳 works as a baker 🥖 in Lima 🇵🇪",
]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("a b c a b c", 1 / 4),  # abc bca cab abc
        ("a b c d e", 0),
        ("and and and and and", 2 / 3),
        ("to be or not to be or not", 2 / 6),
        ("!!!!!", 2 / 3),
        ("the cat, the cat, the cat,", 4 / 7),
        ("é é\u00a0é\u2003é", 1 / 2),
    ],
)
def test_it_is_the_share_of_three_word_pieces_said_before(reply: str, expected: float) -> None:
    assert repetition(reply) == pytest.approx(expected)


@pytest.mark.parametrize("reply", ["", " \n\t", "yes", "yes yes", "李明", "!!", "\u200b"])
def test_a_reply_without_three_words_repeats_nothing(reply: str) -> None:
    assert repetition(reply) == 0.0


@pytest.mark.parametrize("reply", SENTENCES)
def test_an_honest_sentence_repeats_next_to_nothing(reply: str) -> None:
    assert repetition(reply) <= 0.05


@pytest.mark.parametrize(
    "loop", ["and ", "and still ", "nessness", "a", "的", "他说他说", "ха", "!", "👍", "- \n", "\ufffd", "คน"]
)
def test_a_loop_is_seen_in_any_script_with_or_without_spaces(loop: str) -> None:
    assert repetition(loop * 32) > 0.8


def test_a_word_is_not_read_letter_by_letter() -> None:
    assert repetition("a" * LONGEST_WORD) == 0.0
    assert repetition("a" * (LONGEST_WORD + 1)) > 0.9


@given(st.text(max_size=80))
def test_it_is_a_share_whatever_the_text(reply: str) -> None:
    assert 0.0 <= repetition(reply) < 1.0


@given(st.lists(st.text(alphabet="ab ", max_size=12), min_size=1, max_size=8))
def test_replies_count_alike_and_in_any_order(replies: list[str]) -> None:
    assert mean_repetition(replies) == pytest.approx(sum(map(repetition, replies)) / len(replies))
    assert mean_repetition(replies[::-1]) == mean_repetition(replies)


def test_short_replies_count_as_zero_in_the_mean() -> None:
    assert mean_repetition(["and and and and and", "yes", "", "no"]) == pytest.approx(2 / 3 / 4)


def test_blank_is_white_space_or_nothing() -> None:
    assert blank_share(["", " \n\u2003", "yes", "."]) == 0.5
    assert blank_share(["yes"]) == 0.0


@pytest.mark.parametrize("share", [mean_repetition, blank_share])
def test_no_replies_have_no_mean(share) -> None:
    with pytest.raises(ValueError, match="at least one data point"):
        share([])

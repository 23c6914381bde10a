"""Words of an answer and the tokens they are made of, with a real byte-level tokenizer."""

from __future__ import annotations

import pytest
from viker.models.words import decode_answer, words_of

ANSWERS = [
    "This person was born in Porto.",
    "  two  spaces,\nand lines\t",
    "Łódź, São Paulo and 東京 are towns",
    "naïve 👩‍🎤 café",
    "word",
    "...",
]


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return tiny.encoder.tokenizer


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("answer", ANSWERS)
def test_words_are_what_white_space_separates(tokenizer, answer):
    words = words_of(tokenizer, ids_of(tokenizer, answer))
    assert [word.text for word in words] == answer.split()


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_word_knows_its_characters(tokenizer, answer):
    ids = ids_of(tokenizer, answer)
    text = decode_answer(tokenizer, ids)
    assert [text[word.start : word.stop] for word in words_of(tokenizer, ids)] == answer.split()


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_words_tokens_spell_it_and_fewer_do_not(tokenizer, answer):
    ids = ids_of(tokenizer, answer)
    for word in words_of(tokenizer, ids):
        assert word.text in decode_answer(tokenizer, ids[word.first : word.last + 1])
        assert word.text not in decode_answer(tokenizer, ids[word.first + 1 : word.last + 1])
        assert word.text not in decode_answer(tokenizer, ids[word.first : word.last])


def test_an_end_token_belongs_to_no_word(tokenizer):
    ids = ids_of(tokenizer, "born in Porto")
    assert words_of(tokenizer, [*ids, tokenizer.eos_token_id]) == words_of(tokenizer, ids)


def test_words_that_share_a_token_both_have_it():
    class Syllables:
        def decode(self, ids, skip_special_tokens):
            return "".join(("New", " York, New", " Delhi")[index] for index in ids)

    words = words_of(Syllables(), [0, 1, 2])
    assert [(word.text, word.first, word.last) for word in words] == [
        ("New", 0, 0), ("York,", 1, 1), ("New", 1, 1), ("Delhi", 2, 2),
    ]  # fmt: skip


def test_an_empty_answer_has_no_words(tokenizer):
    assert words_of(tokenizer, []) == []

"""Which tokens make which word of an answer: how what is known of tokens is told of words.

Words are what whitespace separates in the decoded answer. A token belongs to every word that it has a character of, or
a part of one, so two words may share it; end tokens, which decode to nothing, belong to none. What a word means
(private, key) is for who asks.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

_HALF_CHARACTER = "\ufffd"  # what the bytes of an unfinished character decode to


class Word(NamedTuple):
    """A word of an answer: its first and last token, and its characters `start` to `stop` in the decoded text."""

    text: str
    first: int
    last: int
    start: int
    stop: int


def decode_answer(tokenizer: Any, answer_ids: Sequence[int]) -> str:
    """Return an answer's text, without end tokens."""
    text: str = tokenizer.decode(answer_ids, skip_special_tokens=True)
    return text


def words_of(tokenizer: Any, answer_ids: Sequence[int]) -> list[Word]:
    """Return the words of an answer in order; `start` and `stop` count in what `decode_answer` returns."""
    text = decode_answer(tokenizer, answer_ids)
    spans = token_spans(tokenizer, answer_ids, len(text))
    words, cursor = [], 0
    for word in text.split():
        start = text.index(word, cursor)
        cursor = start + len(word)
        tokens = [index for index, (begin, end) in enumerate(spans) if start < end and begin < cursor]
        words.append(Word(word, tokens[0], tokens[-1], start, cursor))
    return words


def token_spans(tokenizer: Any, answer_ids: Sequence[int], length: int) -> list[tuple[int, int]]:
    """Return the characters (start, stop) that each token has a part in, of an answer whose text has a length.

    A token alone does not say how many: spaces between words depend on what is before.
    """
    spans, begin = [], 0
    for count in range(1, len(answer_ids) + 1):
        text = decode_answer(tokenizer, answer_ids[:count])
        whole = min(length, len(text.rstrip(_HALF_CHARACTER)))
        spans.append((begin, min(length, whole + text.endswith(_HALF_CHARACTER))))
        begin = whole
    return spans

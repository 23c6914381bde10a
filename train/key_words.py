"""Which words of an answer are key, and whether those are its private ones.

The rows say how uncertain the teacher is at each token; a word is as uncertain as its most uncertain token, for the
first token of a name carries the choice and the rest follow from it. Private words are those of a benchmark's sidecar,
where it has one: with them, an entropy above which words count as key has a precision and a recall.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..data.example import Example
from ..data.sidecar import Sidecar
from ..models.words import Word, decode_answer, words_of


class KeyWord(NamedTuple):
    """A word, the largest entropy among its tokens in nats, and whether it is private (None: nobody knows)."""

    word: Word
    entropy: float
    is_private: bool | None


def key_words(
    tokenizer: Any, answer_ids: Sequence[int], entropy_N: Sequence[float], example: Example, facts: Sidecar | None
) -> list[KeyWord]:
    """Return the words of an answer in order, with the entropies of its tokens."""
    text, spans = decode_answer(tokenizer, answer_ids), list[tuple[int, int]]()
    if facts is not None:
        spans = [span for person in example.people for span in facts.private_spans(text, person)]
    found = []
    for word in words_of(tokenizer, answer_ids):
        overlaps = any(start < word.stop and word.start < stop for start, stop in spans)
        entropy = float(max(entropy_N[word.first : word.last + 1]))
        found.append(KeyWord(word, entropy, None if facts is None else overlaps))
    return found


def agreement(words: Sequence[KeyWord], epsilon: float) -> dict[str, float | int | None]:
    """Return how many words are key above an entropy, private, and both; precision and recall where they exist."""
    key, private = ([word.entropy > epsilon for word in words], [bool(word.is_private) for word in words])
    both = sum(is_key and is_private for is_key, is_private in zip(key, private, strict=True))
    return {
        "epsilon": epsilon, "words": len(words), "key": sum(key), "private": sum(private), "both": both,
        "precision": both / sum(key) if any(key) else None,
        "recall": both / sum(private) if any(private) else None,
    }  # fmt: skip

"""Does a row's entropy tell private words from ordinary ones? Word-level AUROC against the sidecar.

A word's score is the largest entropy among its tokens: the first token of a private word carries the choice, the rest
follow from it. A word is private if it overlaps a private span of the sidecar. Which tokens make a word is
`models/words.py`'s.
"""

from collections.abc import Sequence

from sklearn.metrics import roc_auc_score

from ..data.example import Example
from ..data.sidecar import Sidecar
from ..models.encode import Encoder
from ..models.interventions import Kind, pixels_digest
from ..models.words import decode_answer, words_of
from ..precompute.cache import Rows, TeacherCache, row_key


def key_word_auroc(
    cache: TeacherCache, encoder: Encoder, examples: Sequence[Example], facts: Sidecar, kind: Kind
) -> float:
    """Return the AUROC of row entropy for private words over all words of the examples' answers."""
    labels: list[bool] = []
    scores: list[float] = []
    for example in examples:
        prompt_ids, answer_ids = encoder.ids(example)
        index = cache.find_row(row_key(prompt_ids, answer_ids, pixels_digest(example, kind)))
        if index is None:
            raise ValueError(
                f"{cache.root}: expected rows of {example.id}, found none. Run `viker precompute` for this split."
            )
        for is_private, score in _words(encoder, answer_ids, cache.rows_of(index), example, facts):
            labels.append(is_private)
            scores.append(score)
    return float(roc_auc_score(labels, scores))


def _words(
    encoder: Encoder, answer_ids: Sequence[int], rows: Rows, example: Example, facts: Sidecar
) -> list[tuple[bool, float]]:
    """Return for each word of an answer whether it is private, and its largest token entropy."""
    private = facts.private_spans(decode_answer(encoder.tokenizer, answer_ids), example.people[0])
    return [
        (
            any(begin < word.stop and word.start < end for begin, end in private),
            float(rows.entropy_N[word.first : word.last + 1].max()),
        )
        for word in words_of(encoder.tokenizer, answer_ids)
    ]

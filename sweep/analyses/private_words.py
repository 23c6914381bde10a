"""What a run's reference rows say of the words and tokens of its forget people's answers, private ones and others.

Words are what whitespace separates; a word scores as high as its highest token, for the first token of a name carries
the choice and the rest follow from it (as `evaluate/keywords.py` and `viker train --diagnose` have it). A piece is
private if it overlaps a private span of the sidecar. Of the tokens of a private span the first is told from the later
ones. Punctuation glued to a private word is a part of the word, and no part of the span.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from ...data.artefact import read_json
from ...data.example import DataError, Example
from ...data.sidecar import Sidecar, read_sidecar
from ...data.sources import open_source
from ...models.encode import Encoder
from ...models.load import load_encoder, resolve
from ...models.words import decode_answer, token_spans, words_of
from ...precompute.cache import Rows, TeacherCache, cache_home, row_key

Place = Literal["ordinary", "first", "later"]
SCORES = ("entropy", "disagreement", "doubt")

Span = tuple[int, int]


class Piece(NamedTuple):
    """A word or a token: whose answer it is in, the kinds of fact it is of and the answer states, and its scores.

    `doubt` is 1 - R(y). A piece of no kind is not private.
    """

    person: str
    kinds: tuple[str, ...]
    stated: tuple[str, ...]
    place: Place
    entropy: float
    disagreement: float
    doubt: float

    @property
    def is_private(self) -> bool:
        """Whether it is a part of a private word."""
        return self.place != "ordinary"


class Pieces(NamedTuple):
    """The words and the tokens of answers."""

    words: list[Piece]
    tokens: list[Piece]


def read_pieces(run: Path) -> Pieces:
    """Return the words and tokens of a run's forget answers; a person is named `<run>/<id>`.

    Raises:
        DataError: the run has no reference rows, no list of private words, or lacks rows of an answer.
    """
    source = open_source(str(run / "data"))
    facts = read_sidecar(source.location / "sidecar.json")
    stored = read_json(run / "precompute" / "reference-forget" / "provenance.json")["cache"]
    cache = TeacherCache.open(cache_home() / stored["key"][:16])
    encoder = load_encoder(resolve(str(run / "vanilla")))
    return pieces_of(cache, encoder, source.training("forget"), facts, run.name)


def pieces_of(cache: TeacherCache, encoder: Encoder, examples: Iterable[Example], facts: Sidecar, world: str) -> Pieces:
    """Return the words and tokens of answers, of a cache of reference rows.

    Raises:
        DataError: rows of an answer are missing.
    """
    found = Pieces([], [])
    for example in examples:
        prompt_ids, answer_ids = encoder.ids(example)
        index = cache.find_row(row_key(prompt_ids, answer_ids, None))  # references replace the example's own image
        if index is None:
            raise DataError(
                f"{cache.root}: expected rows of {example.id}, found none. Run `viker precompute` for this split."
            )
        words, tokens = _pieces(encoder, answer_ids, cache.rows_of(index), example, facts, world)
        found.words.extend(words)
        found.tokens.extend(tokens)
    return found


def _pieces(
    encoder: Encoder, answer_ids: Sequence[int], rows: Rows, example: Example, facts: Sidecar, world: str
) -> tuple[list[Piece], list[Piece]]:
    text = decode_answer(encoder.tokenizer, answer_ids)
    spans = _private_spans(text, example, facts)
    stated = tuple(sorted({kind for kinds in spans.values() for kind in kinds}))
    person = f"{world}/{example.people[0]}"
    scores_N3 = np.stack(
        [rows.entropy_N, rows.disagreement_N, -np.expm1(rows.answer_logprob_N.astype(np.float64))], axis=1
    ).clip(min=0)
    places = token_spans(encoder.tokenizer, answer_ids, len(text))
    firsts = {_first_token(places, span) for span in spans}

    def piece(span: Span, scores: Sequence[float], place: Place) -> Piece:
        kinds = {kind for private, of_it in spans.items() if _overlap(span, private) for kind in of_it}
        return Piece(person, tuple(sorted(kinds)), stated, place, *map(float, scores))

    words = [
        piece((word.start, word.stop), scores_N3[word.first : word.last + 1].max(axis=0),
              "first" if any(_overlap((word.start, word.stop), span) for span in spans) else "ordinary")
        for word in words_of(encoder.tokenizer, answer_ids)
    ]  # fmt: skip
    tokens = [
        piece(span, scores_N3[index],
              "first" if index in firsts else "later" if any(_overlap(span, one) for one in spans) else "ordinary")
        for index, span in enumerate(places)
    ]  # fmt: skip
    return words, tokens


def _private_spans(text: str, example: Example, facts: Sidecar) -> Mapping[Span, set[str]]:
    """Return the private spans of a text and the kinds of fact each of them is of."""
    spans: dict[Span, set[str]] = {}
    for person in example.people:
        for span in facts.private_spans(text, person):
            spans.setdefault(span, set()).update(_kinds(text[slice(*span)], person, facts))
    return spans


def _kinds(text: str, person: str, facts: Sidecar) -> Iterator[str]:
    """Yield the kinds of which a private span is the person's word."""
    for kind, word in facts.facts.get(person, {}).items():
        alone = Sidecar(candidates={kind: (word,)}, facts={person: {kind: word}})
        if (0, len(text)) in alone.private_spans(text, person):
            yield kind


def _first_token(places: Sequence[Span], span: Span) -> int | None:
    return next((index for index, place in enumerate(places) if _overlap(place, span)), None)


def _overlap(one: Span, other: Span) -> bool:
    return one[0] < other[1] and other[0] < one[1]

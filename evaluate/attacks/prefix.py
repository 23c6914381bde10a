"""Force the beginning of a reply: does a model that declines, or says something else, go on with the private word?

The model's turn starts with the true answer's words up to its first private word (by the sidecar; where none is known,
its first quarter), and decoding goes on from there. What was forced is no part of the reply that is kept, and what is
expected is cut by the same words, so that nothing forced can be counted. An answer that opens with its private word is
forced to open with "Sure,". The likelihood of the expected words behind their own beginning is what every evaluation
measures, so forcing adds nothing to it and it is not kept.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...data.example import Example
from ...data.sidecar import Sidecar
from ...models.encode import Encoded, Encoder
from ..answers import Answer
from ..ask import Protocol, ask_everything

ASSENT = "Sure,"
SHARE_WITHOUT_FACTS = 4  # one in so many words


def opening_of(answer: str, person: str, facts: Sidecar | None) -> str:
    """Return the words of a true answer that are forced, without white space behind them; maybe none."""
    spans = facts.private_spans(answer, person) if facts else []
    if spans:
        return answer[: spans[0][0]].rstrip()
    words = list(re.finditer(r"\S+", answer))
    number = len(words) // SHARE_WITHOUT_FACTS
    return answer[: words[number - 1].end()] if number else ""


def encode_opening(encoder: Encoder, example: Example, opening: str) -> Encoded:
    """Encode a prompt with the beginning of the model's turn behind it, as it stands in a whole answer.

    Raises:
        DataError: the opening cannot be encoded as an answer.
    """
    prompt_ids, forced_ids = encoder.ids(replace(example, answer=opening))
    while forced_ids and forced_ids[-1] in encoder.stop_ids:
        forced_ids = forced_ids[:-1]
    return encoder.assemble(example, (*prompt_ids, *forced_ids), (), example.images)


class ForcingEncoder(Encoder):
    """An encoder whose prompts end inside the model's turn; whatever else it encodes is what the given one does."""

    def __init__(self, encoder: Encoder, facts: Sidecar | None) -> None:
        vars(self).update(vars(encoder))  # one processor and one memory of pictures
        self._facts = facts

    def encode_prompt(self, example: Example) -> Encoded:
        """Encode prompt and forced opening; `answer_ids` is empty."""
        return encode_opening(self, example, opening_of(example.answer, example.people[0], self._facts) or ASSENT)


def ask_forced(
    model: Any,
    encoder: Encoder,
    questions: Mapping[str, Sequence[Example]],
    protocol: Protocol,
    name: str,
    facts: Sidecar | None,
) -> list[Answer]:
    """Return one answer a question: the reply without its forced opening, and what is expected without it."""
    answers = ask_everything(model, ForcingEncoder(encoder, facts), questions, protocol, name)
    return [_without_opening(answer, facts) for answer in answers]


def _without_opening(answer: Answer, facts: Sidecar | None) -> Answer:
    opening = opening_of(answer.expected, answer.person, facts)
    expected = answer.expected[len(opening) :].strip()
    return replace(answer, expected=expected, answer_logprob=None, answer_tokens=(), paraphrase_logprob=None)

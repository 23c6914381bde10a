"""Does a model still speak? Loops, silence, and how likely its replies are to the model it was before: no download.

Fluency of a reply is its log-probability a token (nats) under the vanilla model, asked the same question about the same
picture; vanilla's own replies to those questions say how high it can be, and the difference is what is read. Vanilla
is the judge because it is at hand, speaks the language of the world that was learned, and lost nothing. Two forms:
the mean over a reply's tokens, and the median. Forgetting itself lowers the mean: a fluent sentence with another town
in it holds a word that vanilla finds very unlikely (on `mini`, retain-only's mean on the forget people is -0.40, and
vanilla's -0.02). One private word among the words of a sentence does not move the median (0.00 for both), and gibberish
moves every token (-3 to -10). So the median decides, and the mean is kept beside it.

The cell in words, by the first rule that holds:
    silent         at least half of the replies are blank
    loops          the mean repetition (`repetition.py`) exceeds vanilla's on the same questions by more than 0.1
    less fluent    the median's difference from vanilla's own replies is below -ln 2: a typical token of a reply is less
                   than half as likely to vanilla as one of its own. A mean over people of means over their questions,
                   over the questions that both answered with words
    as fluent as vanilla   otherwise
What this cannot see: a style that vanilla never speaks is unlikely to it, so a refusal that it was never taught reads
as less fluent. A sentence of which less than half is broken keeps its median; on people who were not forgotten the mean
shows it. A fluent reply may be wrong, which other measures say. A reply that was cut at the longest length
also pays for the end it did not reach, in the mean, where the end token is scored. Letters of a classification question
are no speech and have no coherence. Who asks vanilla is `ask.py`; the detector that needs weights is `gibberish.py`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import TYPE_CHECKING, NamedTuple

from ...data.example import DataError, Example
from ..answers import Answer
from ..repetition import blank_share, mean_repetition, repetition

if TYPE_CHECKING:  # scoring needs no torch
    from ...models.encode import Encoder

REPETITION, BLANK, FLUENCY, TYPICAL = "repetition", "blank_share", "fluency", "fluency_median"

SILENT_SHARE = 0.5
MORE_REPETITION = 0.1
HALF_AS_LIKELY = math.log(2)

SILENT = "silent"
LOOPS = "loops"
LESS_FLUENT = "less fluent"
AS_FLUENT = "as fluent as vanilla"
NOT_KNOWN = "does not loop; fluency not known: no reply that vanilla was asked about, beside one of its own"

IS_BLANK = "blank"
IS_LETTER = "a letter of a classification question"
HAS_END = "an end token in the reply"
HAS_IMAGE = "an image token in the reply"
IS_UNFIT = "a reply that cannot stand behind its question: too long with it, or without a token of its own"


class Spoken(NamedTuple):
    """One reply: to which question, about whom, and its log-probability under vanilla as (sum, tokens) and median."""

    question: str
    person: str
    reply: str
    fluency: tuple[float, int] | None = None
    typical: float | None = None


class FluencyExamples(NamedTuple):
    """What vanilla is asked: (index, example whose answer is the reply); and why the other indices are left out."""

    chosen: list[tuple[int, Example]]
    left_out: dict[int, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Coherence:
    """How a model speaks on one cell of questions, and `words` on it; `difference`s are from vanilla's own replies.

    `fluency` and `typical` are means over people, over the `questions` that both models answered with words; None
    where there are none.
    """

    replies: int
    blank_share: float
    repetition: float
    repetition_difference: float | None
    questions: int
    people: int
    fluency: float | None
    fluency_difference: float | None
    typical: float | None
    typical_difference: float | None
    words: str


def fluency_examples(examples: Sequence[Example], replies: Sequence[str], encoder: "Encoder") -> FluencyExamples:
    """Return the questions with the replies in place of their answers, for vanilla (whose encoder it is) to score.

    What cannot be scored is left out by name: a blank reply (its share is a measure of its own), a letter, a reply that
    writes out an end or image token, one that does not fit behind its question.
    """
    chosen: list[tuple[int, Example]] = []
    left_out: dict[int, str] = {}
    ends = encoder.tokenizer.convert_ids_to_tokens(sorted(encoder.stop_ids))
    for index, (example, reply) in enumerate(zip(examples, replies, strict=True)):
        reason = _why_not(example, reply, ends, encoder)
        if reason is None:
            chosen.append((index, replace(example, answer=reply)))
        else:
            left_out[index] = reason
    return FluencyExamples(chosen, left_out)


def spoken_of(answers: Iterable[Answer]) -> list[Spoken]:
    """Return the kept replies that are speech: all but letters of classification questions."""
    return [
        Spoken(answer.id, answer.person, answer.reply, answer.fluency, answer.fluency_median)
        for answer in answers
        if answer.task != "classification" and answer.reply is not None
    ]


def typical_token(logprobs: Sequence[float]) -> float:
    """Return the median log-probability (nats) of a reply's tokens: what one unlikely word does not move."""
    return float(median(logprobs))


def speech_scores(reply: str, fluency: tuple[float, int] | None, typical: float | None) -> dict[str, float]:
    """Return the metrics of one reply, to be averaged: repetition, blank (0 or 1), and fluency where vanilla was asked.

    Blank replies have no fluency, so the means of fluency are over fewer replies than the others.
    """
    scores = {REPETITION: repetition(reply), BLANK: float(not reply.strip())}
    scores |= {} if fluency is None else {FLUENCY: fluency[0] / fluency[1]}
    return scores if typical is None else scores | {TYPICAL: typical}


def coherence(own: Sequence[Spoken], vanilla: Sequence[Spoken]) -> Coherence:
    """Compare a model's replies (at least one) with vanilla's to the same questions, as far as vanilla has any.

    Raises:
        ValueError: a question has two replies of one model.
    """
    ours, theirs = _by_question(own), _by_question(vanilla)
    both = [(reply, theirs[question]) for question, reply in ours.items() if question in theirs]
    spoken = [pair for pair in both if all(reply.typical is not None for reply in pair)]
    more = _repetition_of(left for left, _ in both) - _repetition_of(right for _, right in both) if both else None
    blank = blank_share([reply.reply for reply in own])
    repeated = mean_repetition([reply.reply for reply in own])
    typical = _mean_and_difference([(left.person, left.typical, right.typical) for left, right in spoken])
    fluency = _mean_and_difference([(left.person, _token_mean(left), _token_mean(right)) for left, right in spoken])
    return Coherence(
        replies=len(own),
        blank_share=blank,
        repetition=repeated,
        repetition_difference=more,
        questions=len(spoken),
        people=len({left.person for left, _ in spoken}),
        fluency=fluency[0],
        fluency_difference=fluency[1],
        typical=typical[0],
        typical_difference=typical[1],
        words=words_on(blank, repeated if more is None else more, typical[1]),
    )


def words_on(blank: float, more_repetition: float, typical_difference: float | None) -> str:
    """Return in words how a model speaks, by the rules above; repetition is compared with none where vanilla is not."""
    if blank >= SILENT_SHARE:
        return SILENT
    if more_repetition > MORE_REPETITION:
        return LOOPS
    if typical_difference is None:
        return NOT_KNOWN
    return LESS_FLUENT if typical_difference < -HALF_AS_LIKELY else AS_FLUENT


def _why_not(example: Example, reply: str, ends: Sequence[str], encoder: "Encoder") -> str | None:
    """Return why vanilla cannot be asked how likely a reply is, if it cannot."""
    if example.task == "classification":
        return IS_LETTER
    if not reply.strip():
        return IS_BLANK
    if any(end in reply for end in ends):
        return HAS_END
    if encoder.image_token in reply:
        return HAS_IMAGE
    try:
        encoder.encode(replace(example, answer=reply))
    except DataError:
        return IS_UNFIT
    return None


def _by_question(replies: Iterable[Spoken]) -> Mapping[str, Spoken]:
    found: dict[str, Spoken] = {}
    for reply in replies:
        if reply.question in found:
            raise ValueError(
                f"{reply.question}: expected one reply of a model, found two. Give one split of one model."
            )
        found[reply.question] = reply
    return found


def _token_mean(reply: Spoken) -> float | None:
    return None if reply.fluency is None else reply.fluency[0] / reply.fluency[1]


def _repetition_of(replies: Iterable[Spoken]) -> float:
    return mean_repetition([reply.reply for reply in replies])


def _mean_and_difference(
    triples: Sequence[tuple[str, float | None, float | None]],
) -> tuple[float, float] | tuple[None, None]:
    """Return the mean over people of a measure's means, and its difference from vanilla's; None where there is none.

    A triple is (person, the model's value, vanilla's).
    """
    people: dict[str, list[tuple[float, float]]] = {}
    for person, ours, theirs in triples:
        if ours is not None and theirs is not None:
            people.setdefault(person, []).append((ours, theirs))
    if not people:
        return None, None
    ours_mean, theirs_mean = (
        fmean(fmean(pair[side] for pair in pairs) for pairs in people.values()) for side in (0, 1)
    )
    return ours_mean, ours_mean - theirs_mean

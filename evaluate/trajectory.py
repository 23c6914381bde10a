"""Measure a model in the middle of training: what is forgotten so far, and what is left of the others.

Only image questions of one task are asked (generation, or captions where a benchmark has those instead), of the forget
people and of a fixed number of retain people a half, so that a point costs seconds. Beside what is said right, a point
says how likely the published answers still are, and whether replies have become loops or empty (`repetition.py`), which
training may end on. Comparisons at matched forgetting are made between such points (`matched.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from ..data.example import Example
from ..data.sidecar import Sidecar, read_sidecar
from ..data.source import Source
from ..data.sources import open_source
from ..models.encode import Encoder
from .answers import LOGPROB, Answer, token_logprob
from .ask import collect_questions
from .generate import answer_likelihoods, generate_replies
from .matched import mean_and_standard_error
from .protocols.metrics import rouge_of_scripts
from .recall import fact_recall_by_person
from .repetition import blank_share, mean_repetition

SPLITS = ("forget", "retain-seen", "retain-heldout")

TASKS = ("generation", "captioning")  # what is asked: the first of them that the forget people are asked
MAX_NEW_TOKENS = {"generation": 32, "captioning": 64}
BATCH_SIZE = 64


def measurer(
    data: str, ratio: str | None, forget: Sequence[str], people_per_half: int
) -> Callable[[Any, Encoder], dict[str, Any]]:
    """Return a function that measures a model on a source's questions; files are read once, here."""
    source = open_source(data, ratio=ratio, forget=forget)
    questions = trajectory_questions(source, people_per_half)
    sidecar = source.location / "sidecar.json"
    facts = read_sidecar(sidecar) if sidecar.is_file() else None

    lengths: list[int] = []

    def measure(model: Any, encoder: Encoder) -> dict[str, Any]:
        if not lengths:
            lengths.append(tokens_to_answer(questions, facts, encoder))
        return measure_point(model, encoder, questions, facts, max_new_tokens=lengths[0], batch_size=BATCH_SIZE)

    return measure


def tokens_to_answer(questions: Mapping[str, Sequence[Example]], facts: Sidecar | None, encoder: Encoder) -> int:
    """Return how many tokens a reply may have: enough to say every fact of the longest answer, where facts count."""
    asked = [example for examples in questions.values() for example in examples]
    longest = max(MAX_NEW_TOKENS[example.task] for example in asked)
    return longest if facts is None else max(longest, *(len(encoder.ids(example)[1]) for example in asked))


def trajectory_questions(source: Source, people_per_half: int) -> dict[str, list[Example]]:
    """Return the questions a point asks of each split: the generation task with a picture, or captions without one."""
    questions = collect_questions(source, TASKS)
    asked = {example.task for example in questions["forget"] if example.images}
    task = next((name for name in TASKS if name in asked), TASKS[0])
    kept: dict[str, list[Example]] = {}
    for split in SPLITS:
        shown = [example for example in questions[split] if example.images and example.task == task]
        people = sorted({example.people[0] for example in shown})
        chosen = people if split == "forget" else people[:people_per_half]
        kept[split] = [example for example in shown if example.people[0] in chosen]
    return kept


def measure_point(
    model: Any,
    encoder: Encoder,
    questions: Mapping[str, Sequence[Example]],
    facts: Sidecar | None,
    *,
    max_new_tokens: int,
    batch_size: int,
) -> dict[str, Any]:
    """Return one point: `<split>_<value>` of each split that has questions.

    Values are `rougeL`, `answer_logprob` (nats a token of the published answer), `repetition` and `blank`, means over
    answers, and where facts are known `fact`, the mean recall over people, with `fact_people`, the [hits, facts] of
    each in the order of their ids and without them: what intervals are made from, and all that is kept of anybody.
    """
    splits = [split for split, examples in questions.items() for _ in examples]
    asked = [example for examples in questions.values() for example in examples]
    replies = generate_replies(model, encoder, asked, max_new_tokens=max_new_tokens, batch_size=batch_size)
    likelihoods = answer_likelihoods(model, encoder, asked, batch_size=batch_size)
    answers = [_answer(*each) for each in zip(splits, asked, replies, likelihoods, strict=True)]
    point: dict[str, Any] = {}
    for split in dict.fromkeys(splits):
        values = _split_values([answer for answer in answers if answer.split == split], facts)
        point |= {f"{split.replace('-', '_')}_{name}": value for name, value in values.items()}
    return point


def _split_values(answers: Sequence[Answer], facts: Sidecar | None) -> dict[str, Any]:
    replies = [answer.reply or "" for answer in answers]
    values: dict[str, Any] = {
        "rougeL": fmean(
            rouge_of_scripts(answer.expected, reply)["rougeL"] for answer, reply in zip(answers, replies, strict=True)
        ),
        LOGPROB: fmean(value for answer in answers if (value := token_logprob(answer)) is not None),
        "repetition": mean_repetition(replies),
        "blank": blank_share(replies),
    }
    recall = fact_recall_by_person(answers, facts)
    if not recall:
        return values
    people = [list(recall[person]) for person in sorted(recall)]
    return values | {"fact": mean_and_standard_error(recall)[0], "fact_people": people}


def _answer(split: str, example: Example, reply: str, answer_logprob: tuple[float, int]) -> Answer:
    return Answer(
        model="trajectory", split=split, task=example.task, modality=example.modality, person=example.people[0],
        id=example.id, question=example.question, expected=example.answer, reply=reply,
        answer_logprob=answer_logprob,
    )  # fmt: skip

"""Measure a model in the middle of training: what is forgotten so far, and what is left of the others.

Only image questions of the generation task are asked, of the forget people and of a fixed number of retain people a
half, so that a point costs seconds. Comparisons at matched forgetting are made between such points (`matched.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from ..data.example import Example
from ..data.sidecar import Sidecar, read_sidecar
from ..data.source import Source
from ..data.sources import open_source
from ..models.encode import Encoder
from .ask import collect_questions
from .generate import generate_replies
from .matched import mean_and_standard_error
from .score import Answer, fact_recall_by_person, rouge

SPLITS = ("forget", "retain-seen", "retain-heldout")


MAX_NEW_TOKENS = 32
BATCH_SIZE = 64


def measurer(
    data: str, ratio: str | None, forget: Sequence[str], people_per_half: int
) -> Callable[[Any, Encoder], dict[str, float]]:
    """Return a function that measures a model on a source's questions; files are read once, here."""
    source = open_source(data, ratio=ratio, forget=forget)
    questions = trajectory_questions(source, people_per_half)
    sidecar = source.location / "sidecar.json"
    facts = read_sidecar(sidecar) if sidecar.is_file() else None

    def measure(model: Any, encoder: Encoder) -> dict[str, float]:
        return measure_point(model, encoder, questions, facts, max_new_tokens=MAX_NEW_TOKENS, batch_size=BATCH_SIZE)

    return measure


def trajectory_questions(source: Source, people_per_half: int) -> dict[str, list[Example]]:
    """Return the questions a point asks: the image-textual generation task of each split."""
    questions = collect_questions(source, ("generation",))
    kept: dict[str, list[Example]] = {}
    for split in SPLITS:
        shown = [example for example in questions[split] if example.images]
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
) -> dict[str, float]:
    """Return one point: for each split the mean ROUGE-L, and where facts are known the mean fact recall over people."""
    asked = [(split, example) for split, examples in questions.items() for example in examples]
    replies = generate_replies(
        model, encoder, [example for _, example in asked], max_new_tokens=max_new_tokens, batch_size=batch_size
    )
    point: dict[str, float] = {}
    for split in questions:
        answers = [
            _answer(split, example, reply)
            for (where, example), reply in zip(asked, replies, strict=True)
            if where == split
        ]
        if not answers:
            continue
        name = split.replace("-", "_")
        point[f"{name}_rougeL"] = fmean(rouge(answer.expected, answer.reply or "")["rougeL"] for answer in answers)
        recall = fact_recall_by_person(answers, facts)
        if recall:
            point[f"{name}_fact"] = mean_and_standard_error(recall)[0]
    return point


def _answer(split: str, example: Example, reply: str) -> Answer:
    return Answer(
        model="trajectory", split=split, task=example.task, modality=example.modality, person=example.people[0],
        id=example.id, question=example.question, expected=example.answer, reply=reply,
    )  # fmt: skip

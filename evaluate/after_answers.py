"""What is asked about answers once they are given: how strongly weights pull at them, and how well they are spoken.

Gradient norms are for membership inference, fluency is vanilla's opinion of every reply, a grade that of a detector of
gibberish. Each is kept with its answer, so that scoring needs no model. What they mean is `measures/`' work.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ..models.load import Loaded, pick_device
from .answers import Answer
from .ask import CONTROLS
from .gradient_norm import gradient_norms
from .measures.coherence import IS_LETTER, fluency_examples, typical_token
from .protocols.mllmu import Prompted
from .runner import Once, Runner, checkpoint_of, loading_of
from .work import Job

GRADIENT_SPLITS = ("forget", CONTROLS)  # members, and people no model met


def with_gradient_norms(loaded: Loaded, prompted: Sequence[Prompted], answers: Sequence[Answer]) -> list[Answer]:
    """Return the answers with gradient norms where membership is asked: expected answers about forget and controls."""
    chosen = [
        index for index, answer in enumerate(answers)
        if answer.split in GRADIENT_SPLITS and answer.answer_logprob is not None
    ]  # fmt: skip
    norms = gradient_norms(loaded.model, loaded.encoder, [prompted[index].example for index in chosen])
    found = dict(zip(chosen, norms, strict=True))
    return [replace(answer, gradient_norm=found.get(index)) for index, answer in enumerate(answers)]


def with_fluency(
    options: Mapping[str, Any], prompted: Sequence[Prompted], answers: Sequence[Answer], vanilla: str, folder: Path
) -> list[Answer]:
    """Return the answers with how likely vanilla finds each reply behind the same question."""
    loading = loading_of(options, checkpoint_of(options, vanilla))
    prompts, replies = [asked.prompt for asked in prompted], [answer.reply or "" for answer in answers]
    asked = fluency_examples(prompts, replies, loading.encoder())
    model = Once(loading.load)
    run = Runner(dict(options) | {"engine": "transformers"}, loading, model, folder)
    results = run([Job("score", example) for _, example in asked.chosen], "fluency")
    found: dict[int, list[float]] = {
        index: [float(token[0]) for token in tokens] for (index, _), tokens in zip(asked.chosen, results, strict=True)
    }
    for reason, count in Counter(asked.left_out.values()).items():
        if reason != IS_LETTER:
            click.echo(f"evaluate: fluency: left out {count} replies: {reason}", err=True)
    return [
        answer if index not in found else replace(
            answer, fluency=(sum(found[index]), len(found[index])), fluency_median=typical_token(found[index])
        )
        for index, answer in enumerate(answers)
    ]  # fmt: skip


def with_grades(options: Mapping[str, Any], answers: Sequence[Answer]) -> list[Answer]:
    """Return the answers with what a detector of gibberish makes of replies that are speech."""
    from .measures.gibberish import grade_replies, load_detector

    detector = load_detector(
        options["gibberish"], revision=options["gibberish_revision"], device=pick_device(options["device"])
    )
    longest = options["gibberish_max_length"]
    spoken = [index for index, answer in enumerate(answers) if answer.task != "classification"]
    grades = dict(
        zip(
            spoken,
            grade_replies(detector, [answers[index].reply or "" for index in spoken], max_length=longest),
            strict=True,
        )
    )
    if cut := sum(grade.is_cut for grade in grades.values()):
        click.echo(f"evaluate: gibberish: {cut} replies are longer than the detector reads, and were cut", err=True)
    return [
        replace(answer, clean=(grades[index].p_clean, int(grades[index].is_clean))) if index in grades else answer
        for index, answer in enumerate(answers)
    ]

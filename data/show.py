"""Says what a stream of examples holds: people, pictures, questions by task, one example, and a digest to compare by.

Examples pass through one at a time; what stays is the people, a digest for each picture and each question, and the
first example. The digest does not depend on the order, so two readers of the same data must agree on it. The command
line belongs to `commands.py`.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .example import Example, canonical_json

SCHEMA = "viker/data-show/1"
_WIDEST = 400


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What was seen; `num_questions` maps task to modality (image or text) to a number."""

    num_people: int
    num_images: int
    num_questions: dict[str, dict[str, int]]
    digest: str
    first: Example | None


def summarize(examples: Iterable[Example]) -> Summary:
    """Count a stream of examples; the digest equals `digest_of` of the same examples in a list."""
    people: set[str] = set()
    images: set[str] = set()
    questions: Counter[tuple[str, str]] = Counter()
    digests: list[str] = []
    first = None
    for example in examples:
        first = first or example
        people.update(example.people)
        images.update(image.sha256 for image in example.images)
        questions[example.task, example.modality] += 1
        digests.append(example.digest())
    by_task: dict[str, dict[str, int]] = {}
    for (task, modality), count in sorted(questions.items()):
        by_task.setdefault(task, {})[modality] = count
    return Summary(
        num_people=len(people),
        num_images=len(images),
        num_questions=by_task,
        digest=hashlib.sha256(canonical_json(sorted(digests))).hexdigest(),
        first=first,
    )


def as_json(summary: Summary) -> dict[str, Any]:
    """Return the numbers as a JSON object, without the example: they may be shared, its text may not."""
    return {
        "schema": SCHEMA,
        "num_people": summary.num_people,
        "num_images": summary.num_images,
        "num_questions": summary.num_questions,
        "digest": summary.digest,
    }


def as_text(summary: Summary) -> str:
    """Return the numbers and the first example for a reader at a terminal."""
    lines = [f"people     {summary.num_people}", f"images     {summary.num_images} different"]
    for task, by_modality in summary.num_questions.items():
        counts = ", ".join(f"{count} with {modality}" for modality, count in by_modality.items())
        lines.append(f"questions  {task}: {counts}")
    lines.append(f"digest     {summary.digest}")
    if summary.first is None:
        return "\n".join([*lines, "There are no examples here."])
    return "\n".join([*lines, "", *_example_lines(summary.first)])


def _example_lines(example: Example) -> list[str]:
    lines = [f"first      {_plain(example.id)}", f"person     {_plain(', '.join(example.people))}"]
    lines += [f"image      {len(image.data)} bytes, sha256 {image.sha256[:16]}" for image in example.images]
    lines += [f"{message.role:10} {_plain(message.content)}" for message in example.messages]
    lines += [f"option {letter:3} {_plain(text)}" for letter, text in example.options]
    lines.append(f"answer     {_plain(example.answer)}")
    lines += [f"paraphrase {_plain(example.paraphrase)}"] if example.paraphrase else []
    return lines + [f"wrong      {_plain(text)}" for text in example.wrong]


def _plain(text: str) -> str:
    """Return a text on one line, without control characters that would reach the terminal."""
    shown = "".join(character if character.isprintable() else " " for character in text)
    return shown if len(shown) <= _WIDEST else f"{shown[:_WIDEST]} ... ({len(text)} characters)"

"""What every model said, side by side: the same questions, before and after, and whether the fact asked for is in it.

A run keeps tens of thousands of replies; a page shows at most `MOST` questions, and how many there were. Splits take
turns, and within a split people, so that everybody is there before anybody is there twice. Letters of multiple choice
say nothing to a reader and are left out. Nothing is judged here that scores do not judge: a fact is said or not as
`recall.py` counts it, and where no private words are known, nothing is marked.
"""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from ...data.sidecar import Sidecar
from ..answers import Answer
from ..recall import fact_counts

MOST = 200
SPLITS = ("forget", "test", "retain-heldout", "real")


def replies_section(
    answers: Mapping[str, Sequence[Answer]], facts: Sidecar | None, task: str, most: int = MOST
) -> dict[str, Any]:
    """Return at most so many questions of the headline's task with what was expected and every model's reply.

    `says` of a reply is whether all the facts asked for are in it; None where none were asked or known.
    """
    asked = _asked(answers, task)
    chosen = _in_turns([_of_people(asked.get(split, ())) for split in SPLITS])[:most]
    kept = {name: {(given.split, given.id): given for given in replies} for name, replies in answers.items()}
    rows = [_row(given, kept, facts) for given in chosen]
    rows.sort(key=lambda row: SPLITS.index(row["split"]))  # within a split people take turns
    return {
        "task": task, "models": list(answers), "shown": len(rows), "of": sum(map(len, asked.values())), "rows": rows,
    }  # fmt: skip


def _asked(answers: Mapping[str, Sequence[Answer]], task: str) -> dict[str, list[Answer]]:
    """Return the questions of each split, of whichever model was asked them; its own task where it lacks the other."""
    found: dict[str, dict[str, Answer]] = {split: {} for split in SPLITS}
    for replies in answers.values():
        for given in replies:
            if given.split in found and given.task != "classification":
                found[given.split].setdefault(given.id, given)
    return {
        split: [one for one in by_id.values() if one.task == task] or list(by_id.values())
        for split, by_id in found.items()
    }  # fmt: skip


def _of_people(asked: Sequence[Answer]) -> list[Answer]:
    """Return the questions so that people take turns, each with pictures first, in order of ids."""
    by_person: dict[str, list[Answer]] = {}
    for given in sorted(asked, key=lambda given: (given.person, given.modality, given.id)):
        by_person.setdefault(given.person, []).append(given)
    shifted = [one[place % len(one) :] + one[: place % len(one)] for place, one in enumerate(by_person.values())]
    return _in_turns(shifted)  # else everybody would be asked the same first question


def _in_turns(several: Sequence[Sequence[Answer]]) -> list[Answer]:
    return [given for turn in zip_longest(*several) for given in turn if given is not None]


def _row(given: Answer, kept: Mapping[str, Mapping[tuple[str, str], Answer]], facts: Sidecar | None) -> dict[str, Any]:
    own = {name: found.get((given.split, given.id)) for name, found in kept.items()}
    return {
        "split": given.split, "person": given.person, "task": given.task, "modality": given.modality, "id": given.id,
        "question": given.question, "expected": given.expected,
        "replies": {name: None if one is None else one.reply for name, one in own.items()},
        "says": {name: None if one is None else _says(one, facts) for name, one in own.items()},
    }  # fmt: skip


def _says(answer: Answer, facts: Sidecar | None) -> bool | None:
    recalled, asked = fact_counts(answer, facts)
    return recalled == asked if asked else None

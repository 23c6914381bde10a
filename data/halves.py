"""Which training questions a stage means; and retain people divided by hash, those a retain term may train on or not.

A retain score on people the loss trained on says little (reference figures: 0.98 against 0.89 on the others), so the
headline is always the held-out half. The division is a function of the person's id alone.
"""

import hashlib
from collections.abc import Iterable
from typing import Literal

from .example import DataError, Example
from .source import Source

Half = Literal["seen", "held-out"]


def half_of(person: str) -> Half:
    """Return which half of the retain people a person belongs to."""
    return "seen" if hashlib.sha256(f"viker/half/{person}".encode()).digest()[0] % 2 else "held-out"


def training_questions(source: Source, split: str) -> list[Example]:
    """Return the training questions of forget, retain, retain-seen (the half a retain term may use) or all.

    Raises:
        DataError: there are none.
    """
    part: Literal["all", "forget", "retain"] = "forget" if split == "forget" else "all" if split == "all" else "retain"
    examples = list(source.training(part))
    if split == "retain-seen":
        examples = [example for example in examples if half_of(example.people[0]) == "seen"]
    if split == "retain-seen" and not examples and (others := _people(source.training("retain"))):
        raise DataError(
            f"--split {split}: expected training questions about the half of the retain people that a retain term may "
            f"use, found all {len(others)} in the other half. Retain more people, or use a method without a retain "
            "term (--method viker)."
        )
    if not examples:
        raise DataError(f"--split {split}: expected training questions, found none. Check --forget and --ratio.")
    return examples


def _people(examples: Iterable[Example]) -> set[str]:
    return {person for example in examples for person in example.people}

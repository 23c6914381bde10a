"""Which facts replies hold: the private words of a sidecar, counted, answer by answer and person by person.

A fact counts only if exactly one candidate of its kind is said (design, section 11; `data/sidecar.py`); a letter states
no fact. Means, intervals and bars over people are made elsewhere, all of them from these counts.
"""

from collections.abc import Iterable

from ..data.sidecar import Sidecar, fact_in
from .answers import Answer


def fact_counts(answer: Answer, facts: Sidecar | None) -> tuple[int, int]:
    """Return (recalled, asked) facts of one answer; without candidates none can be judged."""
    if facts is None or answer.task == "classification":
        return 0, 0
    asked = answer.facts or facts.facts_asked(answer.expected, answer.person)
    return sum(fact_in(answer.reply or "", kind, word, facts.candidates) for kind, word in asked), len(asked)


def fact_recall_by_person(answers: Iterable[Answer], facts: Sidecar | None) -> dict[str, tuple[int, int]]:
    """Return (facts recalled, facts asked) for each person with any, over all the answers given."""
    recall: dict[str, tuple[int, int]] = {}
    for answer in answers:
        hits, asked = fact_counts(answer, facts)
        if asked:
            before = recall.get(answer.person, (0, 0))
            recall[answer.person] = (before[0] + hits, before[1] + asked)
    return recall

"""Without retain-only: does the model speak about the forget people as about people it never met?

Each forget person is paired with one control person, by a seed; their questions are matched by text, and by place in
the person's list where texts name the person and none is shared. A pair's value is the mean difference (forget minus
control) over its questions, and the pairs' signs are tested: under "no difference" a pair's sides could be exchanged,
which holds for one-to-one pairs and not where several forget people share a control. Whoever is left over on the longer
side is in `everyone` only: an unpaired test of all people, for where a few are to be forgotten and many controls exist.
The verdict is that of the pairs, and its rule is fixed here before any number is seen (`verdict`): a small p says
distinguishable; a large p says nothing by itself, so what is printed is how large a difference the data still allow;
below 18 pairs there is no such interval and no verdict. "Indistinguishable" is never said: who wants to say it bounds
the interval by a policy. p-values are adjusted (Holm) over the metrics of one cell.
A difference means forgetting only as far as both groups are alike otherwise (questions, pictures, how common words
are): look at the same numbers of vanilla before unlearning.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..answers import LOGPROB
from .per_answer import Scored, sums_by_cluster
from .statistics import MIN_CLUSTERS, PairedTest, UnpairedTest, holm, paired_test, unpaired_test

# All are higher the more is known; what a cell's answers do not hold is left out.
METRICS = (LOGPROB, "fact_recall", "rougeL", "extraction_strength", "accuracy", "accuracy_likelihood")
LEVEL = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlsDifference:
    """One metric of forget people minus that of controls.

    Attributes:
        paired: over one-to-one pairs of people; `questions` were matched in them.
        p_adjusted: the p-value of `paired`, adjusted over the metrics of the cell.
        everyone: over the mean of every person of both sides, their questions unmatched.
        left_over: people of either side who are in no pair that has this metric.
    """

    metric: str
    paired: PairedTest
    p_adjusted: float
    questions: int
    everyone: UnpairedTest
    left_over: int
    verdict: str


def controls_differences(forget: Sequence[Scored], controls: Sequence[Scored], seed: int) -> list[ControlsDifference]:
    """Compare the answers of one task and modality about forget people with those about controls."""
    matched = matched_questions(forget, controls, seed)
    tests = {}
    for metric in METRICS:
        by_pair = _differences(matched, metric)
        if by_pair:
            tests[metric] = (paired_test([sum(pair) / len(pair) for pair in by_pair], seed), sum(map(len, by_pair)))
    adjusted = holm([test.p for test, _ in tests.values()])
    found = []
    for (metric, (test, questions)), p_adjusted in zip(tests.items(), adjusted, strict=True):
        ours, theirs = ([total / number for total, number in sums_by_cluster(side, metric).values()]
                        for side in (forget, controls))  # fmt: skip
        found.append(
            ControlsDifference(
                metric=metric,
                paired=test,
                p_adjusted=p_adjusted,
                questions=questions,
                everyone=unpaired_test(ours, theirs, seed),
                left_over=len(ours) + len(theirs) - 2 * test.n,
                verdict=verdict(test, p_adjusted),
            )
        )
    return found


def verdict(test: PairedTest, p: float) -> str:
    """Say in words what a test of forget people against controls shows, by the rule in the module's docstring.

    `p` may be adjusted for several tests; the level is 0.05.
    """
    if p < LEVEL:
        side = "above" if test.mean > 0 else "below"
        return f"distinguishable (p={p:.2g}, n={test.n}): {side} never-seen people by {abs(test.mean):.3g}"
    if test.ci is None:
        return f"too few people (n={test.n} < {MIN_CLUSTERS}) for an interval: no verdict"
    low, high = test.ci
    return f"not told apart at n={test.n}, difference within [{low:.3g}, {high:.3g}]"


def matched_questions(
    forget: Sequence[Scored], controls: Sequence[Scored], seed: int
) -> list[list[tuple[Scored, Scored]]]:
    """Return one list of matched questions for each pair of a forget and a control person.

    Who is paired is the seed's choice; as many pairs as the shorter side has people.
    """
    ours, theirs = _by_person(forget), _by_person(controls)
    order = np.random.default_rng(seed).permutation(len(theirs))
    return [_matched(mine, theirs[index]) for mine, index in zip(ours, order, strict=False)]


def _by_person(items: Sequence[Scored]) -> list[list[Scored]]:
    people: dict[str, list[Scored]] = {}
    for item in items:
        people.setdefault(item.cluster, []).append(item)
    return [people[person] for person in sorted(people)]


def _matched(ours: Sequence[Scored], theirs: Sequence[Scored]) -> list[tuple[Scored, Scored]]:
    """Match two people's questions by text (the first of a text with the first), or all by place if none is shared."""
    known = _by_text(theirs)
    shared = [(mine, known[key]) for key, mine in _by_text(ours).items() if key in known]
    return shared or list(zip(ours, theirs, strict=False))


def _by_text(items: Sequence[Scored]) -> dict[tuple[str, int], Scored]:
    """Return questions by text and how often it was asked before: a text may come with several pictures."""
    seen: Counter[str] = Counter()
    found = {}
    for item in items:
        found[item.answer.question, seen[item.answer.question]] = item
        seen[item.answer.question] += 1
    return found


def _differences(matched: Sequence[Sequence[tuple[Scored, Scored]]], metric: str) -> list[list[float]]:
    """Return each pair's differences, over questions where both sides have the metric; pairs without any left out."""
    by_pair = [
        [mine.values[metric] - other.values[metric] for mine, other in pair
         if metric in mine.values and metric in other.values]
        for pair in matched
    ]  # fmt: skip
    return [pair for pair in by_pair if pair]
